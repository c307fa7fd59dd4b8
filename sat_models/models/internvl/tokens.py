"""InternVL's tokenizers: sentencepiece with tokens added to it (Yi, InternLM2), or a `tokenizer.json` (Qwen2)."""

from __future__ import annotations

import os

from sat_models.models.internvl.config import InternVLConfig
from sat_models.models.internvl.prompts import END, ROLE_TOKENS
from sat_models.processing.byte_tokens import JsonTokenizer, added_tokens, has_begin
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer

IMAGE_TOKENS = ("<img>", "<IMG_CONTEXT>", "</img>")
"""The pieces where an image goes: before it, once for each of its tokens, behind it."""


def open_tokenizer(config: InternVLConfig, path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a file and of what lies beside it.

    Raises:
        InputError: a file that cannot be read.
        ConfigError: a tokenizer of another family, which lacks the tokens around an image.
    """
    folder, by_role = os.path.dirname(path), (config.text_processor_version or config.DEFAULT_VERSION) in ROLE_TOKENS
    if os.fspath(path).endswith(".json"):
        ends = [END] if by_role else config.eos_token_ids
        tokenizer: Tokenizer = JsonTokenizer.from_file(path, ends=ends, pad=config.pad_token_id)
    else:
        tokenizer = SentencePieceTokenizer.from_file(path, added=added_tokens(folder))
        if not has_begin(folder):
            tokenizer.bos_id = None
        if by_role:
            tokenizer.eos_ids = (tokenizer.special_id(END),)
    for name in IMAGE_TOKENS:
        tokenizer.special_id(name)
    return tokenizer
