"""Any JSON at all: a body is taken or refused in a short line, and its parts are what was sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from sat_models.errors import InputError, ZooError  # noqa: E402
from sat_models.serving.body import read_body  # noqa: E402
from sat_models.serving.failures import describe  # noqa: E402
from sat_models.serving.messages import conversation, image_urls  # noqa: E402
from sat_models.serving.schema import NEUTRAL, ChatRequest  # noqa: E402
from sat_models.text import is_utf8, json_line, printable  # noqa: E402

texts = some.text(some.characters(), max_size=20)  # halves of surrogate pairs among them
values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | texts,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
names = some.sampled_from([*ChatRequest.model_fields, *NEUTRAL]) | texts
whole = some.text(some.characters(exclude_categories=["Cs"]), max_size=20)
parts = some.lists(
    whole.map(lambda text: {"type": "text", "text": text})
    | whole.map(lambda url: {"type": "image_url", "image_url": url})
    | whole.map(lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "cache_control": {}}),
    max_size=5,
)


def refusal(body: Any) -> dict[str, Any] | None:
    """The answer to a body that is refused, as the server writes it; None for one that is taken."""
    try:
        request = ChatRequest.model_validate(body)
        conversation(request.messages)
        image_urls(request.messages)
    except ValidationError as error:
        status, answer = describe(error)
    except ZooError as error:
        status, answer = describe(error)
    else:
        return None
    assert status == 400
    return answer


@settings(deadline=None, max_examples=300)
@given(body=some.dictionaries(names, values, max_size=6) | values)
def test_any_body_is_taken_or_refused_in_a_short_line(body: Any) -> None:
    answer = refusal(body)
    if answer is not None:
        written = json.dumps(answer, ensure_ascii=False).encode()
        assert len(written) < 4000 and answer["error"]["message"]


@pytest.mark.parametrize("body", ['{"model": "x", "model": "y"}', '{"messages": [{"role": "user", "role": "system"}]}'])
def test_a_key_that_comes_twice_is_named(body: str) -> None:
    with pytest.raises(InputError, match=r"In the body an object has the key '(model|role)' twice\. Send one"):
        read_body(body.encode(), "application/json", ChatRequest)


@settings(deadline=None, max_examples=300)
@given(content=values, role=some.sampled_from(["system", "user", "assistant", "tool"]) | texts)
def test_any_content_is_taken_or_refused_in_a_short_line(content: Any, role: str) -> None:
    body = {"model": "x", "messages": [{"role": role, "content": content}, {"role": "user", "content": "Hi"}]}
    answer = refusal(body)
    assert answer is None or len(answer["error"]["message"].encode()) < 1000


@settings(deadline=None)
@given(asked=some.lists(parts, min_size=1, max_size=4))
def test_parts_are_what_was_sent(asked: list[list[dict[str, Any]]]) -> None:
    """All words and all images arrive, in their order, whatever form their parts have."""
    messages = [{"role": "user", "content": content} for content in asked]
    request = ChatRequest.model_validate({"model": "x", "messages": messages})
    urls = [part["image_url"] for content in asked for part in content if part["type"] == "image_url"]
    assert image_urls(request.messages) == [url["url"] if isinstance(url, dict) else url for url in urls]
    words = "\n".join("\n".join(p["text"] for p in content if p["type"] == "text") for content in asked)
    if words.strip():
        assert conversation(request.messages) == (words, [])
    else:
        with pytest.raises(InputError, match="question is empty"):
            conversation(request.messages)


@settings(deadline=None)
@given(turns=some.lists(some.tuples(whole, whole), max_size=5), question=whole)
def test_a_conversation_keeps_its_turns(turns: list[tuple[str, str]], question: str) -> None:
    messages: list[dict[str, str]] = []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    request = ChatRequest.model_validate({"model": "x", "messages": [*messages, {"role": "user", "content": question}]})
    if question.strip():
        assert conversation(request.messages) == (question, turns)


@given(text=some.text(some.characters()))
def test_any_text_can_be_printed(text: str) -> None:
    printable(text).encode()
    assert printable(text) == text or not is_utf8(text)
    str(ZooError(text, hint=text)).encode()


@settings(deadline=None)
@given(record=some.dictionaries(texts, values, max_size=4))
def test_a_line_of_jsonl_is_one_line_and_the_record(record: dict[str, Any]) -> None:
    line = json_line(record)
    assert line.encode().decode().split("\n") == [line[:-1], ""]
    assert json.dumps(json.loads(line), sort_keys=True) == json.dumps(record, sort_keys=True)
