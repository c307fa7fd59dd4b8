"""A sentencepiece model as a `tokenizer.json`, the form that `tokenizers` and transformers read.

The file holds pieces with their scores, and no merges: those of a BPE model are all pairs of pieces that make a piece,
the best piece first, as transformers' own conversion has them. Both give the same ids; `sentencepiece_json` tries it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.processing.tokens import SentencePieceTokenizer

_SPACE = "\u2581"
_BPE = 2
"""`model_type` in sentencepiece's trainer_spec; 1, its default, is a unigram model."""
_USER_DEFINED = 4
"""Type of a piece that is taken whole wherever its text stands."""
_SAMPLES = (
    "What is in the image?", " two  spaces\nand a line ", "你好，世界 🙂", "a<b>c</b> [[001,002,998,999]]",
    "naïve ﬁ ½\t", "", "USER: Hello ASSISTANT:",
)  # fmt: skip


def sentencepiece_json(path: Path, added: Mapping[str, int]) -> dict[str, Any]:
    """The content of a `tokenizer.json`.

    Args:
        path: of the sentencepiece model.
        added: special tokens besides its own, or other names for pieces of it: name to id.

    Raises:
        InputError: the file cannot be read, or text has other ids in the new form.
    """
    import tokenizers

    tokenizer, spec = SentencePieceTokenizer.from_file(path), _spec(path.read_bytes())
    made = _made(tokenizer.pieces, spec, added)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(made))
    for text in (*_SAMPLES, *(f"x{piece}y {piece}" for piece in spec["whole"] if not piece.startswith("["))):
        if (wanted := tokenizer.encode(text)) != (given := theirs.encode(text, add_special_tokens=False).ids):
            raise InputError(
                f"'{path}' cannot be written as a tokenizer.json: {text!r} would have the ids {given}, not {wanted}. "
                "Put the release's own tokenizer.json beside it."
            )
    return made


@dataclass(frozen=True)
class PieceTable:
    """A sentencepiece model as plain lists.

    Attributes:
        pieces, scores: in order of ids.
        types: 1 ordinary, 2 unknown, 3 control, 4 taken whole, 5 unused, 6 a byte.
        adds_space, fewer_spaces: what becomes of spaces at the beginning, and of several.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    adds_space: bool
    fewer_spaces: bool


def piece_table(path: Path) -> PieceTable:
    """The table of a file. Raises InputError for one that cannot be read, or a unigram model."""
    pieces, spec = SentencePieceTokenizer.from_file(path).pieces, _spec(path.read_bytes())
    if spec["model_type"] != _BPE:
        raise InputError(f"'{path}' is a unigram model; only BPE models, as LLaMA's, have such a table")
    size, whole = range(pieces.get_piece_size()), {*spec["whole"]}
    kinds = ((pieces.IsUnknown, 2), (pieces.IsControl, 3), (pieces.IsUnused, 5), (pieces.IsByte, 6))
    names = [pieces.IdToPiece(token) for token in size]
    types = [next((kind for is_one, kind in kinds if is_one(n)), 4 if names[n] in whole else 1) for n in size]
    return PieceTable(names, [pieces.GetScore(n) for n in size], types, spec["adds_space"], spec["fewer_spaces"])


def _made(pieces: Any, spec: Mapping[str, Any], added: Mapping[str, int]) -> dict[str, Any]:
    size = pieces.get_piece_size()
    renamed = {token: name for name, token in added.items() if token < size}
    names = [renamed.get(token, pieces.IdToPiece(token)) for token in range(size)]
    scores = [pieces.GetScore(token) for token in range(size)]
    common = {"byte_fallback": any(pieces.IsByte(token) for token in range(size))}
    if spec["model_type"] == _BPE:
        vocab = {name: token for token, name in enumerate(names)}
        ordinary = {names[t]: t for t in range(size) if not (pieces.IsControl(t) or pieces.IsByte(t))}
        model = {"type": "BPE", "vocab": vocab, "merges": list(_merges(ordinary, scores)), "fuse_unk": True}
        model |= {"unk_token": names[pieces.unk_id()], **common}
    else:
        vocab = [[name, score] for name, score in zip(names, scores, strict=True)]
        model = {"type": "Unigram", "vocab": vocab, "unk_id": pieces.unk_id(), **common}
    special = {t: names[t] for t in range(size) if pieces.IsControl(t) or pieces.IsUnknown(t) or t in renamed}
    special |= {token: name for name, token in added.items() if token >= size}
    whole = {pieces.PieceToId(piece): piece.replace(_SPACE, " ") for piece in spec["whole"]}
    after = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    after += [{"type": "Fuse"}]
    if spec["adds_space"]:
        after.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(special.get(token) or whole[token], token, special=token in special)
            for token in sorted({*special, *whole})
        ],
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(spec))},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": after},
        "model": model,
    }


def added_token(content: str, number: int, *, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def _merges(vocab: Mapping[str, int], scores: list[float]) -> Iterator[list[str]]:
    """Pairs that make a piece, the best piece first; of one piece those whose parts come first."""
    for name in sorted(vocab, key=lambda name: -scores[vocab[name]]):
        pairs = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        yield from (list(pair) for pair in sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]])))


def _normalizers(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if spec["charsmap"]:
        yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(spec["charsmap"]).decode()}
    if spec["fewer_spaces"]:
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if spec["adds_space"]:
        yield {"type": "Prepend", "prepend": " "}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _spec(data: bytes) -> dict[str, Any]:
    """What sentencepiece's API does not tell: kind of model and normaliser, out of the file (a protobuf message).

    Numbers of fields are those of `sentencepiece_model.proto`: ModelProto 1 pieces (1 piece, 3 type), 2 trainer_spec
    (3 model_type) and 3 normalizer_spec (2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces).
    """
    pieces = (dict(_fields(value)) for number, value in _fields(data) if number == 1)
    model = dict(_fields(data))
    trainer, normalizer = dict(_fields(model.get(2, b""))), dict(_fields(model.get(3, b"")))
    return {
        "model_type": trainer.get(3, 1),
        "charsmap": normalizer.get(2, b""),
        "adds_space": bool(normalizer.get(3, 1)),
        "fewer_spaces": bool(normalizer.get(4, 1)),
        "whole": [piece[1].decode() for piece in pieces if piece.get(3) == _USER_DEFINED],
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a message; a later one of a number counts."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
