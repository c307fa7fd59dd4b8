"""Prompt styles of LLaVA 1.0 and 1.5 (`conversation.py` of its repository at c121f04: "llava_v0", "llava_v1")."""

from __future__ import annotations

from sat_models.processing.prompts import Mark, PromptStyle

_CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)

STYLES: dict[str, PromptStyle] = {
    "llava_v0": PromptStyle(
        "Human: ", "###Assistant:", "###Assistant: ", "###", "LLaVA 1.0",
        system=_CURIOUS, around_system=("", "###"), gap="\n", images_first=False, stops=("###",),
    ),
    "llava_v1": PromptStyle(
        "USER: ", " ASSISTANT:", " ASSISTANT: ", (Mark.END,), "LLaVA 1.5",
        system=_CURIOUS, around_system=("", " "), gap="\n", images_first=False,
    ),
}  # fmt: skip
