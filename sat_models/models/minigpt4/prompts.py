"""Prompt styles of MiniGPT-4 and v2 (`conversation.py` and `eval_configs` of its repository)."""

from __future__ import annotations

from sat_models.processing.prompts import PromptStyle

_GIVEN = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
_IMG = ("<Img>", "</Img> ")

STYLES: dict[str, PromptStyle] = {
    "minigpt4": PromptStyle(
        "Human: ", "###Assistant:", "###Assistant: ", "###", "MiniGPT-4 with Vicuna",
        opening=f"{_GIVEN}###", picture=_IMG, picture_first=False, stops=("###",),
    ),
    "minigpt4_llama2": PromptStyle(
        "[INST] ", " [/INST]", " [/INST] ", "", "MiniGPT-4 with Llama-2, and v2",
        picture=_IMG, picture_first=False, ends_answers=True,
    ),
}  # fmt: skip
