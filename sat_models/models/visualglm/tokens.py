"""ChatGLM-6B's tokenizer file (`ice_text.model`, a sentencepiece model)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from sat_models.models.visualglm.config import ChatGLMConfig
from sat_models.processing.tokens import SentencePieceTokenizer

_LONGEST_BLANK = 80
_BLANKS = re.compile(r"<\|blank_(\d+)\|>")
_MANY_SPACES = re.compile(f" {{2,{_LONGEST_BLANK}}}")


class GLMTokenizer(SentencePieceTokenizer):
    """Line breaks, tabs and runs of spaces have pieces of their own; begin, end and pad are ids of the model's config.

    Args:
        pieces: a loaded `sentencepiece.SentencePieceProcessor`.
        config: of the model.
    """

    def __init__(self, pieces: Any, config: ChatGLMConfig) -> None:
        specials = {
            "<pad>": config.pad_token_id, "[MASK]": config.mask_token_id, "[gMASK]": config.gmask_token_id,
            "<sop>": config.bos_token_id, "<eop>": config.eos_token_ids[0],
        }  # fmt: skip
        super().__init__(pieces, added=specials)
        self.bos_id, self.eos_ids, self.pad_id = config.bos_token_id, config.eos_token_ids, config.pad_token_id
        self._silent |= {*self.eos_ids}

    @classmethod
    def from_config(cls, config: ChatGLMConfig, path: str | os.PathLike[str]) -> GLMTokenizer:
        """From the sentencepiece file of a model. Raises as `SentencePieceTokenizer.from_file`."""
        return cls(SentencePieceTokenizer.from_file(path).pieces, config)

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        return super().encode(_MANY_SPACES.sub(lambda run: f"<|blank_{len(run[0])}|>", text))

    def decode(self, ids: Iterable[int]) -> str:
        """As `Tokenizer.decode`."""
        return _plain(super().decode(ids))

    def token_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """As `Tokenizer.token_bytes`."""
        data, is_byte = super().token_bytes(token_id)
        return (data, True) if is_byte else (_plain(data.decode()).encode(), False)


def _plain(text: str) -> str:
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    return _BLANKS.sub(lambda blank: " " * int(blank[1]), text)
