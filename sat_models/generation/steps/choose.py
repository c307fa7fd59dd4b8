"""One decode step, the fastest way that the model at hand allows.

Legend: B rows, S tokens of a row, T cached tokens and the new ones, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mixins.cache_form import CacheForm
from mixins.kv_cache import KVCacheMixin
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.graphs import GraphedStep, record_on_gpu
from sat_models.generation.steps.kernels import MAX_ROWS, KernelStep

if TYPE_CHECKING:
    from sat_models.generation.steps.triton_step import TritonStep

logger = logging.getLogger(__name__)

KERNELS = ("triton",)
"""What may be asked for in the place of the usual step."""

_MOST_TOGETHER = 256
"""Tokens of a row that are fed together; it bounds the memory of their logits."""

_told: WeakSet[nn.Module] = WeakSet()
"""Models that are decoded in the usual way although other kernels were asked for: said once."""


class Stepper:
    """Feeds the newest tokens to a model and gives the logits of the next ones.

    Args:
        model: with `cache` in place, as it will be until the last step.
        cache: whose store the caller sets; a step writes and counts one more token there.
        graphs: record steps as CUDA graphs where the model lies on a GPU and nothing in its step waits for the host.
        kernels: of `KERNELS`, in the place of the usual step where they were made for the model; None: the usual one.
    """

    def __init__(
        self, model: nn.Module, cache: KVCacheMixin, *, graphs: bool = True, kernels: str | None = None
    ) -> None:
        self.model, self.cache, self._graphs, self._kernels = model, cache, graphs, kernels
        self._plan()

    def _plan(self) -> None:
        self._hooks_seen = RemovableHandle.next_id
        step = TokenStep.of(self.model)
        self._flat: TokenStep | KernelStep | GraphedStep | TritonStep | None = step
        if self._kernels is not None and (asked := self._asked(step)) is not None:
            self._flat = asked
        elif step is not None and _is_on_gpu(self.model):
            if self._graphs and not step.waits:
                self._flat = GraphedStep(step)
        elif step is not None:
            self._flat = KernelStep.of(step) or step

    def _asked(self, step: TokenStep | None) -> TritonStep | None:
        """The step through Triton's kernels; None, with a line in the log, where they do not serve this model."""
        from sat_models.generation.steps.triton_step import TritonStep, Unfit  # importing Triton takes a while

        try:
            if step is None:
                raise Unfit("its layers are decoded through hooks")
            return TritonStep(step, record_on_gpu if self._graphs and _is_on_gpu(self.model) else None)
        except Unfit as error:
            if self.model not in _told:
                _told.add(self.model)
                logger.warning("Triton's kernels do not decode this model, the usual step does: %s", error)
            return None

    @property
    def way(self) -> str:
        """The way that a step goes: the name of a class, or "hooks"."""
        return "hooks" if self._flat is None else type(self._flat).__name__

    @property
    def cache_form(self) -> CacheForm:
        """How keys and values are best kept: as who loaded the model said, else in bytes where weights are read so."""
        if (asked := getattr(self.model, "cache_form", None)) is not None:
            return asked
        return CacheForm.INT8 if isinstance(self._flat, KernelStep) and self._flat.reads_bytes else CacheForm.MODEL

    def __call__(self, ids: Tensor, position_ids: Tensor, may_look: Tensor | None, *, max_position: int) -> Tensor:
        """No vision weight is read.

        Args:
            ids: [B].
            position_ids: [B, 1], or as the model wants them.
            may_look: bool [B or 1, 1, 1, T]; None: all.
            max_position: upper bound of `position_ids`.

        Returns:
            [B, V].
        """
        self._look_again()
        if self._flat is not None:
            logits = self._flat(ids, position_ids, self.cache.store, may_look, max_position=max_position)
        else:
            output = self.model(
                ids[:, None], position_ids, may_look, last_position_only=True, max_position=max_position
            )
            logits = output[0][:, -1]
        self.cache.advance(1)
        return logits

    def _look_again(self) -> None:
        if self._hooks_seen != RemovableHandle.next_id:  # somebody listens since the last step, perhaps to this model
            self._plan()

    def worth(self, rows: int) -> range:
        """Of so many rows, how many tokens each are better fed by `together` than one by one.

        Through the hooks and through the kernels, two tokens cost less than two steps. A forward through the hooks
        takes about as long as two flat steps.
        """
        if isinstance(self._flat, KernelStep):
            return range(2, MAX_ROWS // rows + 1)
        return range(2 if self._flat is None else 3, _MOST_TOGETHER + 1)

    def together(self, ids: Tensor, position_ids: Tensor, may_look: Tensor | None, *, max_position: int) -> Tensor:
        """Tokens of text that are known ahead.

        Args:
            ids: [B, S].
            position_ids: [B, S], or as the model wants them.
            may_look: bool [B or 1, 1, 1, T], for what was there before; None: all.
            max_position: upper bound of `position_ids`.

        Returns:
            [B, S, V].
        """
        self._look_again()
        logits, count = None, ids.shape[1]
        if isinstance(self._flat, KernelStep):
            logits = self._flat.together(ids, position_ids, self.cache.store, may_look, max_position=max_position)
        if logits is None:
            columns = self.cache.length + count
            lower = torch.ones(count, columns, dtype=torch.bool, device=ids.device).tril(columns - count)[None, None]
            may_look = lower if may_look is None else lower & may_look
            logits = self.model(ids, position_ids, may_look, max_position=max_position)[0]
        self.cache.advance(count)
        return logits


def _is_on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda
