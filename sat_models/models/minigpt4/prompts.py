"""Prompt styles of MiniGPT-4 and v2 (`conversation.py` and `eval_configs` of its repository)."""

from __future__ import annotations

from sat_models.processing.prompts import Mark, PromptStyle

_GIVEN = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
_IMG = ("<Img>", "</Img>")

STYLES: dict[str, PromptStyle] = {
    "minigpt4": PromptStyle(
        "Human: ", "###Assistant:", "###Assistant: ", "###", "MiniGPT-4 with Vicuna",
        system=_GIVEN, around_system=("", "###"), around_image=_IMG, gap=" ", images_first=False, stops=("###",),
    ),
    "minigpt4_llama2": PromptStyle(
        "[INST] ", " [/INST]", " [/INST] ", (Mark.END,), "MiniGPT-4 with Llama-2, and v2",
        around_image=_IMG, gap=" ", images_first=False,
    ),
}  # fmt: skip
