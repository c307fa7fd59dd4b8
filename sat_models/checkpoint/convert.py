"""Between SAT folders and Hugging Face folders, weight by weight on the CPU; and the proof that nothing was lost."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sat_models import runtime
from sat_models.checkpoint.adapter import Adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.hf_writer import save_hf, write_hf
from sat_models.checkpoint.io import write_parts
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.quantise import Quantiser
from sat_models.checkpoint.reshard import StoredWeights
from sat_models.checkpoint.source import EMBEDDING, Opened, check_room, open_whole
from sat_models.checkpoint.verify import same_logits
from sat_models.errors import ConfigError
from sat_models.models.build import computable_buffers, compute_buffer, make_config
from sat_models.models.common.quantisation import QUANTISATION_KEY, Quantisation

logger = logging.getLogger(__name__)

__all__ = ["FORMS", "convert", "save_hf"]

FORMS = ("sat", "hf")


def convert(
    source: str | os.PathLike[str],
    to: str,
    folder: str | os.PathLike[str],
    *,
    size: int = 1,
    dtype: torch.dtype | None = None,
    adapter: Adapter | None = None,
    quantisation: Quantisation | None = None,
    verify: bool = False,
) -> Path:
    """Write the weights at `source` in another form, size or dtype. The work of one process.

    LoRA matrices that lie beside the weights, as the original scripts save them, are merged.

    Args:
        source: whatever `find_checkpoint` takes.
        to: "sat" or "hf".
        folder: what is written; a Hugging Face folder must not exist yet, a SAT folder gains a step.
        size: model-parallel parts of a SAT folder.
        dtype: of floating-point weights; None keeps the stored ones.
        adapter: LoRA to merge.
        quantisation: of the linears, for SAT folders.
        verify: load both and compare their logits for a small made input, which must be equal bit for bit, before what
            was written gets its name.

    Returns:
        The step folder ("sat") or the folder ("hf").

    Raises:
        CheckpointError: names or shapes that do not fit, no room, a write that failed, or logits that differ.
        ConfigError: a model without a Hugging Face form, or a size that does not divide it.
    """
    if to not in FORMS:
        raise ConfigError(f"'{to}' is no form of a checkpoint; allowed: {', '.join(FORMS)}")
    if to == "hf" and size != 1:
        raise ConfigError("a Hugging Face folder is not divided over ranks; leave --mp out (loading divides it)")
    if to == "hf" and quantisation is not None:
        raise ConfigError("quantised weights are written as SAT folders: --to sat")
    if runtime.world_size() > 1:
        raise ConfigError("converting is the work of one process: start it without torchrun")
    checkpoint = find_checkpoint(source)
    opened = open_whole(checkpoint, adapter)
    check = None
    if verify:
        check = functools.partial(same_logits, checkpoint, adapter=adapter, quantisation=quantisation)
    if to == "hf":
        return write_hf(opened, folder, dtype=dtype, check=check)
    return _write_sat(opened, checkpoint, Path(folder).expanduser(), size, dtype, quantisation, check)


def _write_sat(
    opened: Opened,
    checkpoint: SATCheckpoint,
    folder: Path,
    size: int,
    dtype: torch.dtype | None,
    quantisation: Quantisation | None,
    check: Callable[[SATCheckpoint], None] | None,
) -> Path:
    name = checkpoint.step_folder.name
    step = name if re.fullmatch(r"\d+|release", name) else "1"
    if (folder / step).resolve() == checkpoint.step_folder.resolve():
        raise ConfigError(f"{folder / step} is what is read; name another folder to write to")
    make_config(checkpoint.config).check_model_parallel(size)
    quantiser, config = None, {**opened.config, "model_parallel_size": size}
    if quantisation is not None:
        if QUANTISATION_KEY in config:
            raise ConfigError(f"{checkpoint.step_folder} is quantised already; quantise those in full precision")
        quantiser = Quantiser(opened.model, quantisation, size)
        config[QUANTISATION_KEY] = quantisation.to_dict()
    tables = _missing_tables(opened)
    sizes = opened.bytes_of(dtype, opened.weights.names)
    if quantiser:
        sizes = {name: quantiser.bytes_of(name) if name in quantiser else value for name, value in sizes.items()}
    copies = {name: 1 if opened.weights.rules[name].dim is not None else size for name in sizes}
    check_room(folder, sum(value * copies[name] for name, value in sizes.items()))
    parts = _ranks(opened.weights, tables, size, dtype, quantiser)
    return write_parts(parts, folder, config, step=step, tokenizer_file=opened.tokenizer_file, check=check)


def _missing_tables(opened: Opened) -> dict[str, Tensor]:
    """Tables that SAT's files have, computed where these files leave them out."""
    expected, names = opened.model.state_dict(), set(opened.weights.names)
    kind = opened.weights.kind(EMBEDDING)
    return {
        key: compute_buffer(module, name, device="cpu", dtype=kind)
        for key, module, name in computable_buffers(opened.model)
        if key in expected and key not in names
    }


def _ranks(
    weights: StoredWeights,
    tables: Mapping[str, Tensor],
    size: int,
    dtype: torch.dtype | None,
    quantiser: Quantiser | None,
) -> Iterator[dict[str, Tensor]]:
    with tqdm(total=size * len(weights.names), unit="weight", desc="writing", disable=None) as progress:
        for rank in range(size):
            part = {name: value if dtype is None else value.to(dtype) for name, value in tables.items()}
            for name in weights.names:
                of_rank = functools.partial(weights.part, name, size=size, dtype=dtype)
                if quantiser and name in quantiser:
                    part |= quantiser.tensors(name, of_rank, rank, size)
                else:
                    part[name] = of_rank(rank).read()
                weights.done(name)
                progress.update()
            yield part
            del part
