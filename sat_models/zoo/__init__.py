"""The front door: `load_pretrained` and `list_models`."""

from sat_models.zoo.load import load_config, load_pretrained, load_processor
from sat_models.zoo.locate import list_models, locate, sat_home
from sat_models.zoo.painter import Painter
from sat_models.zoo.vlm import VLM

__all__ = ["VLM", "Painter", "list_models", "load_config", "load_pretrained", "load_processor", "locate", "sat_home"]
