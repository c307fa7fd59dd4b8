"""Prompt styles of CogVLM and CogAgent.

The strings are the ones that the released weights were trained with (the CogVLM repository at f7283b2), pinned letter
by letter by the golden data: do not tidy their spaces.
"""

from __future__ import annotations

from sat_models.processing.prompts import BASE, PromptStyle

STYLES: dict[str, PromptStyle] = {
    "base": BASE,
    "chat": PromptStyle(" [INST] ", " [/INST] ", " [/INST] ", "", "dialogue with detailed answers"),
    "vqa": PromptStyle("Question: ", " Short answer:", None, "", "answers of a word or two; no history"),
    "chat_old": PromptStyle("Question: ", " Answer:", " Answer: ", "\n", "dialogue, the form of the first releases"),
}
