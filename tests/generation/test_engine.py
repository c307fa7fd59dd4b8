"""The engine's loop, with a scripted model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripted import EOS, ScriptedModel, prompt

from sat_models.errors import InputError, ZooError
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions


def _engine(*script: int | float | Exception, max_length: int = 64, tokenizer: Any = None) -> Engine:
    model = ScriptedModel(list(script))
    return Engine(model, eos_id=EOS, max_length=max_length, device="cpu", tokenizer=tokenizer)


def _assert_as_before(model: ScriptedModel) -> None:
    assert model.mixins == {}
    assert model.dropout.training
    assert not torch.is_inference_mode_enabled()


def test_stops_at_the_end_token_and_leaves_it_out() -> None:
    engine = _engine(5, 6, EOS)
    stream = engine.tokens(prompt())
    assert stream.finish_reason is None
    assert list(stream) == [5, 6]
    assert (stream.token_ids, stream.finish_reason, stream.prompt_tokens) == ([5, 6], "stop", 10)
    _assert_as_before(engine.model)


def test_several_end_tokens() -> None:
    engine = Engine(ScriptedModel([5, 9]), eos_id=[EOS, 9], max_length=64, device="cpu")
    assert list(engine.tokens(prompt())) == [5]


def test_an_answer_may_be_empty() -> None:
    stream = _engine(EOS).tokens(prompt())
    assert list(stream) == []
    assert stream.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "count"),
    [({"max_new_tokens": 3}, 3), ({"max_length": 14}, 4), ({"max_length": 14, "max_new_tokens": 2}, 2), ({}, 6)],
)
def test_limits_end_with_length(options: dict[str, int], count: int) -> None:
    engine = _engine(*[5] * 9, max_length=16)
    stream = engine.tokens(prompt(), SamplingOptions(**options))
    assert list(stream) == [5] * count
    assert stream.finish_reason == "length"
    assert len(engine.model.calls) == count, "the last token needs no forward pass of its own"


def test_the_end_token_in_the_last_place_is_a_stop() -> None:
    stream = _engine(5, EOS).tokens(prompt(), SamplingOptions(max_new_tokens=2))
    assert list(stream) == [5]
    assert stream.finish_reason == "stop"


def test_what_the_model_is_given() -> None:
    engine = _engine(5, 6, 7, EOS)
    inputs = prompt(text=3)
    list(engine.tokens(inputs, SamplingOptions(max_new_tokens=8)))
    first, *steps = engine.model.calls
    assert first["ids"] == inputs.input_ids[0].tolist()
    assert first["positions"] == [0, 1, 2, 2, 2, 2, 3, 4, 5, 6]
    assert first["max_position"] == 6
    assert first["vision_image"] is not None
    assert (first["cached"], first["room"]) == (0, 18)
    assert [step["ids"] for step in steps] == [[5], [6], [7]]
    assert [step["positions"] for step in steps] == [[7], [8], [9]], "image tokens share a position"
    assert [step["max_position"] for step in steps] == [7, 8, 9]
    assert [step["cached"] for step in steps] == [10, 11, 12]
    for step in steps:
        assert step["mask"] is None
        assert not {"vision_image", "vision_expert_mask", "image_embed_mask"} & step.keys()
    for call in engine.model.calls:
        assert call["last_position_only"] is True
        assert call["inference"]
        assert not call["training"]


def test_a_mask_of_the_prompt_is_continued() -> None:
    engine = _engine(5, 6, EOS)
    inputs = prompt(text=2, images=0)
    mask = torch.ones(1, 1, 3, 3).tril()
    mask[..., 0] = 0
    mask[0, 0, 0, 0] = 1
    inputs.attention_mask = mask
    list(engine.tokens(inputs))
    assert engine.model.calls[1]["mask"].tolist() == [[[[0, 1, 1, 1]]]]
    assert engine.model.calls[2]["mask"].tolist() == [[[[0, 1, 1, 1, 1]]]]


def test_a_long_prompt_is_refused_with_its_numbers() -> None:
    engine = _engine(max_length=10)
    with pytest.raises(InputError, match=r"takes 10 tokens.*max_length is 10.*Shorten.*at most 10"):
        engine.tokens(prompt())
    with pytest.raises(InputError, match=r"takes 10 tokens.*max_length is 8"):
        _engine().tokens(prompt(), SamplingOptions(max_length=8))
    assert engine.model.calls == []


def test_more_than_the_model_can_hold_is_capped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    stream = _engine(*[5] * 9, max_length=12).tokens(prompt(), SamplingOptions(max_length=4096))
    assert "4096" in caplog.text
    assert "12" in caplog.text
    assert len(list(stream)) == 2


def test_a_batch_is_refused() -> None:
    inputs = prompt()
    inputs.input_ids = inputs.input_ids.repeat(2, 1)
    with pytest.raises(InputError, match="one prompt at a time; got a batch of 2"):
        _engine().tokens(inputs)


@pytest.mark.parametrize("script", [[RuntimeError("boom")], [5, RuntimeError("boom")]])
def test_an_exception_leaves_the_model_as_it_was(script: list[int | Exception]) -> None:
    engine = _engine(*script)
    with pytest.raises(RuntimeError, match="boom"):
        list(engine.tokens(prompt()))
    _assert_as_before(engine.model)


def test_closing_leaves_the_model_as_it_was() -> None:
    engine = _engine(5, 6, 7, EOS)
    stream = engine.tokens(prompt())
    assert next(stream) == 5
    assert not torch.is_inference_mode_enabled(), "the caller's code runs as the caller set it"
    stream.close()
    _assert_as_before(engine.model)
    assert list(stream) == []
    assert stream.finish_reason is None


def test_a_stream_that_was_never_read_touches_nothing() -> None:
    engine = _engine(5)
    engine.tokens(prompt()).close()
    assert engine.model.calls == []
    _assert_as_before(engine.model)


def test_two_answers_at_once_are_refused() -> None:
    engine = _engine(5, 6, 7, EOS)
    first = engine.tokens(prompt())
    next(first)
    with pytest.raises(RuntimeError, match="generating already"):
        next(engine.tokens(prompt()))
    assert list(first) == [6, 7]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(value: float, temperature: float) -> None:
    engine = _engine(5, value)
    stream = engine.tokens(prompt(), SamplingOptions(temperature=temperature, top_k=0, seed=0))
    next(stream)
    with pytest.raises(ZooError, match=r"not numbers \(dtype float32\).*--bf16"):
        next(stream)
    _assert_as_before(engine.model)


def test_repetition_penalty_sees_the_answer() -> None:
    engine = _engine(5, 5, 5, EOS)
    penalised = SamplingOptions(repetition_penalty=1e3, max_new_tokens=3)
    assert list(engine.tokens(prompt(), penalised)) != [5, 5, 5]


class _Pieces:
    """Decodes pairs of ids: the first of a pair is held back."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        self.held += chr(ord("a") + token)
        text, self.held = (self.held, "") if len(self.held) == 2 else ("", self.held)
        return text

    def flush(self) -> str:
        return self.held


def test_text_pieces_and_whole_text() -> None:
    tokenizer = SimpleNamespace(stream=_Pieces)
    request = Request(prompt())
    assert list(_engine(3, 4, 5, EOS, tokenizer=tokenizer).stream(request).pieces()) == ["de", "f"]
    result = _engine(3, 4, 5, EOS, tokenizer=tokenizer).answer(request)
    assert (result.text, result.token_ids, result.finish_reason, result.prompt_tokens) == ("def", [3, 4, 5], "stop", 10)
    assert result.logprobs is None


def test_an_engine_without_a_tokenizer_gives_ids_and_refuses_stop_strings() -> None:
    result = _engine(3, 4, EOS).answer(Request(prompt()))
    assert (result.text, result.token_ids) == ("", [3, 4])
    with pytest.raises(InputError, match=r"stop strings \('x',\) need a tokenizer"):
        _engine(3).stream(Request(prompt(), stops=("x",)))


def test_an_answer_is_asked_for_when_it_is_over() -> None:
    row = _engine(3).row(Request(prompt()))
    with pytest.raises(RuntimeError, match="has not ended"):
        row.result()


def test_streaming_gives_each_token_before_the_next_is_computed() -> None:
    engine = _engine(5, 6, EOS)
    for count, _ in enumerate(engine.tokens(prompt()), 1):
        assert len(engine.model.calls) == count
