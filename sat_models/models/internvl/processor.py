"""InternVL's processor as transformers has it (`InternVLProcessor`, `GotOcr2ImageProcessor`)."""

from __future__ import annotations

from sat_models.errors import ConfigError
from sat_models.models.common.hf_processor import HFProcessor
from sat_models.models.internvl.config import InternVLConfig
from sat_models.models.internvl.sizes import IMAGE_TOKEN


def hf_processor(config: InternVLConfig, tokens: int) -> HFProcessor:
    """The processor of a model. All its tokens are in the tokenizer's files.

    Raises:
        ConfigError: images that are cut without an overview, or padded, which that processor cannot say.
    """
    tiled = config.dynamic_images and config.most_tiles > 1
    if (tiled and not config.overview) or (config.square_padding and not config.dynamic_images):
        what = "cuts images without an overview" if tiled else "pads images to squares"
        raise ConfigError(
            f"this InternVL {what}, and transformers' processor always adds one and never pads, so that it would see "
            "other images; write the layout 'original' (--layout original)"
        )
    side, images = config.image_size, config.images.processing
    return HFProcessor(
        config=config,
        image=IMAGE_TOKEN,
        processor={"processor_class": "InternVLProcessor", "image_seq_length": config.image_length},
        images={
            "processor_class": "InternVLProcessor",
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": tiled,
            "min_patches": config.least_tiles if tiled else 1,
            "max_patches": config.most_tiles if tiled else 1,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(images.mean),
            "image_std": list(images.std),
        },
        token_names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": IMAGE_TOKEN,
            "video_token": "<video>",
        },
    )
