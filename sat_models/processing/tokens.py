"""Text <-> token ids: a thin wrapper around sentencepiece, a stream decoder, and the search for `tokenizer.model`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sat_models.errors import InputError, MissingPackageError

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.model"
DEFAULT_TOKENIZER = "lmsys/vicuna-7b-v1.5"
"""The tokenizer of the released CogVLM and CogAgent weights."""

_SPACE = "\u2581"  # sentencepiece writes a space as this block
_UNREADABLE = "\ufffd"


class Tokenizer:
    """A sentencepiece model with the ids the language model needs.

    Attributes:
        vocab_size: number of pieces (a model's embedding may have more rows: the rest is padding).
        bos_id, eos_id: begin and end of a sequence.
        pad_id: one past the last piece, as the original sets 32000 for Vicuna. It is an id that no text contains; it
            has a row in the embedding only where the model's vocabulary is larger than the tokenizer's.
    """

    def __init__(self, pieces: Any) -> None:
        """Wraps a loaded `sentencepiece.SentencePieceProcessor`; see `from_file`."""
        self._pieces = pieces
        self.vocab_size: int = pieces.get_piece_size()
        self.bos_id: int = pieces.bos_id()
        self.eos_id: int = pieces.eos_id()
        self.pad_id: int = self.vocab_size

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads a sentencepiece model.

        Raises:
            InputError: the file is missing, is no sentencepiece model, or has no begin or end piece.
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
        if min(pieces.bos_id(), pieces.eos_id()) < 0:
            raise InputError(f"'{path}' has no begin (<s>) or end (</s>) piece, which the models here need.")
        return cls(pieces)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def pieces(self) -> Any:
        """The `sentencepiece.SentencePieceProcessor`."""
        return self._pieces

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added (`</s>` in a text is plain text)."""
        return list(self._pieces.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; begin, end and ids beyond the last piece are silent."""
        return self._pieces.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def stream(self) -> StreamDecoder:
        """A fresh decoder that is fed id by id."""
        return StreamDecoder(self)

    def token_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """What one id stands for: its UTF-8 bytes, and whether it is a single raw byte of a character."""
        pieces = self._pieces
        if not 0 <= token_id < self.vocab_size or pieces.IsControl(token_id):
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

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = b""
        self._at_start = True

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
        if self._at_start and text.startswith(" ") and not self._tokenizer._pieces.IsUnknown(int(token_id)):
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


def find_tokenizer(
    weights_dir: str | os.PathLike[str] | None,
    local_tokenizer: str | os.PathLike[str] | None = None,
    *,
    default: str | None = None,
    names: Sequence[str] = (TOKENIZER_FILE,),
) -> Path:
    """Where the tokenizer of a checkpoint lies.

    Args:
        weights_dir: folder of the weights, a step folder in it, or a weights file; None when there is none.
        local_tokenizer: the user's choice, which wins: a file, a folder that holds `tokenizer.model`, or the id of a
            Hugging Face repository (`lmsys/vicuna-7b-v1.5`), taken from the local cache or downloaded.
        default: repository id to try when neither the user nor the weights bring one; None: do not look there.
        names: what the file may be called; the first is what a repository calls it.

    Returns:
        Path of a sentencepiece file.

    Raises:
        InputError: nothing there; the message names the flag and the file to put where.
    """
    if local_tokenizer:
        return _named_tokenizer(str(local_tokenizer), names)
    folders: list[Path] = []
    if weights_dir is not None:
        start = Path(weights_dir).expanduser()
        start = start.parent if start.is_file() else start
        folders = [start, start.resolve().parent]
        for file in (folder / name for folder in folders for name in names):
            if file.is_file():
                return file
    if default:
        return _download(default, names[0])
    looked = f" (looked in {', '.join(map(str, folders))})" if folders else ""
    raise InputError(
        f"No {' or '.join(names)} lies beside the weights{looked}. Pass --local_tokenizer with a file, a folder or a "
        f"Hugging Face repository; the released CogVLM and CogAgent weights use {DEFAULT_TOKENIZER}."
    )


def _named_tokenizer(name: str, names: Sequence[str]) -> Path:
    """The file that a user's `--local_tokenizer` means."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if found := [path / file for file in names if (path / file).is_file()]:
            return found[0]
        raise InputError(
            f"--local_tokenizer '{name}' is a folder without {' or '.join(names)}. Copy that file into it."
        )
    looks_like_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith((".model", ".json"))
    if looks_like_id:
        return _download(name, names[0])
    raise InputError(
        f"--local_tokenizer '{name}' does not exist. Allowed: a sentencepiece file, a folder that holds "
        f"{' or '.join(names)}, or a Hugging Face repository such as {DEFAULT_TOKENIZER}."
    )


def _download(repo_id: str, file: str) -> Path:
    """The tokenizer file of a repository, from the local cache where it is there (HF_HUB_OFFLINE is respected)."""
    remedy = (
        f"Copy {file} of https://huggingface.co/{repo_id} next to the weights, or pass its path: "
        f"--local_tokenizer FILE_OR_FOLDER."
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            f"Tokenizer '{repo_id}' is no local path, and downloading needs the package huggingface_hub "
            f"(pip install huggingface_hub). {remedy}"
        ) from error
    try:
        return Path(hf_hub_download(repo_id, file))
    except Exception as error:  # the hub raises many types: offline, no such repository, gated, network
        logger.debug("download of %s failed", repo_id, exc_info=True)
        raise InputError(
            f"Tokenizer '{repo_id}' is no local path and could not be downloaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}). {remedy}"
        ) from error
