"""Models that users may well have on their disks, told apart so that they are refused by their right names.

A family that joins the zoo takes its row away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sat_models.models.common.telling import class_names, has_intern_vit

_CHATGLM = frozenset(("ChatGLMModel", "ChatGLMForConditionalGeneration"))


def _chatglm(data: Mapping[str, Any]) -> bool:
    return bool(class_names(data) & _CHATGLM) and not data.get("vision_config")


def _glm41v(data: Mapping[str, Any]) -> bool:
    return any(name.startswith("Glm4v") for name in class_names(data))  # what transformers calls it; not GLM-4V


NOT_YET: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("GLM-4.1V", _glm41v),
    ("a ChatGLM or GLM-4 without images", _chatglm),
    ("InternVL 1.0", has_intern_vit),
)
"""Name, and whether a `config.json` is of it. Facts: the releases' own files."""
