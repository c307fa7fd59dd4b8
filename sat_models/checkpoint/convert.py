"""One way to write a checkpoint anew: in SAT's layout or Hugging Face's, in another model-parallel size or dtype, with
LoRA merged, with linears quantised; weight by weight on the CPU, with the proof that nothing was lost."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from sat_models import runtime
from sat_models.checkpoint.adapter import Adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.hf_writer import HFPlan, save_hf
from sat_models.checkpoint.io import write_parts
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.output import check_output, check_room, new_folder
from sat_models.checkpoint.quantise import Quantiser
from sat_models.checkpoint.reshard import StoredWeights
from sat_models.checkpoint.source import Opened, Source, open_source
from sat_models.checkpoint.verify import same_logits
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import computable_buffers, compute_buffer
from sat_models.models.common.quantisation import QUANTISATION_KEY, Quantisation

logger = logging.getLogger(__name__)

__all__ = ["FORMS", "convert", "save_hf"]

FORMS = ("sat", "hf")
LAYOUTS = ("transformers", "original")
"""Of Hugging Face folders."""


def convert(
    source: SATCheckpoint | str | os.PathLike[str],
    to: str,
    folder: str | os.PathLike[str],
    *,
    size: int = 1,
    dtype: torch.dtype | None = None,
    adapter: Adapter | None = None,
    alpha: float | None = None,
    quantisation: Quantisation | None = None,
    step: str | None = None,
    layout: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the weights at `source` in another form, size or dtype. The work of one process.

    LoRA matrices that lie beside the weights, as the original scripts save them, are merged. What is held in memory is
    one part of the result.

    Args:
        source: whatever `find_checkpoint` takes, or what it gave.
        to: "sat" or "hf".
        folder: what is written; it must not be there yet, or be empty.
        size: model-parallel parts of a SAT folder.
        dtype: of floating-point weights; None keeps the stored ones.
        adapter: LoRA to merge; weights that it holds in full take the place of the source's, its prompt style becomes
            that of the result, and a tokenizer in its run's folder goes before the source's.
        alpha: of matrices that lie beside the weights; None takes their config's, else 1 as in the originals.
        quantisation: of the linears, for SAT folders.
        step: name of the step folder; None takes the adapter's step, else the source's.
        layout: of an "hf" folder: "transformers", "original" (the release's), or None: transformers' where it has one.
        verify: load both and compare their logits for a small made-up input, which must be equal bit for bit, before
            what was written gets its name.
        overwrite: a folder that this function wrote may give way, as a whole.

    Returns:
        The step folder ("sat") or the folder ("hf").

    Raises:
        CheckpointError: names or shapes that do not fit, a p-tuning prefix (it is no weight), a folder that may not be
            written, no room, a write that failed, or logits that differ.
        ConfigError: a model without a Hugging Face form, or a size that does not divide it.
    """
    folder = Path(folder).expanduser().resolve()
    _check_asked(to, size, alpha, quantisation, layout)
    opened_source = open_source(source, adapter=adapter, alpha=alpha, size=size)
    check_output(folder, overwrite=overwrite, read=opened_source.files())
    _check_source(opened_source, quantisation)
    runtime.init_model_parallel(1)
    opened, name = opened_source.open(), "" if to == "hf" else step or _step_of(opened_source)
    hub = functools.partial(HFPlan, opened, dtype, name=folder.name, layout=layout)
    plan = hub() if to == "hf" else _SATPlan(opened, name, size, dtype, quantisation)
    check_room(folder, plan.bytes())
    with new_folder(folder, last=plan.last) as staging:
        plan.write(staging)
        if verify:
            same_logits(replace(opened_source, quantisation=quantisation), open_source(find_checkpoint(staging)))
    logger.info("wrote %s", folder / name)
    return folder / name


def _check_asked(
    to: str, size: int, alpha: float | None, quantisation: Quantisation | None, layout: str | None
) -> None:
    if to not in FORMS:
        raise ConfigError(f"'{to}' is no form of a checkpoint; allowed: {', '.join(FORMS)}")
    if layout is not None and (layout not in LAYOUTS or to != "hf"):
        raise ConfigError(f"layout is '{layout}' for '{to}'; allowed: {', '.join(LAYOUTS)}, for 'hf'")
    if size < 1:
        raise ConfigError(f"the model-parallel size is {size}; it must be at least 1")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"LoRA's alpha is {alpha}; it must be above 0")
    if to == "hf" and size != 1:
        raise ConfigError("a Hugging Face folder is not divided over ranks; leave --mp out (loading divides it)")
    if to == "hf" and quantisation is not None:
        raise ConfigError("quantised weights are written as SAT folders: --to sat")
    if runtime.world_size() > 1:
        raise ConfigError("converting and merging are the work of one process: start it without torchrun")


def _check_source(source: Source, quantisation: Quantisation | None) -> None:
    if not source.config.SAT_FORM:
        raise ConfigError(f"{source.config.model_class} is kept in diffusers' form only; there is nothing to convert")
    if quantisation is not None and Quantisation.of(source.config):
        raise ConfigError(f"{source.checkpoint.step_folder} is quantised already; quantise those in full precision")
    if source.adapter is not None and source.adapter.prefix_length:
        raise CheckpointError(
            "the adapter holds a p-tuning prefix, which is no weight and cannot be merged; use it as it is, beside its "
            "base model"
        )


def _step_of(source: Source) -> str:
    if source.adapter is not None and "step" in source.adapter.extra:
        return str(source.adapter.extra["step"])
    name = source.checkpoint.step_folder.name
    return name if re.fullmatch(r"\d+|release", name) else "1"


@dataclass
class _SATPlan:
    """A SAT folder to be written.

    Attributes:
        step: name of the step folder.
        size: parts.
    """

    opened: Opened
    step: str
    size: int
    dtype: torch.dtype | None
    quantisation: Quantisation | None

    last: ClassVar[str] = CONFIG_FILE
    """The file without which it is no checkpoint."""

    def __post_init__(self) -> None:
        self._tables = _missing_tables(self.opened)
        self._quantiser = None
        if self.quantisation is not None:
            self._quantiser = Quantiser(self.opened.model, self.quantisation, self.size)

    def bytes(self) -> int:
        """On disk, about."""
        sizes = self.opened.bytes_of(self.dtype, self.opened.weights.names)
        if quantiser := self._quantiser:
            sizes = {name: quantiser.bytes_of(name) if name in quantiser else value for name, value in sizes.items()}
        rules = self.opened.weights.rules
        own = sum(value * (self.size if rules[name].whole_at(self.size) else 1) for name, value in sizes.items())
        return own + (self.opened.others.bytes() if self.opened.others is not None else 0)

    def write(self, folder: Path) -> None:
        """Write it into an empty folder."""
        config = {**self.opened.config, "model_parallel_size": self.size}
        if self.quantisation is not None:
            config[QUANTISATION_KEY] = self.quantisation.to_dict()
        write_parts(self._ranks(), folder, config, step=self.step, tokenizer_file=self.opened.tokenizer_file)
        if self.opened.others is not None:
            self.opened.others.write_sat(folder)

    def _ranks(self) -> Iterator[dict[str, Tensor]]:
        weights = self.opened.weights
        with tqdm(total=self.size * len(weights.names), unit="weight", desc="writing", disable=None) as progress:
            for rank in range(self.size):
                part = {name: value if not self.dtype else value.to(self.dtype) for name, value in self._tables.items()}
                for name in weights.names:
                    part |= self._part(weights, name, rank)
                    weights.done(name)
                    progress.update()
                yield part
                del part

    def _part(self, weights: StoredWeights, name: str, rank: int) -> Mapping[str, Tensor]:
        of_rank = functools.partial(weights.part, name, size=self.size, dtype=self.dtype)
        if self._quantiser and name in self._quantiser:
            return self._quantiser.tensors(name, of_rank, rank, self.size)
        return {name: of_rank(rank).read()}


def _missing_tables(opened: Opened) -> dict[str, Tensor]:
    """Tables that SAT's files have, computed where these files leave them out."""
    expected, names = opened.model.state_dict(), set(opened.weights.names)
    return {
        key: compute_buffer(module, name, device="cpu", dtype=opened.main_dtype)
        for key, module, name in computable_buffers(opened.model)
        if key in expected and key not in names
    }
