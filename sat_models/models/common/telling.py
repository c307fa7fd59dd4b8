"""Questions to a Hugging Face `config.json` about its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def class_names(data: Mapping[str, Any]) -> frozenset[str]:
    """Names of classes in `architectures` and `auto_map`, and in diffusers' `_class_name`.

    Either alone misleads: the tiled XComposer2 has the `architectures` of a plain InternLM2, GLM-4V those of every
    ChatGLM, and their real class stands in `auto_map` only.
    """
    given, mapped = data.get("architectures"), data.get("auto_map")
    names = [*(given if isinstance(given, list) else []), data.get("_class_name")]
    values = mapped.values() if isinstance(mapped, Mapping) else []
    return frozenset(
        [name for name in names if isinstance(name, str)]
        + [value.rpartition(".")[2] for value in values if isinstance(value, str)]
    )


def has_intern_vit(data: Mapping[str, Any]) -> bool:
    """True if it is of LLaVA's layout with InternViT in place of CLIP: InternVL 1.0."""
    tower = str(data.get("mm_vision_tower") or "").lower()
    return "internvit" in tower or "intern_vit" in tower
