"""Prompt styles of InternVL (`internvl_chat/internvl/conversation.py` of its repository at 2410d1d)."""

from __future__ import annotations

from sat_models.processing.prompts import Mark, PromptStyle, Special

_AROUND_IMAGE = ((Special("<img>"),), (Special("</img>"),))
_START, _END = Special("<|im_start|>"), Special("<|im_end|>")
_SHANGHAI = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_WANXIANG = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def _role_tokens(summary: str, system: str, between: str = "") -> PromptStyle:
    """The later styles: each turn between role tokens.

    Args:
        between: text behind each end token.
    """
    end = (_END, between) if between else (_END,)
    answer = (*end, _START, "assistant\n")
    return PromptStyle(
        (_START, "user\n"), answer, answer, end, summary, system=system, around_system=((_START, "system\n"), end),
        around_image=_AROUND_IMAGE, gap="\n", images_first=False, images_anywhere=True, stripped=True,
    )  # fmt: skip


STYLES: dict[str, PromptStyle] = {
    "Hermes-2": _role_tokens("InternVL 1.2, and later ones on Yi or Qwen2", _SHANGHAI),
    "internlm2-chat": _role_tokens("InternVL 1.5 and 2 on InternLM2", _SHANGHAI),
    "internvl2_5": _role_tokens("InternVL 2.5 and 3", _WANXIANG, "\n"),
    "internvl_zh": PromptStyle(
        "<human>: ", " <bot>:", " <bot>: ", (Mark.END,), "InternVL 1.1", opening=" ",
        around_image=_AROUND_IMAGE, gap="\n", images_first=False, images_anywhere=True, stripped=True,
    ),
}  # fmt: skip
"""A `config.json` names one as its `template`."""
ROLE_TOKENS = ("Hermes-2", "internlm2-chat", "internvl2_5")
"""Styles whose answers end with a role token; the others' end with the tokenizer's own."""
END = _END.name
