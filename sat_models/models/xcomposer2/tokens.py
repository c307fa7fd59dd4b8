"""InternLM2's tokenizer file as XComposer2 reads it."""

from __future__ import annotations

import os

from sat_models.config import LanguageConfig
from sat_models.errors import InputError
from sat_models.models.xcomposer2.prompts import END, START
from sat_models.processing.tokens import SentencePieceTokenizer

SPARE = tuple(f"[UNUSED_TOKEN_{number}]" for number in range(147))
"""Pieces that mean something else than their letters; the last two begin and end a role."""


def open_tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> SentencePieceTokenizer:
    """A tokenizer for which no text makes a role token.

    Raises:
        InputError: as `SentencePieceTokenizer.from_file`, or a file without role tokens.
    """
    plain = SentencePieceTokenizer.from_file(path)
    pieces, unknown = plain.pieces, plain.pieces.unk_id()
    found = {name: pieces.piece_to_id(name) for name in SPARE}
    added = {name: token for name, token in found.items() if token != unknown}
    if not {START.name, END.name} <= added.keys():
        raise InputError(
            f"The tokenizer file '{path}' has no pieces {START.name} and {END.name}, so it belongs to another model. "
            "Name InternLM2's with --local_tokenizer."
        )
    tokenizer = SentencePieceTokenizer(pieces, added=added)
    tokenizer.eos_ids = (added[END.name], plain.eos_id)
    tokenizer.pad_id = config.pad_token_id
    return tokenizer
