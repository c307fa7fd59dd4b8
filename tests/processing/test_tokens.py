"""Tokenizer, streaming, and the search for the tokenizer file."""

from __future__ import annotations

import pickle
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sat_models.errors import InputError
from sat_models.processing.tokenizer_files import find_tokenizer
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer

TEXTS = [
    "a red circle",
    " two  spaces ",
    "你好，世界",
    "emoji 😀👩‍👩‍👧 end",
    "line\nbreak\ttab",
    "é ü ß",
    "",
    "[[012,345,678,999]]",
]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_stream(mini: SimpleNamespace, text: str) -> None:
    ids = mini.tokenizer.encode(text)
    assert mini.tokenizer.decode(ids) == text
    pieces = streamed(mini.tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_characters_are_never_split(mini: SimpleNamespace) -> None:
    stream = mini.tokenizer.stream()
    pieces = [stream.push(i) for i in mini.tokenizer.encode("你😀")]
    assert [piece for piece in pieces if piece] == ["你", "😀"]
    assert stream.flush() == ""


def test_stream_equals_decode_on_random_ids(mini: SimpleNamespace) -> None:
    rng = random.Random(0)
    top = mini.tokenizer.vocab_size + 8
    for _ in range(3000):
        pool = range(3, 259) if rng.random() < 0.5 else range(top)
        ids = [rng.choice(pool) for _ in range(rng.randint(0, 12))]
        assert "".join(streamed(mini.tokenizer, ids)) == mini.tokenizer.decode(ids), ids


def test_broken_bytes_become_replacement_characters(mini: SimpleNamespace) -> None:
    first_two = mini.tokenizer.encode("你")[1:3]
    assert streamed(mini.tokenizer, first_two) == ["", "", "\ufffd\ufffd"]
    assert mini.tokenizer.decode(first_two) == "\ufffd\ufffd"


def test_work_per_id_is_bounded(mini: SimpleNamespace) -> None:
    stream = mini.tokenizer.stream()
    for token_id in mini.tokenizer.encode("你😀 word ") * 200:
        stream.push(token_id)
        assert len(stream._held) < 4


def test_no_special_tokens(mini: SimpleNamespace) -> None:
    tokenizer = mini.tokenizer
    ids = tokenizer.encode("a</s><s>b")
    assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == "a</s><s>b"


def test_pickles_for_data_loader_workers(mini: SimpleNamespace) -> None:
    copy = pickle.loads(pickle.dumps(mini.tokenizer))
    assert copy.encode("a red circle") == mini.tokenizer.encode("a red circle") and copy.pad_id == mini.tokenizer.pad_id


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist.*--local_tokenizer"):
        SentencePieceTokenizer.from_file(tmp_path / "none.model")
    for content in (b"", b"not a model", b"{}"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(InputError, match=r"bad.model"):
            SentencePieceTokenizer.from_file(tmp_path / "bad.model")


def test_find_tokenizer(mini: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tmp_path / "model" / "1"
    step.mkdir(parents=True)
    weights = step / "mp_rank_00_model_states.pt"
    weights.touch()
    with pytest.raises(InputError, match=r"--local_tokenizer.*lmsys/vicuna-7b-v1\.5"):
        find_tokenizer(weights)
    with pytest.raises(InputError, match="--local_tokenizer"):
        find_tokenizer(None)
    beside = tmp_path / "model" / "tokenizer.model"
    shutil.copy(mini.folder / "tokenizer.model", beside)
    for start in (weights, step, tmp_path / "model"):
        assert find_tokenizer(start).resolve() == beside.resolve()
    monkeypatch.chdir(step)
    assert find_tokenizer(".").resolve() == beside.resolve()
    for chosen in (mini.folder, mini.folder / "tokenizer.model"):
        assert find_tokenizer(step, chosen) == mini.folder / "tokenizer.model"


@pytest.mark.parametrize("name", ["./nowhere/tokenizer.model", "/nowhere", "nowhere", "a/b/c"])
def test_unknown_local_tokenizer(name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_tokenizer(None, name)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder without tokenizer\.model"):
        find_tokenizer(None, tmp_path)


def test_hub_id(mini: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(mini.folder / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=fake))
    assert find_tokenizer(None, "some/repo").name == "tokenizer.model"
    assert find_tokenizer(None, default="other/repo").name == "tokenizer.model"
    assert asked == [("some/repo", "tokenizer.model"), ("other/repo", "tokenizer.model")]


def test_hub_failures_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo_id: str, filename: str) -> str:
        raise RuntimeError("cannot reach the hub\nlong story")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=offline))
    with pytest.raises(InputError, match=r"cannot reach the hub\).*tokenizer\.model.*--local_tokenizer"):
        find_tokenizer(None, "some/repo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        find_tokenizer(None, "some/repo")
