"""Typed model configs, read from and written to SAT's `model_config.json`.

Sizes come from here and nowhere else. Keys that are not ours are kept and written back, so that nothing of a released
config is lost.
"""

from sat_models.config.base import read_json
from sat_models.config.cogvlm import CogAgentConfig, CogVLMConfig
from sat_models.config.language import LanguageConfig, LLaMAConfig, PictureConfig
from sat_models.config.llava import LLaVAConfig
from sat_models.config.minigpt4 import MiniGPT4Config
from sat_models.config.sequence import COGVLM_FORM, PLAIN_FORM, SequenceForm
from sat_models.config.towers import CLIPTowerConfig, CrossTowerConfig, EVAViTConfig, QFormerConfig, VisionTowerConfig
from sat_models.config.visualglm import ChatGLMConfig, VisualGLMConfig

__all__ = [
    "COGVLM_FORM",
    "PLAIN_FORM",
    "CLIPTowerConfig",
    "ChatGLMConfig",
    "CogAgentConfig",
    "CogVLMConfig",
    "CrossTowerConfig",
    "EVAViTConfig",
    "LLaMAConfig",
    "LLaVAConfig",
    "LanguageConfig",
    "MiniGPT4Config",
    "PictureConfig",
    "QFormerConfig",
    "SequenceForm",
    "VisionTowerConfig",
    "VisualGLMConfig",
    "read_json",
]
