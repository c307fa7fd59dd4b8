"""What a family is to the rest of the house: one entry with all that others need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sat_models.processing.prompts import PromptStyle


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models. Importing it is light: no model code, no torch.

    Attributes:
        name: of its folder.
        models: every `model_class` that a `model_config.json` may name, the usual one first.
        styles: prompt styles that its weights were trained with.
    """

    name: str
    models: tuple[str, ...]
    styles: Mapping[str, PromptStyle]
