"""Weights with LoRA merged into each as it is read: an adapter's, or the originals' un-merged matrices.

`load_weights` and `scripts/merge_lora.py` both read through this, so they make the same weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixins.lora import low_rank_product
from mixins.sat_compat import mpu
from sat_models.checkpoint.adapter import PREFIX_START, Adapter
from sat_models.checkpoint.fit import check_fit, stored_weights
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.reshard import REPLICATED, RankPart, SplitRule, StoredWeights, merge, split_rules
from sat_models.errors import CheckpointError
from sat_models.models.build import computable_buffers
from sat_models.models.common.quantised import SCALE, Rows, row_runs

logger = logging.getLogger(__name__)

LORA_CONFIG_KEY = "lora"
"""Where `model_config.json` keeps the settings of LoRA matrices that lie beside it in the weights, not merged."""

_ORIGINAL = re.compile(r"^(.*)\.original\.(weight|bias)$")
_MATRIX = re.compile(r"^(.*)\.(matrix_A|matrix_B|magnitude)\.(\d+)$")

Fetch = Callable[[str, SplitRule], Tensor]
"""A whole tensor by its name and the rule it was divided by."""


def is_unmerged_lora(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """True if these are the names of weights with LoRA matrices beside them."""
    return any(_MATRIX.match(name) for name in names)


class _MergedRows:
    """`W + scale · B A` of one linear in fp32, with DoRA each row at its learned length; made when it is sliced.

    Products are made of the same runs of rows whoever asks: BLAS may round those of another size differently.

    Args:
        weight: W, [outputs, inputs].
        matrices: (A, B) of each block of rows.
        scale: alpha / rank.
        lengths: of all rows, fp32, for DoRA.
    """

    dtype = torch.float32

    def __init__(
        self, weight: Rows, matrices: Sequence[tuple[Tensor, Tensor]], scale: float, lengths: Tensor | None
    ) -> None:
        self.weight, self.scale, self.lengths = weight, scale, lengths
        self.shape, self.device = weight.shape, weight.device
        self._runs: list[tuple[int, Tensor, Tensor]] = []
        first = 0
        for a, b in matrices:
            self._runs += [(first + run.start, a, b[run]) for run in row_runs(len(b), self.shape[1])]
            first += len(b)

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        out = torch.empty(stop - start, self.shape[1], device=self.device)
        for first, a, b in self._runs:
            begin, end = max(start, first), min(stop, first + len(b))
            if begin < end:
                out[begin - start : end - start] = self._made(first, a, b)[begin - first : end - first]
        return out

    def _made(self, first: int, a: Tensor, b: Tensor) -> Tensor:
        run = slice(first, first + len(b))
        result = self.weight[run].float() + low_rank_product([a], [b]) * self.scale
        if self.lengths is not None:
            result *= (self.lengths[run] / result.square().sum(dim=1).sqrt())[:, None]
        return result


@dataclass
class _LowRank:
    """One linear's LoRA: numbers of its blocks, and whether DoRA is there."""

    blocks: set[int] = field(default_factory=set)
    dora: bool = False

    def shape(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Of the weight that the matrices of an adapter are for; None where they are not among its `tensors`."""
        pairs = [(tensors.get(f"{name}.matrix_A.{p}"), tensors.get(f"{name}.matrix_B.{p}")) for p in self.blocks]
        if any(a is None or b is None for a, b in pairs):
            return None
        return sum(len(b) for _, b in pairs), pairs[0][0].shape[1]

    def merged(self, name: str, weight: Rows, fetch: Fetch, rule: SplitRule, alpha: float) -> _MergedRows:
        """The weight with its matrices, still to be made."""
        rule_A = SplitRule(1, divisible_by=rule.divisible_by) if rule.dim == 1 else REPLICATED
        rules_B = {p: rule.of_part(p) if rule.dim == 0 else REPLICATED for p in sorted(self.blocks)}
        matrices = [
            (fetch(f"{name}.matrix_A.{p}", rule_A), fetch(f"{name}.matrix_B.{p}", rule_B))
            for p, rule_B in rules_B.items()
        ]
        made = [sum(len(b) for _, b in matrices), matrices[0][0].shape[1]]
        if made != list(weight.shape):
            raise CheckpointError(f"the LoRA matrices of {name} make {made}, but its weight is {list(weight.shape)}")
        lengths = None
        if self.dora:
            lengths = torch.cat([fetch(f"{name}.magnitude.{p}", rule_B).float() for p, rule_B in rules_B.items()])
        return _MergedRows(weight, matrices, alpha / len(matrices[0][0]), lengths)


def _low_rank_layers(names: Sequence[str] | Mapping[str, Any]) -> dict[str, _LowRank]:
    layers: dict[str, _LowRank] = {}
    for match in filter(None, map(_MATRIX.match, names)):
        layer = layers.setdefault(match[1], _LowRank())
        layer.blocks.add(int(match[3]))
        layer.dora |= match[2] == "magnitude"
    return layers


def _take(name: str, state: Mapping[str, Tensor]) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{name} is missing: these LoRA matrices are incomplete")
    return state[name]


def open_weights(
    checkpoint: SATCheckpoint, model: nn.Module, *, adapter: Adapter | None = None, alpha: float | None = None
) -> StoredWeights:
    """The weights of `checkpoint` for `load_weights`, LoRA merged: an adapter's, or that which lies beside the weights.

    Nothing is held in memory but what is taken. A p-tuning prefix in the adapter is left to the caller.

    Args:
        alpha: of matrices that lie beside the weights; None takes their config's, else 1 as in the originals.

    Raises:
        CheckpointError: names or shapes that do not fit, LoRA onto quantised weights, or onto weights with LoRA of
            their own.
    """
    size = mpu.get_model_parallel_world_size()
    stored = checkpoint.read()
    if adapter is not None:
        if is_unmerged_lora(stored[0]):
            raise CheckpointError(
                f"{checkpoint.step_folder} has LoRA matrices of its own; an adapter goes onto plain weights"
            )
        added = {name: value for name, value in adapter.tensors.items() if not name.startswith(PREFIX_START)}
        own = adapter.lora.alpha if adapter.lora else 1.0
        return MergedWeights(stored, model, checkpoint, added, own, model_size=size)
    if not is_unmerged_lora(stored[0]):
        return stored_weights(checkpoint, model, stored)
    if alpha is None:
        alpha = float((checkpoint.config.get(LORA_CONFIG_KEY) or {}).get("alpha", 1.0))
    logger.info("%s has LoRA matrices beside its weights; merging them (alpha %g)", checkpoint.step_folder, alpha)
    return MergedWeights(stored, model, checkpoint, {}, alpha, model_size=size)


class MergedWeights(StoredWeights):
    """Stored weights of any model-parallel size, with LoRA merged into each as it is read, in fp32 and rounded once.

    Args:
        stored: content of the files.
        model: as the config describes it, on meta.
        source: the checkpoint, for messages.
        added: tensors of an adapter; empty where the matrices lie beside the weights.
        alpha: numerator of LoRA's scale.
        model_size: number of ranks that `model` is a part for.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """

    def __init__(
        self,
        stored: list[dict[str, Tensor]],
        model: nn.Module,
        source: SATCheckpoint,
        added: Mapping[str, Tensor],
        alpha: float,
        *,
        model_size: int = 1,
    ) -> None:
        stored_as = {_plain(key): key for key in stored[0] if not _MATRIX.match(key)}
        super().__init__([_Renamed(part, stored_as) for part in stored], split_rules(model))
        self._stored, self._added, self._alpha = stored, added, alpha
        self._low_rank = _low_rank_layers([*stored[0], *added])
        self._check(source, model, model_size)

    def _rows(self, name: str, stored: Sequence[Tensor]) -> Sequence[Rows]:
        if name in self._added:
            return [self._added[name]]
        base, _, last = name.rpartition(".")
        if last != "weight" or base not in self._low_rank:
            return stored
        low_rank, rule = self._low_rank[base], self.rules[name]
        if not low_rank.dora and f"{base}.matrix_A.0" not in self._added:
            # Part by part: the originals' row-parallel B is another one on each rank.
            parts = zip(stored, self._stored, strict=True)
            return [
                low_rank.merged(base, weight, lambda key, _, part=part: _take(key, part), REPLICATED, self._alpha)
                for weight, part in parts
            ]
        whole = RankPart(stored, rule, 0, 1, stored[0].dtype, stored[0].device)
        return [low_rank.merged(base, whole, self._fetch, rule, self._alpha)]

    def _fetch(self, name: str, rule: SplitRule) -> Tensor:
        if name in self._added:
            return self._added[name]
        return merge([_take(name, part) for part in self._stored], rule)

    def _check(self, source: SATCheckpoint, model: nn.Module, size: int) -> None:
        """Raise CheckpointError where names or shapes are not those of the config's model."""
        if any(name.startswith(PREFIX_START) for name in self.names):
            raise CheckpointError(f"{source.step_folder} holds a p-tuning prefix, which cannot be merged into weights")
        targets = model.state_dict()
        optional = {key for key, _, _ in computable_buffers(model)}
        check_fit(source, self.parts, targets, self.rules, size, optional=optional)
        if quantised := [n for n in self._low_rank if f"{n}.{SCALE}" in targets]:
            raise CheckpointError(
                f"{source.step_folder} is quantised, and LoRA cannot be merged into quantised weights "
                f"({quantised[0]}): merge it into those in full precision, then quantise the result"
            )
        full = {name: value for name, value in self._added.items() if not _MATRIX.match(name)}
        wrong = [
            name
            for name, value in full.items()
            if name not in targets or self.rules[name].full_shape(targets[name].shape, size) != tuple(value.shape)
        ]
        wrong += [name for name in self._low_rank if f"{name}.weight" not in targets]
        shapes = {name: self.rules[name].full_shape(value.shape, size) for name, value in targets.items()}
        for name, low_rank in self._low_rank.items():
            made, whole = low_rank.shape(name, self._added), shapes.get(f"{name}.weight")
            if made is not None and whole is not None and made != tuple(whole):
                wrong.append(f"the LoRA matrices of {name} make {list(made)}, but its weight is {list(whole)}")
        if wrong:
            raise CheckpointError(
                f"the adapter or the LoRA matrices are not for the model in {source.step_folder}: {len(wrong)} name(s) "
                f"or shapes do not fit, such as {', '.join(sorted(wrong)[:4])}"
            )


class _Renamed(Mapping[str, Tensor]):
    """Tensors under other names, `names` from theirs to the stored ones; each is looked up when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, {name: key for name, key in names.items() if key in tensors}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _plain(key: str) -> str:
    match = _ORIGINAL.match(key)
    return f"{match[1]}.{match[2]}" if match else key
