"""The front door: `load_pretrained` and `list_models`."""

from sat_models.generation.strict.constraint import Constraint
from sat_models.zoo.film_maker import FilmMaker
from sat_models.zoo.film_painter import FilmPainter
from sat_models.zoo.load import load_config, load_pretrained, load_processor
from sat_models.zoo.locate import list_models, locate, sat_home
from sat_models.zoo.painter import Painter
from sat_models.zoo.planned_painter import PlannedPainter
from sat_models.zoo.vlm import VLM

__all__ = [
    "VLM", "Constraint", "FilmMaker", "FilmPainter", "Painter", "PlannedPainter", "list_models", "load_config",
    "load_pretrained",
    "load_processor", "locate", "sat_home",
]  # fmt: skip
