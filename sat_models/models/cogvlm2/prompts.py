"""Prompt styles of CogVLM2: CogVLM's first form, in which short answers keep their history, too."""

from __future__ import annotations

from sat_models.models.cogvlm.prompts import STYLES as COGVLM_STYLES
from sat_models.processing.prompts import BASE, PromptStyle

STYLES: dict[str, PromptStyle] = {
    "base": BASE,
    "chat_old": COGVLM_STYLES["chat_old"],
    "cogvlm2_vqa": PromptStyle(
        "Question: ", " Short answer:", " Short answer: ", "\n", "answers of a word or two, with history (CogVLM2)"
    ),
}
OWN_NAMES: dict[str, PromptStyle] = {"chat": STYLES["chat_old"], "vqa": STYLES["cogvlm2_vqa"]}
"""Styles that its releases call by names of CogVLM's with another meaning."""
