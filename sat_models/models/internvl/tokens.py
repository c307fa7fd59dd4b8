"""InternVL's tokenizers: sentencepiece with tokens added to it (Yi, InternLM2), or a `tokenizer.json` (Qwen2)."""

from __future__ import annotations

import os
import re

from sat_models.models.internvl.config import InternVLConfig
from sat_models.models.internvl.prompts import END, ROLE_TOKENS
from sat_models.processing.byte_tokens import JsonTokenizer, added_tokens, has_begin
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer

IMAGE_TOKENS = ("<img>", "<IMG_CONTEXT>", "</img>")
"""The pieces where an image goes: before it, once for each of its tokens, behind it."""


TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""Around names and boxes. They give nobody a role, so texts may make them, as the weights were trained."""


class _Tagged:
    """A tokenizer whose texts may hold `TAGS`, as far as its files have them; text around them is encoded alone."""

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        known = [tag for tag in TAGS if tag in self._specials]
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, known)) + ")", text) if known else [text]:
            ids += [self.special_id(part)] if part in known else super().encode(part)
        return ids


class TaggedPieces(_Tagged, SentencePieceTokenizer):
    """Sentencepiece's, with tags."""


class TaggedBytes(_Tagged, JsonTokenizer):
    """That of a `tokenizer.json`, with tags."""


def open_tokenizer(config: InternVLConfig, path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a file and of what lies beside it.

    Raises:
        InputError: a file that cannot be read.
        ConfigError: a tokenizer of another family, which lacks the tokens around an image.
    """
    folder, by_role = os.path.dirname(path), (config.text_processor_version or config.DEFAULT_VERSION) in ROLE_TOKENS
    if os.fspath(path).endswith(".json"):
        ends = [END] if by_role else config.eos_token_ids
        tokenizer: Tokenizer = TaggedBytes.from_file(path, ends=ends, pad=config.pad_token_id)
    else:
        tokenizer = TaggedPieces.from_file(path, added=added_tokens(folder))
        if not has_begin(folder):
            tokenizer.bos_id = None
        if by_role:
            tokenizer.eos_ids = (tokenizer.special_id(END),)
    for name in IMAGE_TOKENS:
        tokenizer.special_id(name)
    return tokenizer
