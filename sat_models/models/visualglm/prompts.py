"""Prompt styles of VisualGLM-6B (`model/chat.py` of its repository at e314fb9)."""

from __future__ import annotations

from sat_models.processing.prompts import PromptStyle

STYLES: dict[str, PromptStyle] = {
    "glm_zh": PromptStyle("问：", "\n答：", "\n答：", "\n", "VisualGLM in Chinese", around_image=("<img>", "</img>")),
    "glm_en": PromptStyle("Q:", "\nA:", "\nA:", "\n", "VisualGLM in English", around_image=("<img>", "</img>")),
}
