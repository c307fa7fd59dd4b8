"""Kept prefixes: the next turn of a chat is not computed from the start, and answers as if it were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.prefixes import PrefixCache, _Prompt
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.inputs import VLMInputs
from sat_models.serving.chat import ChatSession
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OPTIONS = SamplingOptions(max_new_tokens=8)


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    """Each miniature in turn."""
    return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")


@pytest.fixture
def image(vlm: VLM) -> Path:
    return GOLDEN / ("cogagent-mini" if vlm.processor.cross_image_size else "cogvlm-mini") / "image.png"


def make_engine(vlm: VLM, keep: int = 1, most: int | None = None) -> Engine:
    return Engine(vlm.model, eos_id=-5, max_length=256, device="cpu", keep_prefixes=keep, prefix_bytes=most)


@contextmanager
def counted(vlm: VLM) -> Iterator[dict[str, list[int]]]:
    """Tokens of each forward of the language model, and pictures of each run of the tower."""
    seen: dict[str, list[int]] = {"tokens": [], "pictures": []}
    hooks = [
        vlm.model.transformer.layers[0].register_forward_pre_hook(
            lambda module, args: seen["tokens"].append(args[0].shape[1])
        ),
        vlm.model.get_submodule("mixins.eva.vit_model").register_forward_pre_hook(
            lambda module, args: seen["pictures"].append(len(args[0]))
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def fresh(vlm: VLM, inputs: VLMInputs) -> list[int]:
    """The answer without anything kept."""
    return list(make_engine(vlm, keep=0).tokens(inputs, OPTIONS))


def test_a_chat_computes_its_picture_once_and_answers_as_without(vlm: VLM, image: Path) -> None:
    engine, history = make_engine(vlm), []
    with counted(vlm) as seen:
        for turn, question in enumerate(["What is it?", "Where?", "How many are there?"]):
            inputs = vlm.processor(image, question, history=history, version="chat")
            stream = engine.tokens(inputs, OPTIONS)
            before = len(seen["tokens"])
            answer = list(stream)
            assert stream.cached_tokens == (0 if turn == 0 else pytest.approx(inputs.length, abs=60))
            assert seen["tokens"][before] == inputs.length - stream.cached_tokens
            history.append((question, vlm.processor.tokenizer.decode(answer)))
            with_all = len(seen["pictures"])
            assert answer == fresh(vlm, inputs)
            assert len(seen["pictures"]) == with_all + 1
            seen["pictures"].pop()
    assert seen["pictures"] == [1]
    assert stream.cached_tokens > inputs.image_embed_mask.sum()


def test_the_same_prompt_again_needs_one_token(vlm: VLM, image: Path) -> None:
    engine, inputs = make_engine(vlm), vlm.processor(image, "What is it?")
    first = list(engine.tokens(inputs, OPTIONS))
    with counted(vlm) as seen:
        stream = engine.tokens(inputs, OPTIONS)
        assert list(stream) == first
    assert stream.cached_tokens == inputs.length - 1
    assert seen == {"tokens": [1] * 8, "pictures": []}


@pytest.mark.parametrize("other", ["picture", "no picture", "two pictures"])
def test_another_picture_is_computed(vlm: VLM, image: Path, other: str) -> None:
    engine = make_engine(vlm)
    list(engine.tokens(vlm.processor(image, "What is it?"), OPTIONS))
    images = {"picture": image, "no picture": None, "two pictures": [image, image]}[other]
    inputs = vlm.processor(images, "What is it?")
    if other == "picture":
        inputs.vision_image = inputs.vision_image.flip(-1)
    stream = engine.tokens(inputs, OPTIONS)
    assert list(stream) == fresh(vlm, inputs)
    assert stream.cached_tokens == 0


def test_several_conversations_have_a_cache_each(vlm: VLM, image: Path) -> None:
    engine = make_engine(vlm, keep=2)
    one, two = vlm.processor(image, "What is it?"), vlm.processor(None, "Who are you, tell me?")
    for inputs, cached in ((one, 0), (two, 0), (one, one.length - 1), (two, two.length - 1)):
        stream = engine.tokens(inputs, OPTIONS)
        list(stream)
        assert stream.cached_tokens == cached
    engine.prefixes.clear()
    stream = engine.tokens(one, OPTIONS)
    assert list(stream) == fresh(vlm, one)
    assert stream.cached_tokens == 0


def test_a_longer_answer_gets_more_room(vlm: VLM, image: Path) -> None:
    engine, inputs = make_engine(vlm), vlm.processor(image, "What is it?")
    list(engine.tokens(inputs, SamplingOptions(max_new_tokens=2)))
    stream = engine.tokens(inputs, OPTIONS)
    assert list(stream) == fresh(vlm, inputs)
    assert stream.cached_tokens == inputs.length - 1


def test_a_closed_answer_is_kept_and_a_failed_one_is_not(vlm: VLM, image: Path) -> None:
    engine, inputs = make_engine(vlm), vlm.processor(image, "What is it?")
    stream = engine.tokens(inputs, OPTIONS)
    start = [next(stream), next(stream), next(stream)]
    stream.close()
    again = engine.tokens(inputs, OPTIONS)
    assert list(again)[:3] == start
    assert again.cached_tokens == inputs.length - 1

    def fail(*args: object) -> None:
        raise RuntimeError("no memory")

    stream = engine.tokens(inputs, OPTIONS)
    next(stream)
    handle = vlm.model.transformer.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        next(stream)
    handle.remove()
    stream = engine.tokens(inputs, OPTIONS)
    assert list(stream) == fresh(vlm, inputs)
    assert stream.cached_tokens == 0


def test_a_prompt_with_a_mask_of_its_own_is_neither_kept_nor_shortened(vlm: VLM) -> None:
    engine, inputs = make_engine(vlm), vlm.processor(None, "Who are you?")
    inputs.attention_mask = torch.ones(1, 1, inputs.length, inputs.length).tril()
    for _ in range(2):
        stream = engine.tokens(inputs, OPTIONS)
        assert list(stream) == fresh(vlm, inputs)
        assert stream.cached_tokens == 0


def test_a_chat_session_keeps_its_picture(vlm: VLM, image: Path) -> None:
    chat = ChatSession(vlm, options=OPTIONS, version="chat")
    chat.set_image(image)
    with counted(vlm) as seen:
        first = chat.ask("What is it?")
        second = chat.ask("Where?")
    assert seen["pictures"] == [1]
    history = [("What is it?", first.text)]
    assert second.token_ids == vlm.generate(image, "Where?", history, "chat", max_new_tokens=8).token_ids


def flipped(inputs: VLMInputs) -> VLMInputs:
    """The same question about another picture."""
    cross = inputs.cross_image
    return replace(
        inputs, vision_image=inputs.vision_image.flip(-1), cross_image=None if cross is None else cross.flip(-1)
    )


def test_clients_with_pictures_of_their_own_share_a_session(vlm: VLM, image: Path) -> None:
    """Questions about two pictures by turns, while another answer runs: each picture is looked at once."""
    engine = make_engine(vlm, keep=8)
    asked = [vlm.processor(image, query, version="chat") for query in ("What is it?", "Where?", "How many are there?")]
    asked = [inputs for one in asked for inputs in (one, flipped(one))]
    long = vlm.processor(None, "Hello, who are you?", version="chat")
    alone = [fresh(vlm, inputs) for inputs in asked]
    expected = list(make_engine(vlm, keep=0).tokens(long, SamplingOptions(max_new_tokens=60)))
    with counted(vlm) as seen, engine.session(max_rows=3) as session:
        other = session.add(Request(long, SamplingOptions(max_new_tokens=60)))
        found, cached = [], []
        for inputs in asked:
            number = session.add(Request(inputs, OPTIONS))
            while not session[number].over:
                session.step()
            cached.append(session[number].cached_tokens)
            found.append(session.remove(number).result().token_ids)
        while not session[other].over:
            session.step()
        assert session.remove(other).result().token_ids == expected
    assert found == alone
    assert seen["pictures"] == [1, 1]
    pixels = int(asked[0].image_embed_mask.sum())
    assert cached[:2] == [0, 0] and min(cached[2:]) > pixels


def test_several_answers_may_begin_alike_at_the_same_time(vlm: VLM, image: Path) -> None:
    engine, inputs = make_engine(vlm, keep=2), vlm.processor(image, "What is it?")
    first = engine.answer(Request(inputs, OPTIONS))
    more = [replace(OPTIONS, temperature=1.0, seed=seed) for seed in range(3)]
    with counted(vlm) as seen:
        results = engine.answers([Request(inputs, options) for options in (OPTIONS, *more)])
    assert [result.cached_tokens for result in results] == [inputs.length - 1] * 4
    assert results[0].token_ids == first.token_ids
    assert [result.token_ids for result in results[1:]] == [
        list(make_engine(vlm, keep=0).tokens(inputs, options)) for options in more
    ]
    assert seen["pictures"] == []


def test_what_says_nothing_new_is_not_kept_twice(vlm: VLM, image: Path) -> None:
    engine, inputs = make_engine(vlm, keep=3), vlm.processor(image, "What is it?")
    for most in (8, 3, 12):
        engine.answer(Request(inputs, SamplingOptions(max_new_tokens=most)))
        assert len(engine.prefixes) == 1
    engine.answer(Request(flipped(inputs), OPTIONS))
    assert len(engine.prefixes) == 2


def test_memory_is_bounded_and_the_oldest_goes_first(vlm: VLM, image: Path) -> None:
    one = vlm.processor(image, "What is it?")
    engine = make_engine(vlm, keep=9)
    engine.answer(Request(one, OPTIONS))
    size = engine.prefixes.bytes
    keys = one.length * 2 * 4 * vlm.config.num_layers * vlm.config.hidden_size
    assert size > keys, "keys and values, fp32"
    engine = make_engine(vlm, keep=9, most=int(2.5 * size))
    prompts = [replace(one, vision_image=one.vision_image.roll(shift, dims=-1)) for shift in range(4)]
    for inputs in prompts:
        engine.answer(Request(inputs, OPTIONS))
        assert engine.prefixes.bytes <= 2.5 * size
    assert [engine.prefixes.find(inputs).shared > 0 for inputs in prompts] == [False, False, True, True]
    engine.answer(Request(prompts[2], OPTIONS))
    engine.answer(Request(prompts[0], OPTIONS))
    assert [engine.prefixes.find(inputs).shared > 0 for inputs in prompts] == [True, False, True, False], (
        "used lately, kept"
    )
    small = make_engine(vlm, keep=9, most=size - 1)
    small.answer(Request(one, OPTIONS))
    assert len(small.prefixes) == 0
    engine.prefixes.clear()
    assert engine.prefixes.bytes == 0


def test_a_stop_string_keeps_what_was_computed(vlm: VLM, image: Path) -> None:
    """The tokens of a stop string are in the cache, though not in the answer: the next prompt goes on before them."""
    engine = vlm.engine(keep_prefixes=1)
    whole = vlm.generate(image, "What is it?", max_new_tokens=8, version="chat")
    text = vlm.processor.tokenizer.decode(whole.token_ids[:5])
    stop = text[len(vlm.processor.tokenizer.decode(whole.token_ids[:3])) :]
    request = vlm.request(image, "What is it?", (), "chat", OPTIONS, stops=[stop])
    answer = engine.answer(request)
    assert answer.finish_reason == "stop" and whole.text.startswith(answer.text) and len(answer.token_ids) < 5
    again = engine.answer(request)
    assert (again.text, again.cached_tokens) == (answer.text, request.inputs.length - 1)
    history = [("What is it?", answer.text)]
    following = engine.answer(vlm.request(image, "Where?", history, "chat", OPTIONS))
    assert following.cached_tokens >= request.inputs.length - 2, "words at the border may be cut otherwise"
    assert following.token_ids == vlm.generate(image, "Where?", history, "chat", max_new_tokens=8).token_ids


@pytest.mark.parametrize("keep", [1, 4])
def test_a_prompt_is_looked_up_once(vlm: VLM, image: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is described once and held against what is kept once, though grouping, starting and keeping all ask."""
    engine, described, looked_up = make_engine(vlm, keep=keep), [], []
    of, find = _Prompt.of, PrefixCache._find
    monkeypatch.setattr(_Prompt, "of", lambda inputs: described.append(inputs) or of(inputs))
    monkeypatch.setattr(PrefixCache, "_find", lambda cache, prompt: looked_up.append(prompt) or find(cache, prompt))
    for query in ("What is it?", "Where?", "Who is it?"):
        list(engine.tokens(vlm.processor(image, query, version="chat"), OPTIONS))
    assert len(described) == len(looked_up) == 3 and len(engine.prefixes) == min(keep, 3)


def test_two_that_begin_alike_share_the_only_one_that_is_kept(vlm: VLM, image: Path) -> None:
    """The first takes it over; the second, which was looked up at the same time, is computed from its start."""
    engine = make_engine(vlm, keep=1)
    prompts = [vlm.processor(image, query, version="chat") for query in ("What is it?", "Where?", "Who is it?")]
    list(engine.tokens(prompts[0], OPTIONS))
    with engine.session(max_rows=2) as session:
        numbers = [session.add(Request(inputs, OPTIONS)) for inputs in prompts[1:]]
        session.step()
        cached = [session[number].cached_tokens for number in numbers]
        while session.running:
            session.step()
        found = [session.remove(number).result().token_ids for number in numbers]
    assert cached[0] > 0 and cached[1] == 0
    alone = make_engine(vlm, keep=0)
    assert found == [alone.answer(Request(inputs, OPTIONS)).token_ids for inputs in prompts[1:]]
