"""Typed model configs, read from and written to SAT's `model_config.json`.

Sizes come from here and nowhere else. Keys that are not ours are kept and written back, so that nothing of a released
config is lost.
"""

from sat_models.config.base import read_json
from sat_models.config.diffusion import (
    DiffusionConfig,
    LatentModelConfig,
    LatentTransformerConfig,
    PainterConfig,
)
from sat_models.config.film import FilmConfig
from sat_models.config.images import (
    CLIP_MEAN,
    CLIP_STD,
    ImageForm,
    ImagePlan,
    ImageProcessing,
    SquareImages,
)
from sat_models.config.language import LanguageConfig, LLaMAConfig, VisionLanguageConfig
from sat_models.config.model import TASKS, ModelConfig
from sat_models.config.qformer import QFormerConfig
from sat_models.config.sequence import COGVLM_FORM, PLAIN_FORM, SequenceForm
from sat_models.config.towers import (
    CLIPTowerConfig,
    CrossTowerConfig,
    EVAViTConfig,
    InternViTConfig,
    VisionTowerConfig,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "COGVLM_FORM",
    "PLAIN_FORM",
    "TASKS",
    "CLIPTowerConfig",
    "CrossTowerConfig",
    "DiffusionConfig",
    "EVAViTConfig",
    "FilmConfig",
    "ImageForm",
    "ImagePlan",
    "ImageProcessing",
    "InternViTConfig",
    "LLaMAConfig",
    "LanguageConfig",
    "LatentModelConfig",
    "LatentTransformerConfig",
    "ModelConfig",
    "PainterConfig",
    "QFormerConfig",
    "SequenceForm",
    "SquareImages",
    "VisionLanguageConfig",
    "VisionTowerConfig",
    "read_json",
]
