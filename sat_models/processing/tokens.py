"""Text <-> token ids: what every tokenizer of the zoo can do, sentencepiece's, and text as it streams.

Those that spell text in bytes (`tokenizers`, tiktoken) are in `byte_tokens`; where the files lie, in `tokenizer_files`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from sat_models.errors import ConfigError, InputError, MissingPackageError

_SPACE = "\u2581"  # sentencepiece writes a space as this block
_UNREADABLE = "\ufffd"


class TextStream(Protocol):
    """Turns the token ids of one answer into text as they come."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this id; often "", never half a character."""
        ...

    def flush(self) -> str:
        """The rest at the end: bytes that never became a character, as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """The zoo's view of a tokenizer, whatever file it came from.

    Attributes:
        vocab_size: one past its largest id (a model's embedding may have more rows: the rest is padding).
        bos_id: begin of a sequence; None where the models were trained without.
        eos_ids: what ends an answer; training puts the first behind it.
        pad_id: fills a batch; masked wherever it stands.
        adds_space: encoding puts a space in front of a text, and decoding takes it away.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    adds_space: bool

    @property
    def eos_id(self) -> int:
        """The first of `eos_ids`."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text. None is special: a user who writes `</s>` or `<|im_start|>` has written those letters."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens and ids beyond the vocabulary are silent."""
        ...

    def special_id(self, name: str) -> int:
        """The id of a special token, which no text can make. Raises ConfigError with the names that there are."""
        ...

    def stream(self) -> TextStream:
        """A fresh decoder that is fed id by id; its pieces joined are `decode` of all ids."""
        ...

    def token_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """The bytes of one id in UTF-8 (none, if special), and whether that may be a part of a character."""
        ...

    def name_of(self, token_id: int) -> str:
        """The name of a special token, the inverse of `special_id`; "" for others and for ids without a token."""
        ...


def special_of(specials: Mapping[str, int], name: str) -> int:
    """`specials[name]`. Raises ConfigError with the names that there are."""
    if name not in specials:
        known = ", ".join(sorted(specials)) or "none"
        raise ConfigError(f"The tokenizer has no special token '{name}'; it has: {known}. Use the model's own file.")
    return specials[name]


def name_among(specials: Mapping[str, int], token_id: int) -> str:
    """The name of a special token, "" for others."""
    return next((name for name, token in specials.items() if token == token_id), "")


def read_pieces(path: str | os.PathLike[str]) -> Any:
    """The `sentencepiece.SentencePieceProcessor` of a file.

    Raises:
        InputError: the file is missing, or is no sentencepiece model.
        MissingPackageError: sentencepiece is not installed.
    """
    path = Path(path)
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise MissingPackageError("sentencepiece", "all", "Reading a tokenizer") from error
    if not path.is_file():
        raise InputError(f"Tokenizer file '{path}' does not exist. Name a sentencepiece file: --local_tokenizer.")
    pieces = SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"'{path}' is not a readable sentencepiece model ({error}). Copy it again, or name another file with "
            f"--local_tokenizer."
        ) from error
    return pieces


class SentencePieceTokenizer:
    """A sentencepiece model with the ids the language model needs.

    Attributes:
        vocab_size: number of pieces, or one past the largest of the added tokens.
        bos_id, eos_ids: begin and end of a sequence.
        pad_id: one past the last piece, as the original sets 32000 for Vicuna. It is an id that no text contains; it
            has a row in the embedding only where the model's vocabulary is larger than the tokenizer's.
        adds_space: as `Tokenizer.adds_space`; the file says it.
    """

    def __init__(self, pieces: Any, *, added: Mapping[str, int] | None = None) -> None:
        """Wraps a loaded `sentencepiece.SentencePieceProcessor`; see `from_file`."""
        self._pieces = pieces
        self._specials = dict(added or {})
        self._silent = frozenset(self._specials.values())
        self.bos_id: int | None = pieces.bos_id()
        self.eos_ids: tuple[int, ...] = (pieces.eos_id(),)
        self.pad_id: int = pieces.get_piece_size()
        self.vocab_size: int = max([self.pad_id, *(token + 1 for token in self._silent)])
        self.adds_space: bool = pieces.EncodeAsPieces("a")[0].startswith(_SPACE)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, added: Mapping[str, int] | None = None
    ) -> SentencePieceTokenizer:
        """Reads a sentencepiece model.

        Args:
            path: of the file.
            added: special tokens besides those of the file, or other names for pieces of it: name to id.

        Raises:
            InputError: the file is missing, is no sentencepiece model, or has no begin or end piece.
            MissingPackageError: sentencepiece is not installed.
        """
        pieces = read_pieces(path)
        if min(pieces.bos_id(), pieces.eos_id()) < 0:
            raise InputError(f"'{path}' has no begin (<s>) or end (</s>) piece, which the models here need.")
        return cls(pieces, added=added)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def eos_id(self) -> int:
        """As `Tokenizer.eos_id`."""
        return self.eos_ids[0]

    @property
    def pieces(self) -> Any:
        """The `sentencepiece.SentencePieceProcessor`."""
        return self._pieces

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        ids = list(self._pieces.encode(text))
        return ids if self._silent.isdisjoint(ids) else self._encode_in_letters(text)

    def _encode_in_letters(self, text: str) -> list[int]:
        """Ids of a text that spells special pieces, each cut behind its first letter so that it is none."""
        names = {self._pieces.IdToPiece(token) for token in self._silent if token < self._pieces.get_piece_size()}
        cuts = [0, *(found.start() + 1 for found in re.finditer("|".join(map(re.escape, names)), text)), len(text)]
        return [token for start, end in pairwise(cuts) for token in self._pieces.encode(text[start:end])]

    def decode(self, ids: Iterable[int]) -> str:
        """As `Tokenizer.decode`."""
        size = self._pieces.get_piece_size()
        return self._pieces.decode([int(i) for i in ids if 0 <= i < size and i not in self._silent])

    def special_id(self, name: str) -> int:
        """As `Tokenizer.special_id`; begin and end are known by the names that the file gives them."""
        return special_of(self._named(), name)

    def name_of(self, token_id: int) -> str:
        """As `Tokenizer.name_of`."""
        control = 0 <= token_id < self.pieces.get_piece_size() and self.pieces.IsControl(token_id)
        return name_among(self._named(), token_id) or (self.pieces.IdToPiece(token_id) if control else "")

    def _named(self) -> dict[str, int]:
        own = {self._pieces.IdToPiece(token): token for token in (self._pieces.bos_id(), self._pieces.eos_id())}
        return {**own, **self._specials}

    def stream(self) -> StreamDecoder:
        """As `Tokenizer.stream`."""
        return StreamDecoder(self)

    def token_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """As `Tokenizer.token_bytes`."""
        pieces = self._pieces
        if not 0 <= token_id < pieces.get_piece_size() or token_id in self._silent or pieces.IsControl(token_id):
            return b"", False
        if pieces.IsByte(token_id):
            return bytes([int(pieces.IdToPiece(token_id)[1:-1], 16)]), True
        if pieces.IsUnknown(token_id):
            return pieces.decode([token_id]).encode(), False
        return pieces.IdToPiece(token_id).replace(_SPACE, " ").encode(), False


class StreamDecoder:
    """Turns token ids into text as they come.

    A character that is spelled byte by byte (Chinese, emoji) is held back until it is whole, at most three bytes, so
    a piece never shows half a character. The pieces and `flush()` joined are `Tokenizer.decode` of all ids. The
    work per id does not grow with the text.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = b""
        self._at_start = tokenizer.adds_space

    def push(self, token_id: int) -> str:
        """Text that became certain with this id; often "", never half a character."""
        data, is_byte = self._tokenizer.token_bytes(int(token_id))
        if not data:
            return ""
        if is_byte:
            self._at_start = False
            self._held += data
            return self._take(final=False)
        text = data.decode()
        if self._at_start and text.startswith(" ") and not self._tokenizer.pieces.IsUnknown(int(token_id)):
            text = text[1:]  # the space that encoding put in front
        self._at_start = False
        return self._take(final=True) + text

    def flush(self) -> str:
        """The rest at the end of generation: bytes that never became a character, each as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        """Whole characters from the held bytes; a byte that cannot start one becomes U+FFFD (sentencepiece's rule)."""
        text = ""
        while self._held:
            size = _char_length(self._held)
            if size is None:
                if not final:
                    break
                size, char = 1, _UNREADABLE
            elif size == 0:
                size, char = 1, _UNREADABLE
            else:
                char = self._held[:size].decode()
            text, self._held = text + char, self._held[size:]
        return text


def _char_length(data: bytes) -> int | None:
    """Bytes of the UTF-8 character `data` starts with; 0 when it starts with none, None when more bytes may tell."""
    for size in range(1, min(len(data), 4) + 1):
        try:
            data[:size].decode()
            return size
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return 0
    return None
