"""A prompt style as a chat template: the Jinja by which transformers and its like make prompts of messages."""

from __future__ import annotations

import json

from sat_models.processing.prompts import Apart, Mark, PromptStyle, Special, Words


def chat_template(style: PromptStyle, *, image: str, begin: bool) -> str:
    """A template for `apply_chat_template`: messages of the roles system (the first at most), user and assistant, each
    content a text or a list of parts of the types "text" and "image".

    Images stand where they are in the list, with the style's gap behind each. What a processor puts around an image is
    its own business.

    Args:
        image: the text that stands for one.
        begin: prompts start with the tokenizer's begin token, which the template writes.
    """
    system = _text(style.system or "")
    before, behind = (_words(words) for words in style.around_system)
    return "".join((
        "{%- macro written(content) -%}",
        "{%- if content is string -%}{{- content -}}{%- else -%}",
        "{%- for part in content -%}",
        "{%- if part['type'] == 'image' -%}" + f"{{{{- {_text(image + style.gap)} -}}}}",
        "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}",
        "{%- else -%}{{- raise_exception('content of type ' + part['type'] + ': only text and image') -}}{%- endif -%}",
        "{%- endfor -%}{%- endif -%}",
        "{%- endmacro -%}",
        "{{- bos_token -}}" if begin else "",
        _words(style.opening),
        "{%- if messages[0]['role'] == 'system' -%}",
        "{%- set system, turns = written(messages[0]['content']), messages[1:] -%}",
        f"{{%- else -%}}{{%- set system, turns = {system}, messages -%}}{{%- endif -%}}",
        f"{{%- if system -%}}{before}{{{{- system -}}}}{behind}{{%- endif -%}}",
        "{%- for message in turns -%}",
        f"{{%- if message['role'] == 'user' -%}}{_words(style.before)}" + "{{- written(message['content']) -}}",
        f"{{%- elif message['role'] == 'assistant' -%}}{_words(style.after_past or '')}",
        "{{- written(message['content']) -}}" + _words(style.between),
        "{%- else -%}{{- raise_exception('role ' + message['role'] + ': only system (first), user and assistant') -}}",
        "{%- endif -%}{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{_words(style.after)}{{%- endif -%}}",
    ))  # fmt: skip


def _words(words: Words) -> str:
    """Words of a style as Jinja."""
    parts = (words,) if isinstance(words, str) else words
    return "".join(f"{{{{- {_part(part)} -}}}}" for part in parts if part != "")


def _part(part: str | Special | Apart | Mark) -> str:
    if isinstance(part, Mark):
        return {Mark.BEGIN: "bos_token", Mark.END: "eos_token"}[part]
    return _text(part.name if isinstance(part, Special) else part.text if isinstance(part, Apart) else part)


def _text(text: str) -> str:
    """A text as Jinja's string literal."""
    return json.dumps(text, ensure_ascii=False)
