"""Batches against one answer after the other: the same token ids, whoever joins, leaves or fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sat_models.errors import InputError, ZooError
from sat_models.generation import prefill as prefill_module
from sat_models.generation import rows as rows_module
from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.session import BatchSession
from sat_models.processing.layout import VLMInputs
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    """Each miniature in turn."""
    return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")


@pytest.fixture
def engine(vlm: VLM) -> Iterator[Engine]:
    """An engine whose model is as it was after each test."""
    mixins = list(vlm.model.mixins)
    yield Engine(vlm.model, eos_id=2, max_length=256, device="cpu")
    assert list(vlm.model.mixins) == mixins
    assert not torch.is_inference_mode_enabled()


@pytest.fixture(scope="module")
def prompts(vlm: VLM) -> list[VLMInputs]:
    """Ragged: other questions, histories and pictures in each, some without a picture, one with two."""
    folder = GOLDEN / ("cogagent-mini" if vlm.processor.cross_image_size else "cogvlm-mini")
    image = folder / "image.png"
    cases = json.loads((folder / "reference.json").read_text())["cases"]
    made = [vlm.processor(image, c["query"], history=c["history"], version=c["version"]) for c in cases[:6]]
    for number, inputs in enumerate(made):
        inputs.vision_image = inputs.vision_image.roll(number, dims=-1)
        if inputs.cross_image is not None:
            inputs.cross_image = inputs.cross_image.roll(5 * number, dims=-1)
    made.append(vlm.processor([image, image], "Which is red?"))
    texts = ["Hello", "What would you say to somebody who asks?"]
    made += [vlm.processor(None, text, version="chat") for text in texts]
    assert len({inputs.length for inputs in made}) >= 5
    return [made[i] for i in (7, 0, 1, 6, 2, 3, 8, 4, 5)]


def batch(
    engine: Engine, prompts: list[VLMInputs], options: list[SamplingOptions], max_rows: int = 16
) -> list[GenerationResult]:
    """The answers together."""
    asked = [Request(inputs, choice) for inputs, choice in zip(prompts, options, strict=True)]
    return engine.answers(asked, max_rows=max_rows)


def alone(engine: Engine, prompts: list[VLMInputs], options: list[SamplingOptions]) -> list[tuple[list[int], str]]:
    """The answers one after the other."""
    answers = []
    for inputs, choice in zip(prompts, options, strict=True):
        stream = engine.tokens(inputs, choice)
        answers.append((list(stream), stream.finish_reason))
    return answers


GREEDY = [SamplingOptions(max_new_tokens=3 + 2 * i) for i in range(9)]
MIXED = [
    SamplingOptions(max_new_tokens=9 - i % 4, temperature=1.3 * (i % 3), seed=i, repetition_penalty=1 + 0.2 * (i % 2))
    for i in range(9)
]


@pytest.mark.parametrize("options", [GREEDY, MIXED], ids=["greedy", "mixed"])
@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_a_batch_gives_the_ids_of_one_by_one(
    engine: Engine, prompts: list[VLMInputs], options: list[SamplingOptions], max_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rows_module, "_ROOM", 1)  # so that caches grow, and padding that nobody needs is dropped
    monkeypatch.setattr(prefill_module, "MAX_PREFILL_TOKENS", 100)
    for module in (rows_module, prefill_module):
        monkeypatch.setattr(module, "FIRST_ROOM", 4)
    rows = batch(engine, prompts, options, max_rows=max_rows)
    assert [(row.token_ids, row.finish_reason) for row in rows] == alone(engine, prompts, options)
    assert [row.prompt_tokens for row in rows] == [inputs.length for inputs in prompts]


def test_prompts_with_masks_of_their_own(engine: Engine, prompts: list[VLMInputs]) -> None:
    masked = []
    for inputs, hidden in ((prompts[1], 30), (prompts[4], 25), (prompts[2], 28)):
        mask = torch.ones(1, 1, inputs.length, inputs.length).tril()
        mask[..., hidden:, 2:hidden] = 0
        masked.append(replace(inputs, attention_mask=mask))
    chosen = [masked[0], prompts[3], *masked[1:]]
    options = [SamplingOptions(max_new_tokens=6)] * 4
    rows = batch(engine, chosen, options)
    expected = alone(engine, chosen, options)
    assert [row.token_ids for row in rows] == [ids for ids, _ in expected]
    assert rows[0].token_ids != next(iter(alone(engine, prompts[1:2], options[:1])))[0], "the mask had no effect"


def test_one_set_of_options_serves_all_and_the_end_token_ends_a_row(vlm: VLM, prompts: list[VLMInputs]) -> None:
    options = SamplingOptions(max_new_tokens=12)
    free = batch(Engine(vlm.model, eos_id=-5, max_length=256, device="cpu"), prompts, [options] * 9)
    assert all(len(row.token_ids) == 12 for row in free)
    end = free[1].token_ids[4]
    rows = batch(Engine(vlm.model, eos_id=end, max_length=256, device="cpu"), prompts, [options] * 9)
    for row, whole in zip(rows, free, strict=True):
        stop = whole.token_ids.index(end) if end in whole.token_ids else 12
        assert row.token_ids == whole.token_ids[:stop]
        assert row.finish_reason == ("stop" if stop < 12 else "length")
    assert {row.finish_reason for row in rows} == {"stop", "length"}


def test_rows_join_and_leave_between_steps(engine: Engine, prompts: list[VLMInputs]) -> None:
    options = [SamplingOptions(max_new_tokens=10)] * 9
    expected = alone(engine, prompts, options)
    given: dict[int, list[int]] = {}
    with engine.session(max_rows=4) as session:
        numbers = [session.add(Request(prompts[0], options[0]))]
        for step in range(60):
            if step % 2 and len(numbers) < 9:
                numbers.append(session.add(Request(prompts[len(numbers)], options[0])))
            for number, tokens in session.step().items():
                given.setdefault(number, []).extend(tokens)
            if step == 9:
                early = session.remove(numbers[3])
            if len(numbers) == 9 and not session.running:
                break
        assert set(session.finished) == set(numbers) - {numbers[3]}
        rows = {number: session.remove(number) for number in session.finished}
        assert session.finished == session.running == ()
        assert session.step() == {}
    assert early.finish_reason is None
    assert 0 < len(early.token_ids) < 10
    assert early.token_ids == expected[3][0][: len(early.token_ids)] == given[numbers[3]]
    for number, answer in zip(numbers, expected, strict=True):
        if number != numbers[3]:
            assert (rows[number].token_ids, rows[number].finish_reason) == answer
            assert given[number] == answer[0]


def test_no_more_rows_than_allowed_run_at_a_time(engine: Engine, prompts: list[VLMInputs]) -> None:
    with engine.session(max_rows=2) as session:
        numbers = [session.add(Request(inputs, SamplingOptions(max_new_tokens=2))) for inputs in prompts[:3]]
        assert session.step().keys() == set(numbers[:2])
        assert session.running == tuple(numbers)
        session.remove(numbers[0])
        assert session.step().keys() == set(numbers[1:])
        assert session[numbers[2]].token_ids and session.finished == (numbers[1],)


def test_a_waiting_row_may_be_removed(engine: Engine, prompts: list[VLMInputs]) -> None:
    with engine.session() as session:
        number = session.add(Request(prompts[0]))
        assert session.remove(number).token_ids == []
        assert session.step() == {}
        with pytest.raises(KeyError):
            session.remove(number)


def test_what_a_row_may_not_be(engine: Engine, prompts: list[VLMInputs]) -> None:
    both = replace(prompts[0], input_ids=prompts[0].input_ids.repeat(2, 1))
    with engine.session() as session:
        with pytest.raises(InputError, match="one prompt at a time; got a batch of 2"):
            session.add(Request(both))
        with pytest.raises(InputError, match="max_length is 3 with the answer"):
            session.add(Request(prompts[0], SamplingOptions(max_length=3)))
        assert session.running == ()
    with pytest.raises(InputError, match="max_rows is 0"):
        engine.session(max_rows=0)


def test_the_model_belongs_to_one_session(engine: Engine, prompts: list[VLMInputs]) -> None:
    with engine.session() as session:
        with pytest.raises(RuntimeError, match="generating already"):
            engine.session()
        with pytest.raises(RuntimeError, match="generating already"):
            next(engine.tokens(prompts[0]))
    for call in (session.step, lambda: session.add(Request(prompts[0]))):
        with pytest.raises(RuntimeError, match="session is closed"):
            call()
    session.close()


def test_a_row_whose_prompt_fails_leaves_the_others_alone(engine: Engine, prompts: list[VLMInputs]) -> None:
    options = [SamplingOptions(max_new_tokens=5)] * 3
    broken = replace(prompts[2], vision_image=prompts[2].vision_image[..., :-14])
    with engine.session() as session:
        good = [session.add(Request(prompts[1], options[0]))]
        bad = session.add(Request(broken, options[0]))
        good += [session.add(Request(inputs, options[0])) for inputs in prompts[4:6]]
        while session.running:
            session.step()
        row = session.remove(bad)
        assert "the vision tower takes pictures" in str(row.error)
        assert row.token_ids == [] and row.finish_reason is None
        found = [session.remove(number).token_ids for number in good]
    chosen = [prompts[i] for i in (1, 4, 5)]
    assert found == [ids for ids, _ in alone(engine, chosen, options)]
    with pytest.raises(type(row.error)):
        batch(engine, [*chosen, broken], [options[0]] * 4)


def test_logits_that_are_no_numbers_fail_one_row(engine: Engine, prompts: list[VLMInputs], vlm: VLM) -> None:
    head, calls = vlm.model.get_mixin("lm").lm_head, []

    def spoil(module: object, args: object, logits: torch.Tensor) -> torch.Tensor:
        calls.append(logits.shape[0])
        if logits.shape[0] == 2 and len(calls) == 3:
            logits = logits.clone()
            logits[1, 0, 5] = float("nan")
        return logits

    handle = head.register_forward_hook(spoil)
    try:
        with engine.session() as session:
            numbers = [session.add(Request(inputs, SamplingOptions(max_new_tokens=5))) for inputs in prompts[1:3]]
            while session.running:
                session.step()
            failed = [number for number in numbers if session[number].error]
            assert len(failed) == 1
            assert isinstance(session[failed[0]].error, ZooError)
            assert "not numbers (dtype float32)" in str(session[failed[0]].error)
            (other,) = set(numbers) - set(failed)
            assert len(session[other].token_ids) == 5
    finally:
        handle.remove()


def test_a_failure_while_decoding_closes_the_session(engine: Engine, prompts: list[VLMInputs], vlm: VLM) -> None:
    session: BatchSession = engine.session()
    session.add(Request(prompts[1]))
    session.step()

    def fail(*args: object) -> None:
        raise RuntimeError("no memory")

    handle = vlm.model.transformer.layers[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            session.step()
    finally:
        handle.remove()
    with pytest.raises(RuntimeError, match="session is closed"):
        session.step()


def test_prompts_alike_are_computed_together(engine: Engine, prompts: list[VLMInputs], vlm: VLM) -> None:
    """Vision tower and layers run once for all rows with a picture, and once for all without."""
    batches: list[int] = []
    handle = vlm.model.transformer.layers[0].register_forward_pre_hook(lambda m, args: batches.append(len(args[0])))
    try:
        with engine.session() as session:
            for inputs in prompts:
                session.add(Request(inputs, SamplingOptions(max_new_tokens=2)))
            session.step()
            assert sorted(batches) == [1, 2, 6]
            batches.clear()
            session.step()
            assert sorted(batches) == ([1, 2, 6] if vlm.processor.cross_image_size else [9])
    finally:
        handle.remove()


def test_generate_batch_gives_the_answers_of_generate(vlm: VLM) -> None:
    folder = GOLDEN / ("cogagent-mini" if vlm.processor.cross_image_size else "cogvlm-mini")
    images, queries = [folder / "image.png", None], ["What is it?", "Who are you?"]
    histories = [[("Is it red?", "No.")], []]
    found = vlm.generate_batch(images, queries, histories, "chat", max_new_tokens=6, max_rows=2)
    assert found == [
        vlm.generate(image, query, history, "chat", max_new_tokens=6)
        for image, query, history in zip(images, queries, histories, strict=True)
    ]
    assert vlm.generate_batch(iter(images), iter(queries), iter(histories), "chat", max_new_tokens=6) == found
    with pytest.raises(InputError, match="2 images, 1 queries and 1 histories"):
        vlm.generate_batch(images, queries[:1])
    for wrong, name in (
        (("a.png", ["?"]), "images is 'a.png'"),
        (([None], "?"), r"queries is '\?'"),
        ((None, ["?"]), "i"),
    ):
        with pytest.raises(InputError, match=rf"{name}.*it must be a list with one for each answer"):
            vlm.generate_batch(*wrong)
