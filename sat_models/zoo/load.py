"""From a name or path to a loaded model, its processor alone, or its sizes alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from mixins.base import ZooModel
from mixins.cache_form import CacheForm
from mixins.sat_compat import mpu
from sat_models import registry, runtime
from sat_models.checkpoint.adapter import find_adapter, read_adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.source import Source, open_source
from sat_models.config import LanguageConfig, ModelConfig, VisionLanguageConfig, read_json
from sat_models.errors import CheckpointError, ConfigError, InputError, ZooError, refuse_unknown
from sat_models.files import check_path
from sat_models.models.build import make_config
from sat_models.models.common.quantisation import Quantisation
from sat_models.models.families import family_of, prompt_style, prompt_styles
from sat_models.processing.processor import Processor
from sat_models.processing.tokenizer_files import find_tokenizer
from sat_models.registry import ModelSpec
from sat_models.zoo.locate import check_name, list_models, locate_with_spec, spec_of_name, spec_of_path
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

ROTARY_TABLES = ("model", "fp32")
"""How rotary angles are computed: as the weights were trained, or in fp32."""
CACHES = ("auto", *CacheForm)
"""How keys and values may be kept."""


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
    **unknown: Any,
) -> VLM:
    """Load a model. Under torchrun it is split over the processes, which all make this call.

    Args:
        name_or_path: a name of the zoo (looked up in SAT_HOME), a SAT folder, a step folder, a `.pt` file, a `.zip`, a
            Hugging Face folder or id (which is looked up in SAT_HOME, then in the hub's cache, then on the hub), or an
            adapter of `save_adapter` or of PEFT, merged into the base model that it names. LoRA matrices beside the
            weights, as the original scripts save them, are merged, too.
        device: "auto" is this process's GPU where there is one, else the CPU.
        dtype: "auto": fp32 on the CPU, bf16 on a GPU that has it, else fp16.
        local_tokenizer: sentencepiece file, its folder, or a Hugging Face repository; None looks beside the weights.
        quant: 8 or 4 bits per weight of the linears (language, experts, vision), quantised one by one while loading;
            None takes the weights as they are stored, quantised or not.
        quant_skip: shell patterns of linears to leave in `dtype`, besides the output projection.
        quant_head: decode on a CPU with an output projection of 8 bits (a copy; prompts and files keep the full one).
            None: where the linears are quantised; True refuses a model whose linears are not.
        cache: keys and values of decoding: as computed ("model"), in "bf16", or "int8" with a scale for each vector.
            "auto" is "int8" where quantised linears are multiplied on a CPU, else "model".
        rotary_table: of angles: "model" in `dtype`, as the weights were trained; "fp32", see docs/numerics.md.
        version: prompt style; None takes the checkpoint's, else the model's usual one, else "base".

    Raises:
        UnknownNameError: neither a path nor a name, with near matches.
        CheckpointError: absent, damaged or unfitting files.
        ConfigError: a bad config or argument, or a number of processes that the model cannot be split over.
        InputError: an unusable `local_tokenizer`, no name or path, or an argument of another name.
        MissingPackageError: quantised weights without bitsandbytes.
        All of them: on all processes, wherever it failed.
    """
    _check_asked(name_or_path, rotary_table, cache, version, unknown)
    device = torch.device(runtime.choose_device(device))
    dtype = runtime.choose_dtype(dtype, device)
    asked = Quantisation.asked(quant, quant_skip)
    runtime.init_distributed(device)
    size = _model_parallel_size()
    source, spec = runtime.in_step(lambda: _open(name_or_path, size, asked))
    checkpoint, config = source.checkpoint, source.config
    _check_opened(config, checkpoint, quant_head, asked)
    runtime.init_model_parallel(size)
    processor, file = runtime.in_step(
        lambda: _make_processor(checkpoint, config, local_tokenizer, _choose_version(version, config, spec))
    )
    model, config = runtime.in_step(lambda: source.load(device, dtype))
    _prepare(model, Quantisation.of(config), rotary_table, quant_head, cache)
    logger.info("loaded %s on %s, split over %d process(es)", checkpoint.step_folder, device, size)
    return VLM(model, processor, config, device=device, dtype=dtype, checkpoint=checkpoint, tokenizer_file=file)


def _check_asked(
    name_or_path: object, rotary_table: str, cache: str, version: str | None, unknown: Collection[str]
) -> None:
    refuse_unknown(unknown, load_pretrained)
    check_name(name_or_path)
    if cache not in CACHES:
        raise ConfigError(f"cache is {cache!r}; allowed: {', '.join(CACHES)}")
    if rotary_table not in ROTARY_TABLES:
        raise ConfigError(f"rotary_table is {rotary_table!r}; allowed: {', '.join(ROTARY_TABLES)}")
    if version is not None:
        prompt_style(version)


def _check_opened(
    config: ModelConfig, checkpoint: SATCheckpoint, quant_head: bool | None, asked: Quantisation | None
) -> None:
    """Before any weight is read. Raises ConfigError."""
    _check_task(config, checkpoint)
    if quant_head and asked is None and Quantisation.of(config) is None:
        raise ConfigError("quant_head is for models whose linears are quantised; say quant 8 or 4 (--quant), too")


def _prepare(
    model: ZooModel, bits: Quantisation | None, rotary_table: str, quant_head: bool | None, cache: str
) -> None:
    """For answers, and as the caller asked."""
    if rotary_table == "fp32":
        model.get_mixin(model.rotary_name).rotary_emb.table_dtype = torch.float32
    model.quantised_head = bits is not None and quant_head is not False
    model.cache_form = None if cache == "auto" else CacheForm(cache)
    model.eval().requires_grad_(False)
    kind = next(model.parameters()).dtype
    logger.info("weights in %s", f"{kind}, linears of {bits.bits} bits" if bits else kind)


def _open(
    name_or_path: str | os.PathLike[str], size: int, asked: Quantisation | None
) -> tuple[Source, ModelSpec | None]:
    """A model before its weights are read."""
    check_path(name_or_path)
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
    _check_task(config, checkpoint)
    return _make_processor(checkpoint, config, local_tokenizer, _choose_version(version, config, spec))[0]


def load_config(name_or_path: str | os.PathLike[str]) -> LanguageConfig:
    """The sizes of a model; as with `load_processor`, its weights need not be there."""
    return make_config(_without_weights(name_or_path)[0].config)


def _without_weights(name_or_path: str | os.PathLike[str]) -> tuple[SATCheckpoint, ModelSpec | None]:
    """A checkpoint whose config may be read; its weights may be absent."""
    check_name(name_or_path)
    check_path(name_or_path)
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


def _check_task(config: ModelConfig, checkpoint: SATCheckpoint) -> None:
    """Raise ConfigError for a model that does not talk."""
    if config.TASK != "dialogue":
        raise ConfigError(
            f"{checkpoint.folder} holds a {config.model_class}, which is for {config.TASK}; only models that talk can "
            f"be loaded: {', '.join(list_models(task='dialogue'))}"
        )


def _choose_version(explicit: str | None, config: LanguageConfig, spec: ModelSpec | None) -> str:
    """The user's choice, else the checkpoint's, else the model's usual one, else that of its class."""
    stored = config.text_processor_version
    if explicit is not None:
        if stored is not None and stored != explicit:
            logger.warning(
                "version '%s' was asked for, but this checkpoint was trained with '%s' (text_processor_version in %s); "
                "answers may be poor", explicit, stored, CONFIG_FILE,
            )  # fmt: skip
        return explicit
    return stored or (spec.default_version if spec else config.DEFAULT_VERSION)


def _make_processor(
    checkpoint: SATCheckpoint, config: LanguageConfig, local_tokenizer: str | os.PathLike[str] | None, version: str
) -> tuple[Processor, Path | None]:
    if not isinstance(config, VisionLanguageConfig):
        raise ConfigError(
            f"{config.model_class} is a language model alone, and answers are given by models that see images. Its "
            "weights can be converted (scripts/convert_checkpoint.py); to ask, name a model of the zoo, such as "
            "cogvlm-tiny."
        )
    file = _tokenizer_file(checkpoint, config, local_tokenizer)
    family = family_of(config.model_class)
    tokenizer = family.tokenizer(config, file) if file else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer {file} has {tokenizer.vocab_size} pieces, but the model's vocabulary is "
            f"{config.vocab_size}: it belongs to another model. Name the right one with local_tokenizer "
            "(--local_tokenizer)."
        )
    processor = Processor(
        tokenizer,
        images=config.images,
        cross_image_size=getattr(config, "cross_image_pix", None),
        max_length=config.max_sequence_length,
        styles={**prompt_styles(), **family.own_names},
        version=version,
        form=config.sequence_form,
        system=config.system_message,
    )
    return processor, file


def _tokenizer_file(
    checkpoint: SATCheckpoint, config: LanguageConfig, local_tokenizer: str | os.PathLike[str] | None
) -> Path | None:
    """None where nothing is found: logits need no tokenizer, and asking for text names the flag."""
    vocabulary, repository = config.RELEASED_TOKENIZER
    released = "tokenizer_type" in checkpoint.config and config.vocab_size == vocabulary
    default = repository if released else None
    try:
        return find_tokenizer(checkpoint.step_folder, local_tokenizer, default=default, names=config.TOKENIZER_FILES)
    except InputError as error:
        if local_tokenizer:
            raise
        logger.warning("no tokenizer: %s", error)
        return None
