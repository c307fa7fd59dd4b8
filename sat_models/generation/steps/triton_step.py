"""A decode step on a GPU through Triton's kernels: six launches a layer, which read the cache's length there.

So it is recorded once for a cache, as a CUDA graph, and replayed at every length. Nothing chooses it unasked: only a
run on a GPU may show it to be equal and faster (`scripts/bench.py --preset gpu` measures it beside the usual step).

Legend: B rows, T cached tokens and the new one, C columns of the cache, D hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixins.cache_form import CacheForm
from mixins.kv_cache import KVStore
from mixins.linear import is_whole
from mixins.rotary import RotaryEmbedding
from sat_models.generation.steps.flat import Layer, TokenStep, has_room
from sat_models.generation.steps.graphs import RECORD_AFTER, Record, unrecordable
from sat_models.generation.steps.products import is_whole_quantised
from sat_models.generation.steps.triton_attention import attend, parts_room
from sat_models.generation.steps.triton_language import can_launch_on
from sat_models.generation.steps.triton_products import Weight, product
from sat_models.generation.steps.triton_tuning import MAX_ROWS

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST_HEAD, _LARGEST_GROUP = 256, 64


class Unfit(ValueError):
    """Why the kernels cannot decode a model."""


class _LayerWeights(NamedTuple):
    """Of one layer, in the order of a token; norms with their epsilons."""

    norm: Tensor
    epsilon: float
    mix: Weight
    dense: Weight
    norm_again: Tensor
    epsilon_again: float
    gate: Weight
    up: Weight
    down: Weight


class TritonStep:
    """Called like the `TokenStep` that it stands for, which takes over what is not made for the kernels.

    In fp32, bf16 and fp16, with linears in that dtype or of 8 or 4 bits, whose weights alone are quantised: inputs stay
    as they are. Sums are in fp32, and fewer of them are rounded than by torch's operators.

    Args:
        step: what it stands for.
        record: records launches, as `record_on_gpu` does; None launches each time.

    Raises:
        Unfit: the kernels are not there, or were not made for such a model.
    """

    def __init__(self, step: TokenStep, record: Record | None = None) -> None:
        self._step, self._record = step, record
        self._words = step.words.detach()
        if not can_launch_on(self._words.device):
            raise Unfit(f"Triton cannot launch on {self._words.device}: it takes a GPU, and the package triton")
        if not step.has_bare_parts(self._words.device.type, _DTYPES):
            raise Unfit("its activation, a norm or the embeddings are of another kind")
        rotary, heads = step.rotary, step.heads
        if type(rotary) is not RotaryEmbedding or heads.head_dim > _WIDEST_HEAD or heads.group > _LARGEST_GROUP:
            raise Unfit("its heads turn in another way, or are too wide")
        self._layers = [self._weights_of(layer) for layer in step.layers]
        self._last_norm, self._last_epsilon = step.last_norm.weight.detach(), step.last_norm.variance_epsilon
        self._head = self._weight_of(step.head)
        self._key: tuple[Any, ...] | None = None
        self._times = 0  # that the key came in a row
        self._launches: _Launches | None = None

    def __call__(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, *, max_position: int
    ) -> Tensor:
        """As `TokenStep.__call__`. The logits are overwritten by the next call."""
        rows = len(ids)
        fits = rows <= MAX_ROWS and len(position_ids) == rows and store.form is not CacheForm.INT8
        if not (fits and has_room(store, rows, self._words.dtype)):
            return self._step(ids, position_ids, store, may_look, max_position=max_position)
        table = self._step.reserve(max(max_position, store.max_length))
        memory = tuple(part.data_ptr() for part in (*table, *store.keys, *store.values))
        key = (rows, store.max_length, may_look is None, memory)
        if key != self._key:
            self._key, self._times = key, 0
            self._launches = _Launches(self, rows, store, table, masked=may_look is not None)
        self._times += 1
        launches = self._launches
        launches.set(ids, position_ids, store.length, may_look)
        if self._record is not None and self._times == RECORD_AFTER and self._step.model not in unrecordable:
            self._try_to_record(launches)
        launches.run()
        return launches.logits

    def _try_to_record(self, launches: _Launches) -> None:
        """Twice the same step does no more than once: it writes the same keys and values to the same place."""
        try:
            launches.run = self._record(launches.launch, self._words.device)
        except RuntimeError as error:
            unrecordable.add(self._step.model)
            logger.warning("decoding runs without CUDA graphs, and slower: %s", str(error).splitlines()[0])

    def launch(self, buffers: _Launches) -> None:
        """All kernels of a step."""
        torch.index_select(self._words, 0, buffers.ids, out=buffers.hidden)
        hidden, mixed, context, inner = buffers.hidden, buffers.mixed, buffers.context, buffers.inner
        for layer, keys, values in zip(self._layers, buffers.keys, buffers.values, strict=True):
            product(mixed, hidden, layer.mix, norm=layer.norm, epsilon=layer.epsilon)
            attend(
                context, mixed, self._step.heads, buffers.table, buffers.positions, buffers.length, keys, values,
                buffers.parts, buffers.may_look,
            )  # fmt: skip
            product(hidden, context, layer.dense, residual=hidden)
            product(inner, hidden, layer.gate, up=layer.up, norm=layer.norm_again, epsilon=layer.epsilon_again)
            product(hidden, inner, layer.down, residual=hidden)
        product(buffers.logits, hidden, self._head, norm=self._last_norm, epsilon=self._last_epsilon)

    def rooms(self, rows: int) -> list[Tensor]:
        """For what lies between the kernels: hidden, mixed, context, inner and logits, of so many rows."""
        first = self._layers[0]
        widths = self._words.shape[1], first.mix.outputs, self._step.heads.context_size, first.up.outputs
        return [self._words.new_empty(rows, width) for width in (*widths, self._head.outputs)]

    def parts(self, rows: int, columns: int) -> tuple[Tensor, Tensor] | None:
        """For what the splits of attention find."""
        return parts_room(rows, self._step.heads, columns, self._words.device)

    def _weights_of(self, layer: Layer) -> _LayerWeights:
        mix, dense, gate, up, down = map(self._weight_of, layer.linears)
        if gate.bias is not None or up.bias is not None or (gate.bits, gate.block) != (up.bits, up.block):
            raise Unfit("its gated MLP has biases, or halves of different forms")
        return _LayerWeights(
            layer.norm.weight.detach(), layer.norm.variance_epsilon, mix, dense,
            layer.norm_again.weight.detach(), layer.norm_again.variance_epsilon, gate, up, down,
        )  # fmt: skip

    def _weight_of(self, linear: nn.Module) -> Weight:
        if is_whole(linear):
            found, floats = Weight(linear.weight.detach(), bias=linear.bias), [linear.weight]
        elif is_whole_quantised(linear):
            stored = linear.stored
            block = stored.block if stored.bits == 4 else 0
            found, floats = Weight(stored.codes, stored.scales, block, linear.bias), []
        else:
            raise Unfit(f"a {type(linear).__name__} is neither bare nor quantised")
        floats += [] if linear.bias is None else [linear.bias]
        plain = all(type(part) in (Tensor, nn.Parameter) and part.dtype == self._words.dtype for part in floats)
        tensors = [part for part in found if isinstance(part, Tensor)]
        if not plain or any(part.device != self._words.device or not part.is_contiguous() for part in tensors):
            raise Unfit(f"a {type(linear).__name__} is of another dtype, on another device or in pieces")
        return found


class _Launches:
    """The buffers of one step for so many rows and one cache: what a recording reads and writes each time.

    Attributes:
        run: launches the step, or replays its recording.
    """

    def __init__(
        self, step: TritonStep, rows: int, store: KVStore, table: tuple[Tensor, Tensor], *, masked: bool
    ) -> None:
        self._step, self.table = step, table
        self.keys, self.values = list(store.keys), list(store.values)
        self.hidden, self.mixed, self.context, self.inner, self.logits = step.rooms(rows)
        self.parts = step.parts(rows, store.max_length)
        new = self.hidden.new_empty
        self.ids, self.positions = (new(rows, dtype=torch.int64) for _ in range(2))
        self.length = new(1, dtype=torch.int64)
        self.may_look = new(rows, store.max_length, dtype=torch.bool) if masked else None
        self.run: Callable[[], None] = self.launch

    def set(self, ids: Tensor, position_ids: Tensor, length: int, may_look: Tensor | None) -> None:
        """What the next run works on."""
        self.ids.copy_(ids)
        self.positions.copy_(position_ids.reshape(-1))
        self.length.fill_(length)
        if may_look is not None:
            self.may_look[:, : length + 1] = may_look.flatten(0, 2)

    def launch(self) -> None:
        """The kernels, one after the other."""
        self._step.launch(self)
