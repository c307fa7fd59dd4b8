"""A model that talks from an opened checkpoint: its processor, its weights, how it decodes."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from mixins.base import ZooModel
from mixins.cache_form import CacheForm
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.source import Source
from sat_models.config import LanguageConfig, ModelConfig, VisionLanguageConfig
from sat_models.errors import ConfigError, InputError
from sat_models.model_spec import ModelSpec
from sat_models.models.common.quantisation import Quantisation
from sat_models.models.families import family_of, prompt_style, prompt_styles
from sat_models.processing.processor import Processor
from sat_models.processing.tokenizer_files import find_tokenizer
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

ROTARY_TABLES = ("model", "fp32")
"""How rotary angles are computed: as the weights were trained, or in fp32."""
CACHES = ("auto", *CacheForm)
"""How keys and values may be kept."""


@dataclass(frozen=True, kw_only=True)
class ForText:
    """What `load_pretrained` takes for models that talk alone.

    Attributes:
        local_tokenizer: sentencepiece file, its folder, or a Hugging Face repository; None looks beside the weights.
        version: prompt style; None takes the checkpoint's, else the model's usual one, else "base".
        quant_head: decode on a CPU with an output projection of 8 bits (a copy; prompts and files keep the full one).
            None: where the linears are quantised; True refuses a model whose linears are not.
        rotary_table: of angles: "model" in `dtype`, as the weights were trained; "fp32", see docs/numerics.md.
        cache: keys and values of decoding: as computed ("model"), in "bf16", or "int8" with a scale for each vector.
            "auto" is "int8" where quantised linears are multiplied on a CPU, else "model".

    Raises:
        ConfigError: a value that is not allowed.
        UnknownNameError: no such prompt style.
    """

    local_tokenizer: str | os.PathLike[str] | None = None
    version: str | None = None
    quant_head: bool | None = None
    rotary_table: str = "model"
    cache: str = "auto"

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ConfigError(f"cache is {self.cache!r}; allowed: {', '.join(CACHES)}")
        if self.rotary_table not in ROTARY_TABLES:
            raise ConfigError(f"rotary_table is {self.rotary_table!r}; allowed: {', '.join(ROTARY_TABLES)}")
        if self.version is not None:
            prompt_style(self.version)

    def refuse(self) -> None:
        """Raise ConfigError if anything was asked for: the model draws."""
        if wrong := [field.name for field in fields(self) if getattr(self, field.name) != field.default]:
            them = "it" if len(wrong) == 1 else "them"
            raise ConfigError(f"a model that draws takes no {', '.join(wrong)}; leave {them} out")

    def check(self, config: ModelConfig, asked: Quantisation | None) -> None:
        """Before any weight is read. Raises ConfigError."""
        if self.quant_head and asked is None and Quantisation.of(config) is None:
            raise ConfigError("quant_head is for models whose linears are quantised; say quant 8 or 4 (--quant), too")


def open_vlm(
    source: Source, spec: ModelSpec | None, chosen: ForText, *, device: torch.device, dtype: torch.dtype
) -> VLM:
    """Load a model that talks; `chosen` has been checked. Raises as `load_pretrained`."""
    checkpoint, config = source.checkpoint, source.config
    version = choose_version(chosen.version, config, spec)
    processor, file = runtime.in_step(lambda: make_processor(checkpoint, config, chosen.local_tokenizer, version))
    model, config = runtime.in_step(lambda: source.load(device, dtype))
    _prepare(model, Quantisation.of(config), chosen.rotary_table, chosen.quant_head, chosen.cache)
    size = mpu.get_model_parallel_world_size()
    logger.info("loaded %s on %s, split over %d process(es)", checkpoint.step_folder, device, size)
    return VLM(model, processor, config, device=device, dtype=dtype, checkpoint=checkpoint, tokenizer_file=file)


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


def choose_version(explicit: str | None, config: LanguageConfig, spec: ModelSpec | None) -> str:
    """The user's choice, else the checkpoint's, else the model's usual one, else that of its class."""
    stored = config.text_processor_version
    if explicit is not None:
        if stored is not None and stored != explicit:
            logger.warning(
                "version '%s' was asked for, but this checkpoint was trained with '%s' (text_processor_version in %s); "
                "answers may be poor", explicit, stored, CONFIG_FILE,
            )  # fmt: skip
        return explicit
    return stored or (spec.default_version if spec else None) or config.DEFAULT_VERSION


def make_processor(
    checkpoint: SATCheckpoint, config: LanguageConfig, local_tokenizer: str | os.PathLike[str] | None, version: str
) -> tuple[Processor, Path | None]:
    """What makes inputs of text and images, and the tokenizer's file, if any. Raises ConfigError, InputError."""
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
