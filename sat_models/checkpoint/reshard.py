"""How each weight is divided over model-parallel ranks, and its slices for any number of them.

The rules come from the module tree: which SAT layer owns a weight says how it is split. One routine serves splitting,
merging and going from M stored parts to R running ranks: it copies the pieces that a rank owns, and reads no others,
so with memory-mapped parts each rank touches its own slice of the file only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mixins.heads import heads_of, heads_of_rank
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from mixins.whole import WholeEmbedding, WholeLinear
from sat_models.checkpoint.memory import release_pages
from sat_models.errors import CheckpointError
from sat_models.models.common.quantised import SCALE, Rows


@dataclass(frozen=True)
class SplitRule:
    """How one weight is divided.

    Attributes:
        dim: dimension that is cut; None = every rank holds the whole.
        parts: relative sizes of the blocks along `dim` that are cut each on its own and then joined: (1, 1, 1) for
            QKV (q, k and v are cut separately; (4, 1, 1) where four queries share a key), (1, 1) for the key_value of
            cross-attention, (1,) for the rest.
        divisible_by: ranks that do not divide this number hold the whole; 0 = it is cut in any case.
        heads: in a part of relative size 1; those of a part are dealt out as `mixins.heads.heads_of_rank` says, so that
            ranks may hold copies. 0 = parts are cut evenly.
    """

    dim: int | None = None
    parts: tuple[int, ...] = (1,)
    divisible_by: int = 0
    heads: int = 0

    @property
    def part_heads(self) -> tuple[int, ...]:
        """Heads of each part over all ranks; its relative size where it has none."""
        return tuple(part * (self.heads or 1) for part in self.parts)

    def of_part(self, number: int) -> SplitRule:
        """The rule of one part that is a weight of its own."""
        return replace(self, parts=self.parts[number : number + 1] or (1,))

    def held(self, size: int) -> tuple[int, ...]:
        """`part_heads` with copies counted, over all of `size` ranks."""
        return tuple(math.lcm(heads, size) for heads in self.part_heads) if self.heads else self.parts

    def has_copies(self, size: int) -> bool:
        """True if some of `size` ranks hold the same heads."""
        return self.held(size) != self.part_heads

    def whole_at(self, size: int) -> bool:
        """True if each of `size` ranks holds the whole."""
        return self.dim is None or bool(self.divisible_by and self.divisible_by % size)

    def full_shape(self, local: Sequence[int], size: int) -> tuple[int, ...]:
        """Shape of the whole weight, from the shape of one of `size` equal shards."""
        if self.whole_at(size):
            return tuple(local)
        once, held = sum(self.part_heads), sum(self.held(size))
        return tuple(n * size * once // held if axis == self.dim else n for axis, n in enumerate(local))

    def shard_shape(self, full: Sequence[int], size: int) -> tuple[int, ...]:
        """Shape of one of `size` shards. Raises CheckpointError if the weight cannot be divided evenly."""
        if self.whole_at(size):
            return tuple(full)
        once, held = sum(self.part_heads), sum(self.held(size))
        least = once if self.heads else once * size
        if full[self.dim] % least:
            raise CheckpointError(
                f"a weight of shape {list(full)} cannot be divided over {size} ranks: dimension {self.dim} must be a "
                f"multiple of {least}"
            )
        return tuple(n * held // (once * size) if axis == self.dim else n for axis, n in enumerate(full))


REPLICATED = SplitRule()


def split_rules(model: nn.Module) -> dict[str, SplitRule]:
    """The rule of every parameter and persistent buffer of `model`, by its name in the state dict.

    SAT uses a plain, replicated embedding for vocabularies below 1000; since the layer's class decides, that follows.
    """
    rules = dict.fromkeys(model.state_dict().keys(), REPLICATED)
    for path, module in model.named_modules():
        for name, rule in _rules_of_layer(module).items():
            key = f"{path}.{name}" if path else name
            if key in rules:
                rules[key] = rule
    return rules


def _rules_of_layer(module: nn.Module) -> dict[str, SplitRule]:
    if isinstance(module, VocabParallelEmbedding):
        return {"weight": SplitRule(0, (1,), module.num_embeddings)}
    if isinstance(module, WholeLinear | WholeEmbedding):
        rule, scale = SplitRule(module.dim, module.parts, module.divisible_by), getattr(module, SCALE, None)
        scaled = rule if module.dim == 0 or (scale is not None and scale.dim() == 2) else REPLICATED
        return {"weight": rule, "bias": rule if module.dim == 0 else REPLICATED, SCALE: scaled}
    cut_by = getattr(module, "divisible_by", 0)
    if isinstance(module, ColumnParallelLinear):
        given = (1,) * module.stride if isinstance(module.stride, int) else tuple(module.stride)
        parts = tuple(part // math.gcd(*given) for part in given)
        rule = SplitRule(0, parts, cut_by)
        if (layout := heads_of(module)) is not None:
            rule = SplitRule(0, (layout.group, 1, 1), cut_by, layout.num_kv_heads)
        return dict.fromkeys(("weight", "bias", SCALE), rule)
    if isinstance(module, RowParallelLinear):  # its bias stays whole, and so does a scale for each output
        scale = getattr(module, SCALE, None)
        rule = SplitRule(1, (1,), cut_by)
        return {"weight": rule, SCALE: rule if scale is not None and scale.dim() == 2 else REPLICATED}
    if hasattr(module, "split_dims"):  # LoRA, p-tuning: modules that know how they divide their own parameters
        heads = module.split_heads()
        dims = module.split_dims()
        return {name: SplitRule(dim, (1,), cut_by, heads.get(name, 0)) for name, dim in dims.items()}
    return {}


@dataclass(frozen=True)
class RankPart:
    """One rank's part of a weight that is stored in any number of parts; a slice of its rows is read there.

    Attributes:
        stored: the M stored shards in rank order, all of one shape (the whole weight if M is 1).
        rule: how the weight is divided.
        rank, size: whose part, of how many.
        dtype, device: of what is read.
    """

    stored: Sequence[Rows]
    rule: SplitRule
    rank: int
    size: int
    dtype: torch.dtype
    device: torch.device | str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this rank's part. Raises CheckpointError if the weight cannot be divided evenly."""
        return self.rule.shard_shape(self.rule.full_shape(self.stored[0].shape, len(self.stored)), self.size)

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows of it as a new contiguous tensor; nothing else of that size is allocated."""
        start, stop, _ = rows.indices(self.shape[0])
        out = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype, device=self.device)
        dim, count = self.rule.dim, len(self.stored)
        held_whole, wanted_whole = self.rule.whole_at(count), self.rule.whole_at(self.size)
        if dim is None or (held_whole and wanted_whole):
            return out.copy_(self.stored[0][start:stop])
        count = 1 if held_whole else count
        rank, size = (0, 1) if wanted_whole else (self.rank, self.size)
        full = self.rule.full_shape(self.stored[0].shape, count)[dim]
        for target, shard, source, length in _pieces(full, self.rule, count, rank, size):
            if dim == 0:
                first, last = max(start, target), min(stop, target + length)
                if first < last:
                    shift = source - target
                    out[first - start : last - start].copy_(self.stored[shard][first + shift : last + shift])
            else:
                out.narrow(dim, target, length).copy_(self.stored[shard][start:stop].narrow(dim, source, length))
        return out

    def read(self) -> Tensor:
        """All of it, in memory of its own."""
        if not self.shape:
            return torch.empty((), dtype=self.dtype, device=self.device).copy_(self.stored[0])
        return self[:]


def read_shard(
    stored: Sequence[Tensor],
    rule: SplitRule,
    rank: int,
    size: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The part of `rank` of `size`, in memory of its own; see `RankPart`.

    Args:
        dtype, device: of the result; None keeps the stored one.

    Raises:
        CheckpointError: it cannot be divided evenly.
    """
    return RankPart(stored, rule, rank, size, dtype or stored[0].dtype, device or stored[0].device).read()


@dataclass
class StoredWeights:
    """Stored parts, and how each weight in them is divided: what `load_weights` and the converters read from.

    Attributes:
        parts: weights of model-parallel rank 0, 1, … by SAT's names.
        rules: of each name, from `split_rules`.
    """

    parts: Sequence[Mapping[str, Tensor]]
    rules: Mapping[str, SplitRule]

    @property
    def names(self) -> list[str]:
        """Of all weights, in their order."""
        return list(self.parts[0])

    def kind(self, name: str) -> torch.dtype:
        """The stored dtype."""
        return self.parts[0][name].dtype

    def part(
        self,
        name: str,
        rank: int = 0,
        size: int = 1,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> RankPart:
        """The part of `rank` of `size`, still to be read; `dtype` is for floating-point weights."""
        stored = [part[name] for part in self.parts]
        kind = stored_kind(name, stored[0], dtype)
        return RankPart(self._rows(name, stored), self.rules[name], rank, size, kind, device)

    def done(self, name: str) -> None:
        """This weight is not needed any more: its pages may leave the memory."""
        for part in self.parts:
            release_pages(part[name])

    def _rows(self, name: str, stored: Sequence[Tensor]) -> Sequence[Rows]:
        """The stored parts that a weight is read from."""
        return stored


def stored_kind(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a weight where `dtype` is asked for: counts, codes and the scales of codes keep their own."""
    keeps = dtype is None or not tensor.is_floating_point() or name.endswith(f".{SCALE}")
    return tensor.dtype if keeps else dtype


def _pieces(full: int, rule: SplitRule, stored: int, rank: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Runs to copy along the cut dimension: (start in the result, stored shard, start in that shard, length)."""
    unit = full // sum(rule.part_heads)
    target = block_in_shard = 0
    for part, held in zip(rule.part_heads, rule.held(stored), strict=True):
        per_shard = unit * held // stored
        for start, stop in _wanted(part, held // part, unit, rank, size, by_heads=bool(rule.heads)):
            while start < stop:
                shard, offset = divmod(start, per_shard)
                length = min(stop - start, per_shard - offset)
                yield target, shard, block_in_shard + offset, length
                start, target = start + length, target + length
        block_in_shard += per_shard


def _wanted(part: int, copies: int, unit: int, rank: int, size: int, *, by_heads: bool) -> Iterator[tuple[int, int]]:
    """Runs of rows of a part that a rank wants, where each head of it stands so many times: starts and ends."""
    if not by_heads:
        wanted = unit * part // size
        yield rank * wanted, (rank + 1) * wanted
        return
    for head in heads_of_rank(part, rank, size):
        yield head * copies * unit, (head * copies + 1) * unit


def slice_for_rank(tensor: Tensor, rule: SplitRule, rank: int, size: int) -> Tensor:
    """The part of `rank` of `size` of a whole weight, as a copy."""
    return read_shard([tensor], rule, rank, size)


def merge(shards: Sequence[Tensor], rule: SplitRule) -> Tensor:
    """The whole weight from its shards in rank order, as a copy."""
    return read_shard(shards, rule, 0, 1)
