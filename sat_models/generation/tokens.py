"""Choosing tokens, the same on all processes that share a model, without waiting for the device.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixins.sat_compat import mpu
from sat_models.errors import ZooError
from sat_models.generation.sampling import NO_TOKEN, SamplingOptions, sample

CANCELLED = -2
"""In place of a token: the first process has stopped."""
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
    """How one answer chooses its tokens: options, a generator of its own, and what it has chosen so far."""

    def __init__(self, options: SamplingOptions, device: torch.device) -> None:
        self.options, self._generator = options, options.make_generator(device)
        self._history = torch.empty(1, 0, dtype=torch.long, device=device)

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token and nothing else."""
        return self.options.greedy and self.options.repetition_penalty == 1.0

    def draw(self, logits: Tensor) -> Tensor:
        """Logits [1, V] -> the next token [1], on their device."""
        token = sample(logits, self.options, self._generator, self._history)
        if self.options.repetition_penalty != 1.0:
            self._history = torch.cat((self._history, token[None]), dim=1)
        return token


@torch.inference_mode()
def choose(logits: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """Logits [R, V] -> the next token of each row [R], chosen by the first process; `NO_TOKEN` as in `sample`."""
    group = model_group()
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


class StreamChooser:
    """Chooses the tokens of one answer that somebody reads while it is made.

    The first process samples and gives its caller each token *before* it tells the others, who wait. So when the
    caller stops in the middle (`close`, a client gone, an error), the others hear that instead of the token and stop
    too, and nobody is left alone in the next forward pass.
    """

    def __init__(self, options: SamplingOptions, device: torch.device) -> None:
        self._device, self._group = device, model_group()
        self._source = mpu.get_model_parallel_src_rank() if self._group is not None else 0
        self._chooses = self._group is None or dist.get_rank() == self._source
        self._sampler = RowSampler(options, device) if self._chooses else None

    @torch.inference_mode()
    def next_token(self, logits: Tensor) -> tuple[Tensor, int]:
        """The token after logits [1, V]: on the device [1], and on the host; `CANCELLED` if the first process stopped.

        Reading it on the host is the one wait for the device in a step.
        """
        if self._chooses:
            token = self._sampler.draw(logits)
        else:
            token = torch.zeros(1, dtype=torch.long, device=self._device)
            dist.broadcast(token, src=self._source, group=self._group)
        read = int(token)
        if read == NO_TOKEN:
            self.announce(read)
            raise not_numbers(logits.dtype)
        return token, read

    def hand_out(self, token: int) -> Iterator[int]:
        """Yield the token to the caller, then tell the other processes to go on, or to stop if the caller did."""
        told = CANCELLED
        try:
            yield token
            told = token
        finally:
            self.announce(told)

    def announce(self, token: int) -> None:
        """Send from the first process; nothing on the others."""
        if self._group is not None and self._chooses:
            dist.broadcast(torch.tensor([token], device=self._device), src=self._source, group=self._group)
