"""Checkpoint to checkpoint on the CPU, without a model in memory: other model-parallel sizes, LoRA into the weights.

The split rules come from a model of the same config on meta. Weights are read through memory maps, one at a time; what
is held in memory is one part of the result.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sat_models import runtime
from sat_models.checkpoint.adapter import Adapter
from sat_models.checkpoint.io import write_parts
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.merged import LORA_CONFIG_KEY, MergedWeights, alpha_beside, is_unmerged_lora
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import build_model, make_config

logger = logging.getLogger(__name__)


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
        adapter: as `read_adapter` gives it; weights that it holds in full take the place of the base's. Its
            `extra["version"]`, where it has one, becomes the prompt style of the result; a tokenizer in its run's
            folder goes before the base's.
        alpha: of matrices in `source`; None takes the settings in its config, else 1 as in the originals.
        folder, size, dtype, step: as in `merge_model`, but the step is the adapter's `extra["step"]` where it has one.

    Raises:
        CheckpointError: no LoRA there, a p-tuning prefix (it is no weight), or as `merge_model`.
    """
    stored = source.read()
    if adapter is None:
        if not is_unmerged_lora(stored[0]):
            raise CheckpointError(f"{source.step_folder} has no LoRA matrices: there is nothing to merge")
        alpha = alpha if alpha is not None else alpha_beside(source)
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
    return _rewrite(
        source, stored, folder, size=size, dtype=dtype, step=step, alpha=alpha, added=adapter.tensors,
        version=adapter.extra.get("version"), run=adapter.file.parent.parent if adapter.file else None,
    )  # fmt: skip


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
    version: str | None = None,
    run: Path | None = None,
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
    weights = MergedWeights(stored, build_model(config), source, added or {}, alpha)
    logger.info("%s: %d part(s) to %d, into %s", source.step_folder, len(stored), size, folder / step)
    written = {k: v for k, v in source.config.items() if k != LORA_CONFIG_KEY} | {"model_parallel_size": size}
    if version is not None:
        written["text_processor_version"] = version
    places = [*([run] if run else []), source.step_folder, source.folder]
    tokenizers = (place / name for place in places for name in config.TOKENIZER_FILES)
    return write_parts(
        _ranks(weights, size, dtype),
        folder,
        written,
        step=step,
        tokenizer_file=next((file for file in tokenizers if file.is_file()), None),
    )


def _ranks(weights: MergedWeights, size: int, dtype: torch.dtype | None) -> Iterator[dict[str, Tensor]]:
    """Weights of rank 0, 1, … of `size`."""
    with tqdm(total=size * len(weights.names), unit="weight", desc="merging", disable=None) as progress:
        for rank in range(size):
            part = {}
            for name in weights.names:
                part[name] = weights.part(name, rank, size, dtype=dtype).read()
                weights.done(name)
                progress.update()
            yield part
            del part
