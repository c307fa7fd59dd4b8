"""A zoo of vision-language models made of SwissArmyTransformer mixins; `sat_models.zoo` is its front door."""

__version__ = "0.2.0.dev0"
