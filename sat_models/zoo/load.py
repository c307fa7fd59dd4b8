"""From a name or path to a loaded model, its processor alone, or its sizes alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixins.sat_compat import mpu
from sat_models import registry, runtime
from sat_models.checkpoint.adapter import find_adapter, read_adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.source import Source, open_source
from sat_models.config import TASKS, LanguageConfig, ModelConfig, read_json
from sat_models.errors import CheckpointError, ConfigError, UnknownNameError, ZooError, refuse_unknown
from sat_models.model_spec import ModelSpec
from sat_models.models.build import make_config
from sat_models.models.common.quantisation import Quantisation
from sat_models.processing.processor import Processor
from sat_models.zoo.animatediff import open_by_library
from sat_models.zoo.film_maker import FilmMaker
from sat_models.zoo.locate import check_name, list_models, locate_with_spec, spec_of_name, spec_of_path
from sat_models.zoo.open_painter import ForDrawing, open_painter
from sat_models.zoo.open_vlm import ForText, choose_version, make_processor, open_vlm
from sat_models.zoo.painter import Painter
from sat_models.zoo.token_painter import TokenPainter
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

_SUCH = dict(zip(TASKS, ("that talk", "that draw", "that make films"), strict=True))


def load_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    local_tokenizer: str | os.PathLike[str] | None = None,
    quant: int | None = None,
    quant_skip: Sequence[str] = (),
    quant_head: bool | None = None,
    cache: str = "auto",
    rotary_table: str = "model",
    version: str | None = None,
    keep: str | None = None,
    quant_text: int | None = None,
    relay: str | os.PathLike[str] | None = None,
    task: str | None = None,
    **unknown: Any,
) -> VLM | Painter | TokenPainter | FilmMaker:
    """Load a model: one that talks as a `VLM`, one that draws as a `Painter` or `TokenPainter`, one that makes films as
    a `FilmMaker`. Under torchrun it is split over the processes, which all make this call; errors rise on all alike.

    Args:
        name_or_path: a name of the zoo (looked up in SAT_HOME), a SAT folder, a step folder, a `.pt` file, a `.zip`, a
            Hugging Face or diffusers folder or id (looked up in SAT_HOME, then in the hub's cache, then on the hub), or
            an adapter of `save_adapter` or of PEFT, merged into the base model that it names. LoRA matrices beside the
            weights, as the original scripts save them, are merged, too.
        device, dtype: "auto": this process's GPU in bf16, or fp16 where it has no bf16; without one the CPU in fp32.
        local_tokenizer, version, quant_head, rotary_table, cache: of models that talk; see `ForText`.
        quant: 8 or 4 bits per weight of the linears, quantised one by one while loading; None: as they are stored.
        quant_skip: shell patterns of linears to leave in `dtype`, besides the output projection.
        keep, quant_text, relay: of models that draw; see `ForDrawing`.
        task: what the caller needs it for, "dialogue", "drawing" or "film"; a model for something else is refused.

    Raises:
        UnknownNameError: neither a path nor a name, with near matches.
        CheckpointError: absent, damaged or unfitting files.
        ConfigError: a bad config or argument, or more processes than the model can be split over.
        InputError: an unusable `local_tokenizer`, no name or path, or an argument of another name.
        MissingPackageError: quantised weights without bitsandbytes.
    """
    refuse_unknown(unknown, load_pretrained)
    check_name(name_or_path)
    for_drawing = ForDrawing(keep=keep, quant_text=quant_text, relay=relay)
    told = {"local_tokenizer": local_tokenizer, "version": version, "quant_head": quant_head}
    for_text = ForText(**told, rotary_table=rotary_table, cache=cache)
    device = torch.device(runtime.choose_device(device))
    dtype = runtime.choose_dtype(dtype, device)
    asked = Quantisation.asked(quant, quant_skip)
    runtime.init_distributed(device)
    if other := open_by_library(name_or_path, task, for_drawing, quant, device=device, dtype=dtype):
        return other
    size = _model_parallel_size()
    source, spec = runtime.in_step(lambda: _open(name_or_path, size, asked))
    _check_task(source.config, source.checkpoint, task)
    draws = source.config.TASK != "dialogue"
    for_text.refuse() if draws else _check_talking(source, for_text, asked, for_drawing)
    runtime.init_model_parallel(size)
    if draws:
        return open_painter(source, for_drawing, device=device, dtype=dtype)
    return open_vlm(source, spec, for_text, device=device, dtype=dtype)


def _check_talking(source: Source, chosen: ForText, asked: Quantisation | None, others: ForDrawing) -> None:
    _check_task(source.config, source.checkpoint, "dialogue")
    others.refuse()
    chosen.check(source.config, asked)


def _open(
    name_or_path: str | os.PathLike[str], size: int, asked: Quantisation | None
) -> tuple[Source, ModelSpec | None]:
    """A model before its weights are read."""
    file = find_adapter(name_or_path)
    adapter = read_adapter(file) if file else None
    try:
        path, spec = locate_with_spec(adapter.base_model if adapter else name_or_path)
    except ZooError as error:
        if adapter is None:
            raise
        message = f"the adapter {file} needs the model that it was trained on, '{adapter.base_model}': {error}"
        raise CheckpointError(message) from error
    return open_source(path, adapter=adapter, quantisation=asked, size=size), spec


def load_processor(
    name_or_path: str | os.PathLike[str],
    *,
    local_tokenizer: str | os.PathLike[str] | None = None,
    version: str | None = None,
) -> Processor:
    """The tokenizer and picture sizes of a model without its weights, to look at training data, say.

    The weights need not be there: a folder with `model_config.json` will do, and the sizes of a name of the zoo are
    known. Arguments and errors are those of `load_pretrained`.
    """
    checkpoint, spec = _without_weights(name_or_path)
    config = make_config(checkpoint.config)
    _check_task(config, checkpoint, "dialogue")
    return make_processor(checkpoint, config, local_tokenizer, choose_version(version, config, spec))[0]


def load_config(name_or_path: str | os.PathLike[str]) -> LanguageConfig:
    """The sizes of a model; as with `load_processor`, its weights need not be there."""
    return make_config(_without_weights(name_or_path)[0].config)


def _without_weights(name_or_path: str | os.PathLike[str]) -> tuple[SATCheckpoint, ModelSpec | None]:
    """A checkpoint whose config may be read; its weights may be absent."""
    check_name(name_or_path)
    given = Path(name_or_path).expanduser()
    if not (given / CONFIG_FILE).is_file() and (adapter := find_adapter(name_or_path)):
        return _without_weights(read_adapter(adapter).base_model)
    if given.is_dir() and (given / CONFIG_FILE).is_file():
        file, spec = given / CONFIG_FILE, spec_of_path(given)
    else:
        try:
            path, spec = locate_with_spec(name_or_path)
            return find_checkpoint(path), spec
        except CheckpointError:
            if given.exists():
                raise
            spec = spec_of_name(os.fspath(name_or_path), given)
            file = registry.config_path(spec.name)
    return SATCheckpoint(file.parent, (file,), read_json(file)), spec


def _model_parallel_size() -> int:
    """All processes share the model, unless the run has been divided already."""
    if mpu.model_parallel_is_initialized():
        return mpu.get_model_parallel_world_size()
    return runtime.world_size()


def _check_task(config: ModelConfig, checkpoint: SATCheckpoint, task: str | None) -> None:
    """Raise ConfigError for a model that is not for `task`, if one is named, and for a task of which there is none."""
    if task not in (None, *TASKS):
        raise UnknownNameError("task", str(task), TASKS)
    if task is not None and task != config.TASK:
        raise ConfigError(
            f"{checkpoint.folder} holds a {config.model_class}, which is for {config.TASK}; only models {_SUCH[task]} "
            f"will do here: {', '.join(list_models(task=task))}"
        )
