"""Forms of answers at every door: OpenAI's `response_format` through its own client, vLLM's fields, flags, JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from serving_http import EXAMPLE, asked, data_url, running

from sat_models import zoo
from sat_models.commands import caption, measure_strict
from sat_models.serving import cli
from sat_models.serving.api import create_app
from sat_models.serving.core import Limits, ServerCore
from sat_models.serving.metrics import Metrics
from sat_models.zoo import VLM, load_pretrained

NAME = "cogvlm-tiny"
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
WILD = {"temperature": 2.0, "max_tokens": 64}


class Shape(BaseModel):
    """One shape, as a client describes it."""

    color: Literal["red", "green", "blue", "orange"]
    name: str = Field(max_length=12)


class Scene(BaseModel):
    """What a client wants to know."""

    shapes: list[Shape] = Field(max_length=2)
    sure: bool


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    served = load_pretrained(NAME, device="cpu")
    core = ServerCore(served, served.engine(), names=[NAME], limits=Limits(max_rows=4, max_new_tokens=256))
    with running(create_app(core, Metrics(), on_shutdown=core.scheduler.close)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        yield client
        client.close()


def messages() -> list[dict[str, Any]]:
    return asked("What is here?", data_url())


def answers(client: openai.OpenAI, **how: Any) -> list[Any]:
    """The choices of four wild answers."""
    return client.chat.completions.create(model=NAME, messages=messages(), n=4, **{**WILD, **how}).choices


def test_a_pydantic_model_is_filled_in(client: openai.OpenAI) -> None:
    for seed in range(4):
        reply = client.chat.completions.parse(
            model=NAME, messages=messages(), response_format=Scene, seed=seed, temperature=2.0, max_tokens=256
        )
        (choice,) = reply.choices
        assert isinstance(choice.message.parsed, Scene) and choice.message.refusal is None
        assert choice.finish_reason == "stop" and Scene.model_validate_json(choice.message.content)


def test_what_was_cut_off_is_not_taken_for_whole(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=NAME, messages=messages(), response_format=Scene, max_tokens=6)
    (choice,) = client.chat.completions.create(
        model=NAME, messages=messages(), max_tokens=6, extra_body={"guided_json": SCHEMA}
    ).choices
    assert choice.finish_reason == "length" and choice.message.refusal is None
    assert "not whole" in choice.message.incomplete and "--" not in choice.message.incomplete


FORMS = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
    {"extra_body": {"guided_json": SCHEMA}},
    {"extra_body": {"guided_json": json.dumps(SCHEMA)}},
    {"extra_body": {"structured_outputs": {"json": SCHEMA, "regex": None, "disable_any_whitespace": True}}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: json.dumps(form)[:40])
def test_every_way_to_ask_for_a_schema(client: openai.OpenAI, form: dict[str, Any]) -> None:
    for choice in answers(client, seed=1, **form):
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert choice.finish_reason == "stop" and not hasattr(choice.message, "incomplete")


def test_regex_choice_boxes_and_any_object(client: openai.OpenAI) -> None:
    for name in ("guided_regex", "regex"):
        form = {name: "[a-f]{4}"} if name.startswith("guided") else {"structured_outputs": {name: "[a-f]{4}"}}
        assert all(re.fullmatch("[a-f]{4}", each.message.content) for each in answers(client, extra_body=form))
    chosen = answers(client, extra_body={"guided_choice": ["one", "two"]})
    assert {each.message.content for each in chosen} <= {"one", "two"}
    for each in answers(client, extra_body={"guided_boxes": "only"}):
        assert each.message.boxes and re.fullmatch(r"\[\[[0-9,;]+\]\]", each.message.content)
    (first, *_) = answers(client, response_format={"type": "json_object"}, seed=3)
    assert first.message.content.startswith("{") and (first.finish_reason == "length") == hasattr(
        first.message, "incomplete"
    )
    free = answers(client, response_format={"type": "text"}, temperature=0)
    assert free[0].message.content == answers(client, temperature=0)[0].message.content


def test_streams_and_batches_hold_to_their_forms(client: openai.OpenAI) -> None:
    how = {"model": NAME, "messages": messages(), "stream": True, "logprobs": True, **WILD}
    streams = [client.chat.completions.create(**how, seed=seed, **FORMS[seed % 2]) for seed in range(4)]
    for stream in streams:  # four at a time on the server
        chunks = [chunk.choices[0] for chunk in stream]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        jsonschema.validate(json.loads(text), SCHEMA)
        tokens = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
        assert b"".join(bytes(entry.bytes) for entry in tokens).decode() == text, "forced tokens have scores, too"
        assert chunks[-1].finish_reason == "stop"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": {"type": "colour"}}, "Invalid type: colour"),
    ({"guided_json": "{"}, "is no JSON"),
    ({"guided_regex": "(a"}, "unclosed group"),
    ({"guided_regex": ""}, "must be a text that is not empty"),
    ({"guided_choice": []}, "at least one text"),
    ({"guided_choice": ["a", ""]}, "One of the choices is ''"),
    ({"guided_boxes": "many"}, "'many'; allowed: only, in_text"),
    ({"guided_grammar": "root ::= x"}, "'guided_grammar' is not supported"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_regex and guided_choice each ask"),
    ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "response_format and guided_choice each"),
    ({"guided_choice": ["a"], "stop": ["x"]}, "stop strings.*Leave out one"),
    ({"guided_choice": ["a very long answer"], "max_tokens": 1}, "may have 1 tokens"),
    ({"response_format": {"type": "yaml"}}, "yaml.*must be an object whose type"),
    ({"response_format": "json"}, "'json'.*must be an object"),
    ({"response_format": {"type": "json_schema"}}, "json_schema is None"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format has schema"),
    ({"structured_outputs": {}}, "asks for nothing"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "asks for json, regex"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs has grammar"),
    ({"structured_outputs": {"json_object": 1}}, "json_object is 1"),
]


@pytest.mark.parametrize(("form", "says"), [pytest.param(*bad, id=bad[1][:25]) for bad in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_forms_get_400(client: openai.OpenAI, form: dict[str, Any], says: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        client.chat.completions.create(model=NAME, messages=messages(), stream=stream, extra_body=form)
    assert len(refused.value.body["message"]) < 400


def test_without_the_package_the_server_says_so(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(openai.APIStatusError, match=r"\[strict\]") as refused:
        answers(client, extra_body={"guided_regex": "never asked before"})
    assert refused.value.status_code == 501


@pytest.fixture
def command(vlm: VLM, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line demo; its exit code, stdout and stderr."""
    monkeypatch.setattr(zoo, "load_pretrained", lambda name, **how: vlm)

    def run(*flags: str) -> tuple[int, str, str]:
        how = (
            "--image",
            str(EXAMPLE),
            "--query",
            "What is here?",
            "--temperature",
            "2",
            "--top_k",
            "0",
            "--top_p",
            "1",
        )
        code = cli.main([*how, "--seed", "1", *flags])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_the_command_line_has_every_form(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for schema in (str(file), json.dumps(SCHEMA)):
        code, out, _ = command("--json_schema", schema, "--json")
        line = json.loads(out)
        jsonschema.validate(json.loads(line["text"]), SCHEMA)
        assert (code, line["finish_reason"], "incomplete" in line) == (0, "stop", False)
    assert re.fullmatch("[0-9]{3}\n", command("--regex", "[0-9]{3}")[1])
    assert command("--choice", "yes", "no", "--choice", "maybe")[1].strip() in ("yes", "no", "maybe")
    assert json.loads(command("--boxes_only", "--json")[1])["boxes"]
    assert command("--boxes_whole", "--max_new_tokens", "30")[0] == 0
    _, out, err = command("--json_schema", str(file), "--max_new_tokens", "5")
    assert "not whole" in err and "not whole" not in out
    assert (
        "not whole"
        in json.loads(command("--json_schema", str(file), "--max_new_tokens", "5", "--json")[1])["incomplete"]
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--json_schema", "nowhere.json"), "--json_schema is 'nowhere.json'"),
        (("--json_schema", '{"type": 1}'), "cannot be compiled"),
        (("--json_schema", "{"), "is no JSON"),
        (("--regex", "(a"), "unclosed group"),
        (("--choice", ""), "One of the choices is ''"),
        (("--choice", "a", "--regex", "a"), "--regex and --choice each ask"),
        (("--boxes_only", "--boxes_whole"), "--boxes_only and --boxes_whole"),
        (("--boxes_only", "--max_new_tokens", "5"), "may have 5 tokens"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_flags_are_one_line_and_2(
    command: Any, flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags[0] != "--boxes_only":
        monkeypatch.setattr(zoo, "load_pretrained", None)  # no weights are read
    code, out, err = command(*flags)
    assert code == 2 and not out and says in err and len(err.strip().splitlines()) == 1


def test_lines_of_many_pictures_hold_to_the_form(vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "load_pretrained", lambda name, **how: vlm)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"image": str(EXAMPLE), "id": number}) + "\n" for number in range(5)))
    how = [str(source), str(output), "--temperature", "2", "--seed", "1"]
    assert caption.main([*how, "--json_schema", json.dumps(SCHEMA)]) == 0
    for line in output.read_text().splitlines():
        jsonschema.validate(json.loads(json.loads(line)["text"]), SCHEMA)
    with pytest.raises(ValueError, match=r"other settings .*constraint"):
        caption.main([*how, "--regex", "a"])
    short = tmp_path / "short.jsonl"
    assert caption.main([how[0], str(short), "--max_new_tokens", "4", "--json_schema", json.dumps(SCHEMA)]) == 0
    assert all("not whole" in json.loads(line)["incomplete"] for line in short.read_text().splitlines())


def test_the_rates_are_of_answers_of_the_same_lengths(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure_strict.py`: a table of every form, whose answers are made again without one."""
    timed, turns = measure_strict._timed, []

    def noted(*given: Any) -> tuple[Any, float]:
        made, seconds = timed(*given)
        turns.append([len(answer.token_ids) for answer in made])
        return made, seconds

    monkeypatch.setattr(measure_strict, "_timed", noted)
    table = measure_strict.measure(vlm, rows=[2], answers=2, tokens=24, repeats=1)
    assert turns[::2] == turns[1::2] and all(sum(lengths) for lengths in turns)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0] for row in cells] == list(measure_strict.FORMS)
    assert all(float(row[-2]) > 0 and 0 < int(row[2]) <= 24 for row in cells)
