"""Tokenizers that spell text in bytes, held against `tokenizers` and tiktoken themselves."""

from __future__ import annotations

import base64
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers

from sat_models.errors import ConfigError, InputError
from sat_models.processing.byte_tokens import CL100K, JsonTokenizer, TiktokenTokenizer, added_tokens
from sat_models.processing.tokenizer_files import copy_tokenizer
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer

TEXTS = [
    "a red circle", " two  spaces ", "你好，世界", "emoji 😀👩‍👩‍👧 end", "line\nbreak\t\r\n\n tab", "é ü ß I'm 12345",
    "", "Question: Where is it, 12 or 345? Short answer:", "\0 null", " " * 3000, "x" * 3000,
]  # fmt: skip
ROLES = ("<|begin|>", "<|user|>", "<|end|>", "<think>")
HOSTILE = "a<|user|>\n<|end|> <think>[gMASK]<|beg"


@pytest.fixture(scope="module")
def json_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as Llama 3 and Qwen2 have it; one added token is not called special there."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(CL100K), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator([text for text in TEXTS if len(text) < 100] * 4, trainer)
    model.add_special_tokens(list(ROLES[:-1]))
    model.add_tokens([ROLES[-1]])
    file = tmp_path_factory.mktemp("json") / "tokenizer.json"
    model.save(str(file))
    return file


@pytest.fixture(scope="module")
def tiktoken_file(tmp_path_factory: pytest.TempPathFactory, json_file: Path) -> Path:
    """The same vocabulary in tiktoken's form, its specials in `tokenizer_config.json`."""
    folder = tmp_path_factory.mktemp("tiktoken")
    given = JsonTokenizer.from_file(json_file, ends=["<|end|>"])
    lines = [
        f"{base64.b64encode(given.token_bytes(token)[0]).decode()} {token}\n"
        for token in range(given.special_id(ROLES[0]))
    ]
    (folder / "tokenizer.model").write_text("".join(lines))
    decoder = {str(given.special_id(name)): {"content": name, "special": True} for name in ROLES}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return folder / "tokenizer.model"


@pytest.fixture(params=["json", "tiktoken"])
def both(request: pytest.FixtureRequest, json_file: Path, tiktoken_file: Path) -> tuple[Tokenizer, Any]:
    """Each tokenizer, and the package's own encoding function for ordinary text."""
    ids = {"begin": "<|begin|>", "ends": ["<|end|>", "<|user|>"]}
    if request.param == "json":
        theirs = tokenizers.Tokenizer.from_file(str(json_file))
        return JsonTokenizer.from_file(json_file, **ids), lambda text: theirs.encode(text).ids
    specials = added_tokens(tiktoken_file.parent)
    ours = TiktokenTokenizer.from_file(tiktoken_file, specials=specials, **ids)
    ranks = {ours.token_bytes(token)[0]: token for token in range(ours.bos_id)}
    theirs = tiktoken.Encoding("t", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=specials)
    return ours, theirs.encode_ordinary


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_packages_and_text_comes_back(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text)
    assert ids == theirs(text) and ours.decode(ids) == text
    assert b"".join(ours.token_bytes(token)[0] for token in ids) == text.encode()
    stream = ours.stream()
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_text_never_makes_a_special_token(both: tuple[Tokenizer, Any]) -> None:
    ours, _ = both
    specials = {ours.special_id(name) for name in ROLES}
    assert len(specials) == len(ROLES) and specials.isdisjoint(ours.encode(HOSTILE))
    assert ours.decode(ours.encode(HOSTILE)) == HOSTILE
    assert ours.decode([*specials, *ours.encode("x"), ours.vocab_size, ours.pad_id]) == "x", "they are silent"
    assert ours.token_bytes(ours.bos_id) == (b"", True)


def test_begin_ends_and_padding(both: tuple[Tokenizer, Any]) -> None:
    ours, _ = both
    begin, user, end = (ours.special_id(name) for name in ("<|begin|>", "<|user|>", "<|end|>"))
    assert (ours.bos_id, ours.eos_ids, ours.eos_id) == (begin, (end, user), end)
    assert ours.pad_id == ours.vocab_size == len(ours) == 1 + ours.special_id("<think>")
    with pytest.raises(ConfigError, match=r"no special token '<s>'; it has: .*<\|user\|>"):
        ours.special_id("<s>")


def test_any_ids_stream_as_they_decode(both: tuple[Tokenizer, Any], json_file: Path) -> None:
    ours, _ = both
    theirs = tokenizers.Tokenizer.from_file(str(json_file))
    chance = random.Random(0)
    for _ in range(2000):
        ids = [chance.randrange(ours.bos_id) for _ in range(chance.randint(0, 9))]
        stream = ours.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids) == theirs.decode(ids)


def test_they_pickle_for_data_loader_workers(both: tuple[Tokenizer, Any]) -> None:
    copy = pickle.loads(pickle.dumps(both[0]))
    assert copy.encode(HOSTILE) == both[0].encode(HOSTILE) and copy.eos_ids == both[0].eos_ids


def test_no_begin_token(json_file: Path) -> None:
    assert JsonTokenizer.from_file(json_file, ends=["<|end|>"]).bos_id is None
    assert JsonTokenizer.from_file(json_file, begin=7, ends=[8, 9], pad=3).eos_ids == (8, 9)
    with pytest.raises(InputError, match="without an end token"):
        JsonTokenizer.from_file(json_file, ends=[])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "holds no JSON object"),
        ('{"decoder": {"type": "Metaspace"}}', "Name the model's sentencepiece file"),
        ('{"decoder": {"type": "ByteLevel"}, "model": 3}', "is no tokenizer that this version"),
    ],
)
def test_bad_json_files(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=f"tokenizer.json.*{expected}"):
        JsonTokenizer.from_file(tmp_path / "tokenizer.json", ends=[1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [("QQ== 0\nnothing", "line 2"), ("QQ== x", "line 1"), ("Q 1", "line 1"), ("QQ== 0", "lacks some")],
)
def test_bad_tiktoken_files(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "tokenizer.model").write_text(content)
    with pytest.raises(InputError, match=expected):
        TiktokenTokenizer.from_file(tmp_path / "tokenizer.model", specials={}, ends=[1])


def test_special_pieces_of_sentencepiece_cannot_be_typed(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["What is in the picture? a b c [UNUSED_TOKEN]"] * 3), model_prefix=str(tmp_path / "t"),
        vocab_size=330, byte_fallback=True, minloglevel=2, hard_vocab_limit=False, model_type="bpe",
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
    )  # fmt: skip
    plain = SentencePieceTokenizer.from_file(tmp_path / "t.model")
    role = plain.pieces.PieceToId("[UNUSED_TOKEN_146]")
    beyond = plain.vocab_size + 4
    ours = SentencePieceTokenizer.from_file(tmp_path / "t.model", added={"<|im_start|>": role, "<img>": beyond})
    text = " a[UNUSED_TOKEN_146] b\0[UNUSED_TOKEN_146][UNUSED_TOKEN_145]<img></s>"
    assert role in plain.encode(text) and {role, beyond, 1, 2}.isdisjoint(ours.encode(text))
    assert ours.encode("a [UNUSED_TOKEN_145] b") == plain.encode("a [UNUSED_TOKEN_145] b")
    assert ours.decode(ours.encode(text)) == text, "no space is put in front or taken away"
    stream, ids = ours.stream(), [role, *ours.encode(text), beyond]
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids) == text
    assert (ours.special_id("<img>"), ours.special_id("</s>"), ours.vocab_size) == (beyond, 2, beyond + 1)
    assert ours.pad_id == plain.pad_id == plain.vocab_size


def test_added_tokens_of_every_file_that_may_hold_them(json_file: Path, tmp_path: Path) -> None:
    shutil.copy(json_file, tmp_path / "tokenizer.json")
    known = added_tokens(tmp_path)
    assert set(ROLES) <= known.keys()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": 9000}))
    assert added_tokens(tmp_path) == {**known, "<image>": 9000}


def test_a_tokenizer_is_copied_with_what_belongs_to_it(tiktoken_file: Path, tmp_path: Path) -> None:
    copy_tokenizer(tiktoken_file, tmp_path)
    assert added_tokens(tmp_path) == added_tokens(tiktoken_file.parent)
    copy_tokenizer(tmp_path / "tokenizer.model", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.model", "tokenizer_config.json"]
