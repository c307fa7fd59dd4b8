"""Checkpoint to checkpoint on the CPU, without a model in memory: other model-parallel sizes, LoRA into the weights.

The split rules come from a model of the same config on meta. Weights are read through memory maps, one at a time; what
is held in memory is one part of the result.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mixins.lora import low_rank_product
from sat_models import runtime
from sat_models.checkpoint.adapter import PREFIX_START, Adapter
from sat_models.checkpoint.io import check_fit, write_parts
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.reshard import REPLICATED, SplitRule, merge, read_shard, slice_for_rank, split_rules
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import build_model, computable_buffers, make_config

logger = logging.getLogger(__name__)

LORA_CONFIG_KEY = "lora"
"""Where `model_config.json` keeps the settings of LoRA matrices that lie beside it in the weights, not merged."""

_ORIGINAL = re.compile(r"^(.*)\.original\.(weight|bias)$")
_MATRIX = re.compile(r"^(.*)\.(matrix_A|matrix_B|magnitude)\.(\d+)$")

Fetch = Callable[[str, SplitRule], Tensor]
"""A whole tensor by its name and the rule it was divided by."""


def is_unmerged_lora(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether these are the names of weights with LoRA matrices beside them."""
    return any(_MATRIX.match(name) for name in names)


@dataclass
class _LowRank:
    """One linear's LoRA: numbers of its blocks, and whether DoRA is there."""

    blocks: set[int] = field(default_factory=set)
    dora: bool = False

    def merged(self, name: str, weight: Tensor, fetch: Fetch, rule: SplitRule, alpha: float) -> Tensor:
        """`W + alpha / rank · B A` in fp32, with DoRA each row at its learned length."""
        rule_A = SplitRule(1) if rule.dim == 1 else REPLICATED
        rule_B = SplitRule(0) if rule.dim == 0 else REPLICATED
        matrices = [fetch(f"{name}.matrix_A.{p}", rule_A) for p in sorted(self.blocks)]
        product = low_rank_product(matrices, [fetch(f"{name}.matrix_B.{p}", rule_B) for p in sorted(self.blocks)])
        if product.shape != weight.shape:
            raise CheckpointError(
                f"the LoRA matrices of {name} make {list(product.shape)}, but its weight is {list(weight.shape)}"
            )
        result = weight.float() + product * (alpha / matrices[0].shape[0])
        if self.dora:
            lengths = torch.cat([fetch(f"{name}.magnitude.{p}", rule_B).float() for p in sorted(self.blocks)])
            result = result * (lengths / result.square().sum(dim=1).sqrt())[:, None]
        return result


def _low_rank_layers(names: Sequence[str] | Mapping[str, Any]) -> dict[str, _LowRank]:
    layers: dict[str, _LowRank] = {}
    for match in filter(None, map(_MATRIX.match, names)):
        layer = layers.setdefault(match[1], _LowRank())
        layer.blocks.add(int(match[3]))
        layer.dora |= match[2] == "magnitude"
    return layers


def merge_original_lora(state: Mapping[str, Tensor], *, alpha: float = 1.0) -> dict[str, Tensor]:
    """LoRA matrices of the original fine-tuning (`….original.weight`, `….matrix_A.0`, …) into their weights.

    Args:
        state: weights of one model-parallel rank (or of the whole model); what has no LoRA is passed on as it is.
        alpha: the originals' is 1, so that the merged weight is `W + B A / rank`; q, k, v are stacked in this order.

    Returns:
        Weights under plain names, in the order and dtypes of `state`.

    Raises:
        CheckpointError: a matrix without its weight or its partner, or shapes that do not fit.
    """
    layers = _low_rank_layers(state)
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        original = _ORIGINAL.match(key)
        if original and original[1] in layers and original[2] == "weight":
            name, layer = original[1], layers[original[1]]
            merged = layer.merged(name, value, lambda key, rule: _take(key, state), REPLICATED, alpha)
            result[f"{name}.weight"] = merged.to(value.dtype)
        elif original:
            result[f"{original[1]}.{original[2]}"] = value
        elif not _MATRIX.match(key):
            result[key] = value
    if lost := [name for name in layers if f"{name}.weight" not in result]:
        raise CheckpointError(f"there are LoRA matrices, but no {lost[0]}.original.weight for them")
    return result


def _take(name: str, state: Mapping[str, Tensor]) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{name} is missing: these LoRA matrices are incomplete")
    return state[name]


def merge_model(
    source: SATCheckpoint,
    folder: str | os.PathLike[str],
    *,
    size: int = 1,
    dtype: torch.dtype | None = None,
    step: str | None = None,
) -> Path:
    """Write a checkpoint of any model-parallel size as one of `size` parts.

    Args:
        source: as `find_checkpoint` gives it.
        folder: SAT folder to write.
        size: parts of the result.
        dtype: of floating-point weights; None keeps the stored one.
        step: name of the step folder; None takes the source's.

    Returns:
        The step folder.

    Raises:
        CheckpointError, ConfigError: unfitting weights, a size that does not divide the model, or the source itself as
            the place to write to.
    """
    stored = source.read()
    if is_unmerged_lora(stored[0]):
        raise CheckpointError(
            f"{source.step_folder} has LoRA matrices beside its weights; scripts/merge_lora.py merges both at once"
        )
    return _rewrite(source, stored, folder, size=size, dtype=dtype, step=step)


def merge_lora_checkpoint(
    source: SATCheckpoint,
    folder: str | os.PathLike[str],
    *,
    adapter: Adapter | None = None,
    alpha: float | None = None,
    size: int = 1,
    dtype: torch.dtype | None = None,
    step: str | None = None,
) -> Path:
    """Write a checkpoint with LoRA merged into its weights.

    Args:
        source: the base model of `adapter`, or, without one, weights with the matrices beside them.
        adapter: as `read_adapter` gives it; weights that it holds in full take the place of the base's.
        alpha: of matrices in `source`; None takes the settings in its config, else 1 as in the originals.
        folder, size, dtype, step: as in `merge_model`, but the step is the adapter's `extra["step"]` where it has one.

    Raises:
        CheckpointError: no LoRA there, a p-tuning prefix (it is no weight), or as `merge_model`.
    """
    stored = source.read()
    if adapter is None:
        if not is_unmerged_lora(stored[0]):
            raise CheckpointError(f"{source.step_folder} has no LoRA matrices: there is nothing to merge")
        settings = source.config.get(LORA_CONFIG_KEY) or {}
        alpha = alpha if alpha is not None else float(settings.get("alpha", 1.0))
        return _rewrite(source, stored, folder, size=size, dtype=dtype, step=step, alpha=alpha)
    if is_unmerged_lora(stored[0]):
        raise CheckpointError(f"{source.step_folder} has LoRA matrices of its own; an adapter goes onto plain weights")
    if adapter.prefix_length:
        raise CheckpointError(
            "the adapter holds a p-tuning prefix, which is no weight and cannot be merged; use it as it is, beside its "
            "base model"
        )
    alpha = adapter.lora.alpha if adapter.lora else 1.0
    step = step or (str(adapter.extra["step"]) if "step" in adapter.extra else None)
    return _rewrite(source, stored, folder, size=size, dtype=dtype, step=step, alpha=alpha, added=adapter.tensors)


def _rewrite(
    source: SATCheckpoint,
    stored: list[dict[str, Tensor]],
    folder: str | os.PathLike[str],
    *,
    size: int,
    dtype: torch.dtype | None,
    step: str | None,
    alpha: float = 1.0,
    added: Mapping[str, Tensor] | None = None,
) -> Path:
    if runtime.world_size() > 1:
        raise ConfigError("merging is the work of one process, which reads all parts: start it without torchrun")
    folder = Path(folder).expanduser()
    step = step or (name if re.fullmatch(r"\d+|release", name := source.step_folder.name) else "1")
    if (folder / step).resolve() == source.step_folder.resolve():
        raise ConfigError(f"{folder / step} is what is read; name another folder to write to")
    config = make_config(source.config)
    config.check_model_parallel(size)
    runtime.init_model_parallel(1)
    merger = _Merger(stored, build_model(config), source, added or {}, alpha)
    logger.info("%s: %d part(s) to %d, into %s", source.step_folder, len(stored), size, folder / step)
    written = {k: v for k, v in source.config.items() if k != LORA_CONFIG_KEY} | {"model_parallel_size": size}
    tokenizers = (place / "tokenizer.model" for place in (source.step_folder, source.folder))
    return write_parts(
        merger.parts(size, dtype),
        folder,
        written,
        step=step,
        tokenizer_file=next((file for file in tokenizers if file.is_file()), None),
    )


class _Merger:
    """Reads stored parts and gives those of another size, LoRA merged."""

    def __init__(
        self,
        stored: list[dict[str, Tensor]],
        model: nn.Module,
        source: SATCheckpoint,
        added: Mapping[str, Tensor],
        alpha: float,
    ) -> None:
        self.stored, self.rules, self.added, self.alpha = stored, split_rules(model), added, alpha
        self.low_rank = _low_rank_layers([*stored[0], *added])
        self.stored_as = {_plain(key): key for key in stored[0] if not _MATRIX.match(key)}
        self._check(source, model)

    def parts(self, size: int, dtype: torch.dtype | None) -> Iterator[dict[str, Tensor]]:
        """Weights of rank 0, 1, … of `size`."""
        with tqdm(total=size * len(self.stored_as), unit="weight", desc="merging", disable=None) as progress:
            for rank in range(size):
                part = {}
                for name in self.stored_as:
                    value = self._part(name, rank, size)
                    part[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
                    progress.update()
                yield part
                del part

    def _part(self, name: str, rank: int, size: int) -> Tensor:
        rule, kind = self.rules[name], self.stored[0][self.stored_as[name]].dtype
        if name in self.added:
            return slice_for_rank(self.added[name], rule, rank, size).to(kind)
        parts = [part[self.stored_as[name]] for part in self.stored]
        base, _, last = name.rpartition(".")
        if last != "weight" or base not in self.low_rank:
            return read_shard(parts, rule, rank, size)
        if not self.low_rank[base].dora and f"{base}.matrix_A.0" not in self.added:
            # Part by part: the originals' row-parallel B is another one on each rank.
            return read_shard([self._local(base, r) for r in range(len(parts))], rule, rank, size, dtype=kind)
        merged = self.low_rank[base].merged(base, merge(parts, rule), self._fetch, rule, self.alpha)
        return slice_for_rank(merged, rule, rank, size).to(kind)

    def _local(self, base: str, rank: int) -> Tensor:
        """The weight of one stored part with that part's matrices, fp32."""
        part = self.stored[rank]
        weight = part[self.stored_as[f"{base}.weight"]]
        return self.low_rank[base].merged(base, weight, lambda key, _: _take(key, part), REPLICATED, self.alpha)

    def _fetch(self, name: str, rule: SplitRule) -> Tensor:
        if name in self.added:
            return self.added[name]
        return merge([_take(name, part) for part in self.stored], rule)

    def _check(self, source: SATCheckpoint, model: nn.Module) -> None:
        """Raise CheckpointError where names or shapes are not those of the config's model."""
        if any(name.startswith(PREFIX_START) for name in self.stored_as):
            raise CheckpointError(f"{source.step_folder} holds a p-tuning prefix, which cannot be merged into weights")
        plain = [{name: part[key] for name, key in self.stored_as.items() if key in part} for part in self.stored]
        targets = model.state_dict()
        optional = {key for key, _, _ in computable_buffers(model)}
        check_fit(source, plain, targets, self.rules, 1, optional=optional)
        full = {name: value for name, value in self.added.items() if not _MATRIX.match(name)}
        wrong = [name for name, value in full.items() if name not in targets or targets[name].shape != value.shape]
        wrong += [name for name in self.low_rank if f"{name}.weight" not in targets]
        if wrong:
            raise CheckpointError(
                f"the adapter or the LoRA matrices are not for the model in {source.step_folder}: {len(wrong)} name(s) "
                f"or shapes do not fit, such as {', '.join(sorted(wrong)[:4])}"
            )


def _plain(key: str) -> str:
    match = _ORIGINAL.match(key)
    return f"{match[1]}.{match[2]}" if match else key
