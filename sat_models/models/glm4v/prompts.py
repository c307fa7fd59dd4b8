"""The prompt style of GLM-4 and GLM-4V: roles are tokens, each with a line for its metadata, which stays empty."""

from __future__ import annotations

from sat_models.processing.prompts import Apart, PromptStyle, Special

_LINE = Apart("\n")
"""The end of that line is encoded by itself. In an answer the model writes it."""

STYLES: dict[str, PromptStyle] = {
    "glm4v": PromptStyle(
        before=(Special("<|user|>"), _LINE),
        after=(Special("<|assistant|>"),),
        after_past=(Special("<|assistant|>"),),
        between="",
        summary="dialogue with role tokens and a system text (GLM-4V)",
        opening=(Special("[gMASK]"), Special("<sop>")),
        system="",
        around_system=((Special("<|system|>"), _LINE), ""),
        images_first=False,
        images_anywhere=True,
        lead=_LINE.text,
    )
}
