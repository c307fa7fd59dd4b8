"""Prompts that are computed in pieces while other rows are decoded: the same answers, and nobody waits long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sat_models.errors import InputError
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.session import BatchSession
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).parents[1] / "golden"
IN_PIECES = (
    "cogvlm-mini", "cogvlm2-mini", "glm4v-mini", "internvl-mini", "internvl2-mini", "internvl3-mini", "xcomposer2-mini",
    "xcomposer2-4khd-mini",
)  # fmt: skip
OPTIONS = SamplingOptions(max_new_tokens=12)
LONG = SamplingOptions(max_new_tokens=600)


@pytest.fixture(scope="module", params=IN_PIECES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cogvlm() -> VLM:
    return load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")


def engine_of(vlm: VLM, **how: Any) -> Engine:
    return Engine(vlm.model, eos_id=-5, max_length=2048, device="cpu", **how)


def asked(vlm: VLM, text: str, *, image: bool = True) -> Any:
    folder = vlm.checkpoint.step_folder
    file = next(parent / "image.png" for parent in (folder, *folder.parents) if (parent / "image.png").exists())
    return vlm.processor(file if image else None, text)


def busy(session: BatchSession, vlm: VLM) -> int:
    """A row that is decoded."""
    number = session.add(Request(asked(vlm, "What is it?", image=False), LONG))
    while number not in session.step():
        pass
    return number


@pytest.mark.parametrize("piece", [1, 7, 15])
def test_answers_are_those_of_whole_prompts(vlm: VLM, piece: int) -> None:
    prompt = asked(vlm, "What is that?")
    wanted = engine_of(vlm).answer(Request(prompt, OPTIONS)).token_ids
    stream = engine_of(vlm).answer(Request(asked(vlm, "What is it?", image=False), LONG)).token_ids
    with engine_of(vlm).session(max_rows=3, piece=piece) as session:
        first = busy(session, vlm)
        number, steps = session.add(Request(prompt, OPTIONS)), 0
        while number not in (given := session.step()):
            assert first in given, "the row that is decoded goes on"
            steps += 1
        assert steps == -(-prompt.length // piece), "the images, then one piece at a step"
        while session.running:
            session.step()
        assert session.remove(number).token_ids == wanted
        assert session.remove(first).token_ids == stream


def test_short_prompts_pass_long_ones_and_all_come_in_their_order(cogvlm: VLM) -> None:
    long, short = asked(cogvlm, "What is that, and where does it stand?"), asked(cogvlm, "Yes?", image=False)
    assert short.length < long.length
    with engine_of(cogvlm).session(max_rows=8, piece=short.length) as session:
        for _ in range(4):
            busy(session, cogvlm)
        numbers = [session.add(Request(prompt, OPTIONS)) for prompt in (long, long, short)]
        began: list[int] = []
        while len(began) < 3:
            began += [number for number in session.step() if number in numbers and number not in began]
        assert began == [numbers[2], numbers[0], numbers[1]]


def test_where_more_wait_than_are_decoded_prompts_are_computed_whole(cogvlm: VLM) -> None:
    long = asked(cogvlm, "What is that?")
    with engine_of(cogvlm).session(max_rows=8, piece=5) as session:
        busy(session, cogvlm)
        numbers = {session.add(Request(long, OPTIONS)) for _ in range(2)}
        assert numbers <= session.step().keys()
        first = session.add(Request(long, OPTIONS))
        assert first not in session.step()
        others = {session.add(Request(long, OPTIONS)) for _ in range(4)}
        assert {first, *others} <= session.step().keys(), "what was begun is finished, too"


def test_a_prompt_may_leave_while_it_is_computed(cogvlm: VLM) -> None:
    long = asked(cogvlm, "What is that?")
    wanted = engine_of(cogvlm).answer(Request(long, OPTIONS)).token_ids
    with engine_of(cogvlm).session(max_rows=3, piece=5) as session:
        first = busy(session, cogvlm)
        number = session.add(Request(long, OPTIONS))
        session.step()
        session.step()
        session.remove(number)
        assert session.step().keys() == {first} == set(session.running)
        again = session.add(Request(long, OPTIONS))
        while session.running:
            session.step()
        assert session.remove(again).token_ids == wanted


def test_a_prompt_that_fails_leaves_the_others_alone(cogvlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(cogvlm).session(max_rows=3, piece=5) as session:
        first = busy(session, cogvlm)
        number = session.add(Request(asked(cogvlm, "What is that?"), OPTIONS))
        with monkeypatch.context() as patch:
            patch.setattr(cogvlm.model.mixins["eva"], "encode_images", lambda pixels: pixels.no_such_thing)
            assert session.step().keys() == {first}
        assert session.finished == (number,)
        with pytest.raises(AttributeError, match="no_such_thing"):
            session.remove(number).result()
        assert session.step().keys() == {first}


def test_no_memory_for_one_prompt_is_its_own_failure(cogvlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(cogvlm)
    with engine.session(max_rows=3, piece=5) as session:
        first = busy(session, cogvlm)
        number = session.add(Request(asked(cogvlm, "What is that?"), OPTIONS))
        with monkeypatch.context() as patch:
            patch.setattr(engine.prefixes, "start", lambda *_: 1 / 0)
            assert session.step().keys() == {first}
        assert session.finished == (number,) and isinstance(session[number].error, ZeroDivisionError)
        assert session.step().keys() == {first}


def test_what_is_kept_is_not_computed_again(cogvlm: VLM) -> None:
    engine = engine_of(cogvlm, keep_prefixes=4)
    engine.answer(Request(asked(cogvlm, "What is that?"), OPTIONS))
    wanted = engine_of(cogvlm).answer(Request(asked(cogvlm, "What is there to see, and where is it?"), OPTIONS))
    with engine.session(max_rows=3, piece=3) as session:
        busy(session, cogvlm)
        number = session.add(Request(asked(cogvlm, "What is there to see, and where is it?"), OPTIONS))
        steps = 1
        while number not in session.step():
            steps += 1
        while not session[number].over:
            session.step()
        row = session.remove(number)
    assert row.token_ids == wanted.token_ids and row.cached_tokens > 10
    assert steps == -(-(row.prompt_tokens - row.cached_tokens) // 3)


def test_a_prompt_that_is_read_both_ways_is_computed_whole() -> None:
    vlm = load_pretrained(GOLDEN / "cogagent-mini", device="cpu", dtype="float32")
    with engine_of(vlm).session(max_rows=3, piece=5) as session:
        busy(session, vlm)
        number = session.add(Request(asked(vlm, "What is that?"), OPTIONS))
        assert number in session.step()


def test_a_piece_has_a_token(cogvlm: VLM) -> None:
    with pytest.raises(InputError, match="piece is 0"):
        engine_of(cogvlm).session(piece=0)


def test_features_that_do_not_fit_the_slots_are_refused(cogvlm: VLM) -> None:
    ids, mask = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[0, 1, 1, 0]])
    features = torch.zeros(3, cogvlm.config.hidden_size)
    with pytest.raises(ValueError, match=r"marks 2 positions, but 1 image\(s\) of 3"):
        cogvlm.model(ids, image_embed_mask=mask, image_features=features)
