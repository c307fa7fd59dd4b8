"""Choosing tokens, the same on all processes that share a model, without waiting for the device.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixins.sat_compat import mpu
from sat_models.errors import ZooError
from sat_models.generation.sampling import SamplingOptions, sample
from sat_models.generation.strict.guide import Guide

_GREEDY = SamplingOptions()


def model_group() -> Any:
    """The processes that share one model; None when this process holds all of it."""
    if not mpu.model_parallel_is_initialized() or mpu.get_model_parallel_world_size() == 1:
        return None
    return mpu.get_model_parallel_group()


def not_numbers(dtype: torch.dtype) -> ZooError:
    """The error for logits that are NaN or infinite."""
    return ZooError(
        f"The model gave logits that are not numbers (dtype {str(dtype).removeprefix('torch.')}). fp16 "
        "overflows in some models: load with --bf16 or --fp32. Otherwise the weights are damaged."
    )


class RowSampler:
    """How one answer chooses its tokens: options, a generator of its own, and what it has chosen so far.

    Args:
        counted: ids [1, S] that a repetition penalty counts besides; None: none.
        guide: keeps the answer within its constraint; None: it has none.
    """

    def __init__(
        self,
        options: SamplingOptions,
        device: torch.device,
        counted: Tensor | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.options, self._generator, self._guide = options, options.make_generator(device), guide
        nothing = torch.empty(1, 0, dtype=torch.long)
        self._history = (nothing if counted is None else counted).to(device)

    @property
    def plain(self) -> bool:
        """True if it takes the likeliest token and nothing else."""
        return self.options.greedy and self.options.repetition_penalty == 1.0 and self._guide is None

    def draw(self, logits: Tensor) -> Tensor:
        """Logits [1, V] -> the next token [1], on their device."""
        if self._guide is not None and self._guide.must:
            token = torch.tensor(self._guide.must[:1], device=logits.device)
        else:
            if self._guide is not None:
                logits = self._guide.cut(logits)
            token = sample(logits, self.options, self._generator, self._history)
        self.note(token)
        return token

    def note(self, tokens: Tensor) -> None:
        """Count tokens [T] as chosen."""
        if self.options.repetition_penalty != 1.0:
            self._history = torch.cat((self._history, tokens[None]), dim=1)


def choose(logits: Tensor, samplers: Sequence[RowSampler], group: Any) -> Tensor:
    """Logits [R, V] -> the next token of each row [R], chosen by the first process; `NO_TOKEN` as in `sample`.

    Args:
        group: of `model_group`.
    """
    source = mpu.get_model_parallel_src_rank() if group is not None else 0
    if group is not None and dist.get_rank() != source:
        tokens = torch.zeros(len(samplers), dtype=torch.long, device=logits.device)
    elif all(sampler.plain for sampler in samplers):
        tokens = sample(logits, _GREEDY)
    else:
        tokens = torch.cat([sampler.draw(logits[row : row + 1]) for row, sampler in enumerate(samplers)])
    if group is not None:
        dist.broadcast(tokens, src=source, group=group)
    return tokens


def hand_out(token: int, device: torch.device, group: Any) -> Generator[int, None, bool]:
    """Yield a token to the caller; then all processes of the group hear whether the first one's caller goes on.

    When it stops in the middle (`close`, a client gone, an error), the others stop too, and nobody is left alone in
    the next forward pass.

    Returns:
        Whether it goes on.
    """
    goes_on = torch.zeros(1, dtype=torch.long, device=device)
    try:
        yield token
        goes_on += 1
    finally:
        dist.broadcast(goes_on, src=mpu.get_model_parallel_src_rank(), group=group)
    return bool(goes_on)
