"""Probabilities at every door: OpenAI's `logprobs` through its own client, `--scores`, JSONL, the page."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_http import EXAMPLE, asked, data_url, running

from sat_models import zoo
from sat_models.commands import caption
from sat_models.errors import ConfigError
from sat_models.generation.scores import TokenScore
from sat_models.serving import bulk, cli
from sat_models.serving.chat import ChatSession
from sat_models.serving.dialogue import Dialogue
from sat_models.serving.logprobs import logprobs_body
from sat_models.zoo import VLM, load_pretrained

NAME = "cogvlm-tiny"
WHERE = "Where is the red circle? answer in [[x0,y0,x1,y1]] format."
BOXES = "Describe this image with a box for each object."
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLOSE = {"rel": 1e-3, "abs": 1e-4}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    """`chat.completions.create` of OpenAI's client, against a server with a model of its own."""
    openai = pytest.importorskip("openai")
    for package in ("fastapi", "prometheus_client"):
        pytest.importorskip(package)
    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.metrics import Metrics

    served = load_pretrained(NAME, device="cpu")
    core = ServerCore(served, served.engine(), names=[NAME], limits=Limits(max_rows=4, max_new_tokens=64))
    with running(create_app(core, Metrics(), on_shutdown=core.scheduler.close)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        yield lambda *messages, **how: client.chat.completions.create(model=NAME, messages=asked(*messages), **how)
        client.close()


def check_content(content: list[Any], result: Any, vlm: VLM, top: int) -> None:
    """OpenAI's entries against what `generate` says."""
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == result.text
    assert [entry.logprob for entry in content] == pytest.approx(result.logprobs, **CLOSE)
    for number, entry in enumerate(content):
        assert set(entry.to_dict()) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry.token.encode() == bytes(entry.bytes)
        said = [(each.logprob, each.token) for each in entry.top_logprobs]
        assert len(said) == top and sorted(said, key=lambda each: -each[0]) == said
        assert all(set(each.to_dict()) == {"token", "logprob", "bytes"} for each in entry.top_logprobs)
        if top:
            assert [each for each, _ in said] == pytest.approx([p for _, p in result.top_logprobs[number]], **CLOSE)
            assert said[0][1] == entry.token, "a greedy token is the likeliest"


@pytest.mark.parametrize("top", [0, 3, 20])
def test_logprobs_of_an_answer_and_of_its_stream(ask: Any, vlm: VLM, top: int) -> None:
    result = vlm.generate(EXAMPLE, WHERE, top_logprobs=top)
    how = {"logprobs": True, **({"top_logprobs": top} if top else {})}
    (choice,) = ask(WHERE, data_url(), **how).choices
    assert choice.message.content == result.text and choice.logprobs.refusal is None
    check_content(choice.logprobs.content, result, vlm, top)
    assert choice.message.score == pytest.approx(result.score, **CLOSE)
    assert [box["score"] for box in choice.message.boxes] == pytest.approx(result.box_scores, **CLOSE)
    streamed = []
    for chunk in ask(WHERE, data_url(), stream=True, **how):
        (choice,) = chunk.choices
        if choice.logprobs is not None:
            streamed += choice.logprobs.content
            joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
            assert joined.decode() == choice.delta.content, "the tokens of a chunk are those of its text"
    check_content(streamed, result, vlm, top)
    assert choice.finish_reason == "stop" and choice.delta.score == pytest.approx(result.score, **CLOSE)


def test_each_of_n_answers_has_its_own(ask: Any, vlm: VLM) -> None:
    how = {"temperature": 2.0, "seed": 5, "max_tokens": 6, "n": 3, "logprobs": True, "top_logprobs": 1, "stop": ["and"]}
    replies = ask("Describe this image.", data_url(), **how).choices
    streamed: list[list[Any]] = [[], [], []]
    for chunk in ask("Describe this image.", data_url(), stream=True, **how):
        for choice in chunk.choices:
            streamed[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert len({reply.message.content for reply in replies}) > 1
    for index, reply in enumerate(replies):
        drawn = vlm.generate(EXAMPLE, "Describe this image.", temperature=2.0, seed=5 + index, max_new_tokens=6)
        given = [entry.logprob for entry in reply.logprobs.content]
        assert given == pytest.approx(drawn.logprobs[: len(given)], **CLOSE)
        assert [entry.to_dict() for entry in streamed[index]] == [entry.to_dict() for entry in reply.logprobs.content]
        assert reply.message.score == pytest.approx(math.exp(sum(given)), **CLOSE)


def test_who_does_not_ask_gets_none(ask: Any) -> None:
    (choice,) = ask("Hi", max_tokens=2, logprobs=False).choices
    assert choice.logprobs is None and not hasattr(choice.message, "score")
    assert all(chunk.choices[0].logprobs is None for chunk in ask("Hi", max_tokens=2, stream=True))


def test_bytes_that_are_no_character_and_tokens_without_bytes() -> None:
    from sat_models.processing.tokens import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer.from_file(GOLDEN / "cogvlm-mini" / "tokenizer.model")
    ids = tokenizer.encode("a \U0001f600")
    scores = [TokenScore(token, -0.5, ((tokenizer.eos_id, -math.inf), (10**6, -1.0))) for token in ids]
    content = logprobs_body(scores, tokenizer, first=True)["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "a \U0001f600"
    assert [entry["token"] for entry in content][-4:] == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    end, beyond = content[0]["top_logprobs"]
    assert end == {"token": "</s>", "logprob": -9999.0, "bytes": None}
    assert beyond == {"token": "", "logprob": -1.0, "bytes": None}
    json.dumps(content, allow_nan=False)
    assert logprobs_body(scores[:1], tokenizer, first=False)["content"][0]["token"].startswith(" ")


@pytest.mark.parametrize("name", ["glm4v-mini", "internvl3-mini", "xcomposer2-mini", "cogvlm2-mini"])
def test_every_tokenizer_spells_its_tokens_and_names_the_others(name: str) -> None:
    tokenizer = load_pretrained(GOLDEN / name, device="cpu", dtype="float32").processor.tokenizer
    assert tokenizer.special_id(tokenizer.name_of(tokenizer.eos_id)) == tokenizer.eos_id
    text = "A caf\u00e9, \u732b 12"
    scores = [TokenScore(token, -1.0) for token in tokenizer.encode(text)]
    content = logprobs_body(scores, tokenizer, first=True)["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == text
    assert tokenizer.name_of(scores[0].token_id) == "" == tokenizer.name_of(10**7)


def test_on_the_command_line(vlm: VLM, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(zoo, "load_pretrained", lambda *_, **__: vlm)
    result = vlm.generate(EXAMPLE, WHERE)
    flags = ["--image", str(EXAMPLE), "--query", WHERE]
    assert cli.main([*flags, "--json", "--scores"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["token_ids"] == result.token_ids and said["logprobs"] == pytest.approx(result.logprobs, **CLOSE)
    assert said["score"] == pytest.approx(result.score, **CLOSE)
    assert said["box_scores"] == pytest.approx(result.box_scores, **CLOSE) and len(said["box_scores"]) == 1
    assert cli.main([*flags, "--json"]) == 0
    assert not {"score", "box_scores", "logprobs"} & json.loads(capfd.readouterr().out).keys()
    assert cli.main([*flags, "--scores"]) == 0
    lines = f"{result.text}\nscore {result.score:.3g}; boxes {result.box_scores[0]:.3g}\n"
    assert capfd.readouterr().out == lines
    typed = iter([str(EXAMPLE), WHERE, "stop"])
    Dialogue(ChatSession(vlm, scores=True), read=lambda _: next(typed), output=Path("/dev/null")).run()
    assert f"{result.text}\nscore {result.score:.3g}; boxes" in capfd.readouterr().out


def test_in_lines(vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run never goes on with lines of the other kind; files of before there were scores are gone on with."""
    monkeypatch.setattr(zoo, "load_pretrained", lambda *_, **__: vlm)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked_for = [{"image": str(EXAMPLE), "query": query, "score": "an input's own"} for query in (WHERE, BOXES)]
    source.write_text("".join(json.dumps(line) + "\n" for line in asked_for))
    flags = [str(source), str(output), "--batch_size", "2"]
    assert caption.main([*flags, "--scores"]) == 0
    for line in map(json.loads, output.read_text().splitlines()):
        result = vlm.generate(EXAMPLE, line["query"])
        assert line["text"] == result.text and line["score"] == pytest.approx(result.score, **CLOSE)
        assert line["box_scores"] == pytest.approx(result.box_scores, **CLOSE)
        assert len(line["box_scores"]) == len(vlm.read(result.text, (100, 100)).boxes) > 0
    with pytest.raises(ConfigError, match="scores True -> False"):
        caption.main(flags)
    plain = tmp_path / "plain.jsonl"
    assert caption.main([str(source), str(plain)]) == 0
    assert all("score" not in json.loads(line) for line in plain.read_text().splitlines())
    settings = json.loads(bulk.settings_file(plain).read_text())
    del settings["scores"]
    bulk.settings_file(plain).write_text(json.dumps(settings))
    assert caption.main([str(source), str(plain)]) == 0
    with pytest.raises(ConfigError, match="scores False -> True"):
        caption.main([str(source), str(plain), "--scores"])


@pytest.mark.parametrize(
    ("question", "image"), [(BOXES, EXAMPLE), ("How many shapes are there?", EXAMPLE), ("Hi", None)]
)
def test_on_the_page(vlm: VLM, question: str, image: Path | None) -> None:
    pytest.importorskip("gradio")
    from sat_models.serving.core import ServerCore
    from sat_models.serving.web import Page

    core = ServerCore(vlm, vlm.engine(), names=[NAME])
    settings = {"language": "english", "version": "chat", "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": None}

    async def turn() -> Any:
        path = None if image is None else str(image)
        return [state async for state in Page(core).ask(question, path, [], (None, []), tokens=64, **settings)][-1]

    try:
        lines = asyncio.run(turn())[3].splitlines()
    finally:
        core.scheduler.close()
    result = vlm.generate(image, question, max_new_tokens=64)
    shown = lines[-1].removeprefix("Probability of the answer, word for word: ").removesuffix(" %")
    assert float(shown) / 100 == pytest.approx(result.score, rel=0.06)
    boxes = vlm.read(result.text, (64, 64) if image else None).boxes
    if not boxes:
        assert len(lines) == 1
        return
    assert lines[0] == "| In pixels | x1 | y1 | x2 | y2 | Mean probability |"
    column = [float(line.split("|")[-2].removesuffix(" % ").strip()) / 100 for line in lines[2 : 2 + len(boxes)]]
    assert column == pytest.approx(result.box_scores, rel=0.06)
