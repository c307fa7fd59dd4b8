"""Tokenizers that spell text in UTF-8 bytes: `tokenizer.json` (Llama 3, Qwen2) and tiktoken's files (GLM-4).

Each token is a run of bytes, which may begin or end inside a character. Role tokens and other specials stand beside the
vocabulary; text never makes them, whoever wrote it.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sat_models.errors import InputError, MissingPackageError
from sat_models.processing.tokens import name_among, special_of

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How tiktoken's cl100k, Llama 3 and GLM-4 cut a text into words."""


class ByteTokenizer:
    """The common part of both kinds; a kind adds `encode`.

    Attributes:
        vocab_size, bos_id, eos_ids, pad_id, adds_space: as `Tokenizer`.
    """

    adds_space = False

    def __init__(
        self,
        spelling: Mapping[int, bytes],
        specials: Mapping[str, int],
        *,
        begin: str | int | None,
        ends: Sequence[str | int],
        pad: str | int | None,
    ) -> None:
        """Takes the vocabulary, and looks the ends up in it.

        Args:
            spelling: bytes of each ordinary token.
            specials: ids of the special ones.
            begin, ends, pad: names or ids; no pad is one past the last id.

        Raises:
            InputError: no end.
            ConfigError: a name that is no special token.
        """
        if not ends:
            raise InputError("A tokenizer was opened without an end token (eos_token_id in the model's config).")
        self._spelling, self._specials = dict(spelling), dict(specials)
        self.vocab_size: int = 1 + max((*self._spelling, *self._specials.values()))
        self.bos_id: int | None = None if begin is None else self._id_of(begin)
        self.eos_ids: tuple[int, ...] = tuple(map(self._id_of, ends))
        self.pad_id: int = self.vocab_size if pad is None else self._id_of(pad)

    def _id_of(self, token: str | int) -> int:
        return token if isinstance(token, int) else self.special_id(token)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def eos_id(self) -> int:
        """As `Tokenizer.eos_id`."""
        return self.eos_ids[0]

    def special_id(self, name: str) -> int:
        """As `Tokenizer.special_id`."""
        return special_of(self._specials, name)

    def name_of(self, token_id: int) -> str:
        """As `Tokenizer.name_of`."""
        return name_among(self._specials, token_id)

    def decode(self, ids: Iterable[int]) -> str:
        """As `Tokenizer.decode`."""
        return b"".join(self._spelling.get(int(token), b"") for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """As `Tokenizer.token_bytes`."""
        return self._spelling.get(int(token_id), b""), True

    def stream(self) -> ByteStream:
        """As `Tokenizer.stream`."""
        return ByteStream(self)


class ByteStream:
    """Bytes as they come, given out in whole characters."""

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """As `TextStream.push`."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id)[0])

    def flush(self) -> str:
        """As `TextStream.flush`."""
        return self._decoder.decode(b"", final=True)


class JsonTokenizer(ByteTokenizer):
    """A byte-level `tokenizer.json`, run by `tokenizers`."""

    def __init__(self, model: Any, specials: Mapping[str, int], **ids: Any) -> None:
        """Wraps a `tokenizers.Tokenizer`; see `from_file`."""
        self.__setstate__({"_model": model})
        ordinary = model.get_vocab(with_added_tokens=False).items()
        taken = set(specials.values())
        spelling = {token: _bytes_of(piece) for piece, token in ordinary if token not in taken}
        super().__init__(spelling, specials, **ids)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The package's pickles forget that text makes no special token."""
        vars(self).update(state)
        self._model.encode_special_tokens = True

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        begin: str | int | None = None,
        ends: Sequence[str | int],
        pad: str | int | None = None,
    ) -> JsonTokenizer:
        """Reads a `tokenizer.json`. Its added tokens are the special ones; `begin`, `ends` and `pad` name some of them.

        Raises:
            InputError: the file is missing or damaged, or its tokens are not spelled in bytes.
            ConfigError: a name that it does not have.
            MissingPackageError: `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise MissingPackageError("tokenizers", "all", "Reading a tokenizer.json") from error
        path, data = Path(path), _read_json(Path(path))
        if not _is_byte_level(data.get("decoder")):
            raise InputError(
                f"'{path}' does not spell its tokens in bytes (its decoder is no ByteLevel). Name the model's "
                "sentencepiece file (tokenizer.model) instead."
            )
        added = data.get("added_tokens") or []
        for token in added:
            token["special"] = True  # or a text could make it
        try:
            model = tokenizers.Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the package raises bare Exception
            raise _unreadable(path, f"is no tokenizer that this version of tokenizers reads ({error})") from error
        return cls(model, {token["content"]: token["id"] for token in added}, begin=begin, ends=ends, pad=pad)

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        return self._model.encode(text, add_special_tokens=False).ids


class TiktokenTokenizer(ByteTokenizer):
    """A file in tiktoken's form: a line for each token, its bytes in base64 and its rank, which is its id."""

    def __init__(self, ranks: Mapping[bytes, int], specials: Mapping[str, int], pattern: str, **ids: Any) -> None:
        """Makes a `tiktoken.Encoding`; see `from_file`. Raises MissingPackageError."""
        try:
            import tiktoken
        except ImportError as error:
            raise MissingPackageError("tiktoken", "all", "Reading this tokenizer") from error
        self._model = tiktoken.Encoding(
            "of a checkpoint", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(specials)
        )
        super().__init__({rank: data for data, rank in ranks.items()}, specials, **ids)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        specials: Mapping[str, int],
        pattern: str = CL100K,
        begin: str | int | None = None,
        ends: Sequence[str | int],
        pad: str | int | None = None,
    ) -> TiktokenTokenizer:
        """Reads a file in tiktoken's form.

        Args:
            path: of the file.
            specials: what it does not hold: the special tokens (see `added_tokens`).
            pattern: how a text is cut into words.
            begin, ends, pad: as `JsonTokenizer.from_file`.

        Raises:
            InputError: the file is missing or not in that form.
            ConfigError: a name that `specials` does not have.
            MissingPackageError: `tiktoken` is not installed.
        """
        ranks = {}
        for number, line in enumerate(_read(Path(path)).splitlines(), 1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                reason = f"has no 'base64 rank' in line {number} ({line[:40]!r})"
                raise _unreadable(Path(path), reason) from error
        if set(range(256)) - {data[0] for data in ranks if len(data) == 1}:
            raise _unreadable(Path(path), "lacks some of the 256 single bytes")
        return cls(ranks, specials, pattern, begin=begin, ends=ends, pad=pad)

    def encode(self, text: str) -> list[int]:
        """As `Tokenizer.encode`."""
        return self._model.encode_ordinary(text)


def added_tokens(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Ids of the tokens that stand beside a vocabulary, by name, from a folder in transformers' layout.

    `added_tokens.json`, `added_tokens_decoder` of `tokenizer_config.json` and `added_tokens` of `tokenizer.json`,
    whichever are there.

    Raises:
        InputError: a file that is there and cannot be read.
    """
    whole, config, beside = (
        _read_json(path) if (path := Path(folder) / name).is_file() else {}
        for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
    )
    pieces = (whole.get("model") or {}).get("vocab")
    pieces = pieces if isinstance(pieces, dict) else {}  # ordinary ones, taken whole wherever their text stands
    found = {
        token["content"]: token["id"]
        for token in whole.get("added_tokens") or ()
        if token.get("special", True) or token["content"] not in pieces
    }
    decoder = config.get("added_tokens_decoder") or {}
    return {**found, **{token["content"]: int(number) for number, token in decoder.items()}, **beside}


def has_begin(folder: str | os.PathLike[str]) -> bool:
    """True if texts of a folder in transformers' layout have a begin token (`add_bos_token` of its
    `tokenizer_config.json`; they have where it does not say). Raises as `added_tokens`."""
    config = Path(folder) / "tokenizer_config.json"
    return not config.is_file() or _read_json(config).get("add_bos_token") is not False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Tokenizer file '{path}' cannot be read ({error.strerror or error}). Name another: --local_tokenizer."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except ValueError as error:
        raise _unreadable(path, f"is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise _unreadable(path, "holds no JSON object")
    return data


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"'{path}' {reason:.200}. Copy it again, or name another file with --local_tokenizer.")


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    parts = (decoder or {}).get("decoders") or [decoder or {}]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _letters() -> dict[str, int]:
    """The visible letter by which byte-level files write each byte: itself where it prints, else one from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


_BYTE_OF = _letters()


def _bytes_of(piece: str) -> bytes:
    """Bytes of a token as a byte-level file writes it; one with other letters is taken as text."""
    if all(letter in _BYTE_OF for letter in piece):
        return bytes(_BYTE_OF[letter] for letter in piece)
    return piece.encode()
