"""LLaVA's processor as transformers has it (`LlavaProcessor`, `LlavaImageProcessor`)."""

from __future__ import annotations

from dataclasses import replace

from sat_models.models.common.hf_processor import HFProcessor
from sat_models.models.llava.config import LLaVAConfig

IMAGE = "<image>"
_ROWS = 64
"""To a multiple of which a vocabulary grows, as that of `llava-hf/llava-1.5-7b-hf` did (32000 to 32064)."""


def hf_processor(config: LLaVAConfig, tokens: int) -> HFProcessor:
    """The processor of a model.

    Args:
        tokens: of the tokenizer. The token of images must be none that a text can hold: where the config's is one, it
            becomes the first behind them, and the vocabulary grows if it has no row for it.
    """
    slot = config.image_token_id if config.image_token_id >= tokens else tokens
    rows = config.vocab_size if slot < config.vocab_size else -(-(slot + 1) // _ROWS) * _ROWS
    between = {f"<unused_{number}>": number for number in range(tokens, slot)}
    side, images = config.image_size, config.images.processing
    return HFProcessor(
        config=replace(config, image_token_id=slot, vocab_size=rows),
        image=IMAGE,
        processor={
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": config.eva_args.patch_size,
            "vision_feature_select_strategy": "default",
        },
        images={
            "processor_class": "LlavaProcessor",
            "image_processor_type": "LlavaImageProcessor",
            "do_convert_rgb": True,
            "do_pad": config.square_padding,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(images.mean),
            "image_std": list(images.std),
        },
        added={**between, IMAGE: slot},
    )
