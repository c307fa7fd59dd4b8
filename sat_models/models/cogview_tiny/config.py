"""Sizes of the bundled painter: `configs/models/cogview-tiny.json`."""

from __future__ import annotations

from dataclasses import dataclass

from sat_models.config.planned import PlannedConfig


@dataclass(frozen=True, kw_only=True)
class CogViewTinyConfig(PlannedConfig):
    """See the base."""

    model_class: str = "CogViewTinyModel"
