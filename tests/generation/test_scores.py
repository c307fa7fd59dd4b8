"""Probabilities of tokens, answers and boxes: against one forward over prompt and answer, in every way to decode."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import whole_forward

from sat_models.errors import InputError
from sat_models.generation.answer import AnswerRow, GenerationResult, Request
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.scores import box_places, score_step
from sat_models.generation.steps import native
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.boxes import parse_boxes
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
QUERIES = ["What is it?", "Where is the red one?", "Describe it."]
LIMIT = 7


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini", "internvl-mini"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return load_pretrained(GOLDEN / request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image(vlm: VLM) -> Path:
    return next(Path(vlm.checkpoint.folder).glob("image*.png"))


def test_generate_batch_and_stream_equal_one_forward(vlm: VLM, image: Path) -> None:
    inputs = [vlm.processor(image, query) for query in QUERIES]
    how = {"max_new_tokens": LIMIT, "top_logprobs": 4}
    whole_forward.check(vlm, inputs[0], vlm.generate(image, QUERIES[0], **how), top=4)
    how["top_logprobs"] = np.int64(4)
    batch = vlm.generate_batch([image] * 3, QUERIES, max_rows=2, **how)
    for asked, result in zip(inputs, batch, strict=True):
        whole_forward.check(vlm, asked, result, top=4)
    pieces = vlm.stream(image, QUERIES[1], **how)
    text = "".join(pieces)
    assert pieces.result() == batch[1] and text == batch[1].text
    whole_forward.check(vlm, inputs[1], pieces.result(), top=4)
    plain = vlm.stream(image, QUERIES[1], max_new_tokens=LIMIT, logprobs=True).result()
    assert plain.top_logprobs is None and plain.logprobs == pytest.approx(batch[1].logprobs, abs=1e-5)
    assert vlm.stream(image, QUERIES[1], max_new_tokens=LIMIT).result().logprobs is None


def test_what_is_drawn_has_the_model_s_own_probability(vlm: VLM, image: Path) -> None:
    """Temperature, top_k and a penalty choose the token; its score is that of the plain distribution."""
    drawn = {"temperature": 1.7, "top_k": 50, "seed": 3, "repetition_penalty": 1.3, "max_new_tokens": LIMIT}
    result = vlm.generate(image, QUERIES[0], **drawn, top_logprobs=2)
    assert result.token_ids != vlm.generate(image, QUERIES[0], max_new_tokens=LIMIT).token_ids
    whole_forward.check(vlm, vlm.processor(image, QUERIES[0]), result, top=2)


def test_rows_that_join_later_in_pieces_and_with_a_kept_prompt(vlm: VLM, image: Path) -> None:
    """Each asks for another number of alternatives, one for no scores at all."""
    engine = vlm.engine(keep_prefixes=2)
    options = SamplingOptions(max_new_tokens=LIMIT)
    asked = [vlm.processor(image, query) for query in (QUERIES[0], *QUERIES)]
    requests = [
        Request(inputs, options, logprobs=n != 2, top_logprobs=(0, 3, 0, 1)[n]) for n, inputs in enumerate(asked)
    ]
    results = [engine.answer(requests[0])]
    with engine.session(max_rows=4, piece=5) as session:
        numbers = []
        for request in requests[1:]:
            numbers.append(session.add(request))
            session.step()
        while session.running:
            session.step()
        results += [session.remove(number).result() for number in numbers]
    assert results[2].logprobs is None and results[2].score is None and results[2].box_scores is None
    for number, top in ((0, 0), (1, 3), (3, 1)):
        whole_forward.check(vlm, asked[number], results[number], top=top)


@pytest.mark.parametrize("way", ["KernelStep", "TokenStep", "hooks"])
def test_every_way_of_a_step(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "KernelStep" and native.load() is None:
        pytest.skip("no C compiler with OpenMP, so no kernels")
    if way != "KernelStep":
        monkeypatch.setattr(KernelStep, "of", lambda *_: None)
    if way == "hooks":
        monkeypatch.setattr(TokenStep, "of", lambda *_: None)
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")
    with vlm.engine().occupied() as stepper:
        assert stepper.way == way
    image = GOLDEN / "cogvlm-mini" / "image.png"
    results = vlm.generate_batch([image] * 3, QUERIES, max_new_tokens=LIMIT, top_logprobs=3)
    for query, result in zip(QUERIES, results, strict=True):
        whole_forward.check(vlm, vlm.processor(image, query), result, top=3)


def test_no_row_of_the_vocabulary_is_kept(vlm: VLM, image: Path) -> None:
    """What lives on between two steps does not grow by a vocabulary a token."""

    def large() -> int:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        return sum(each.untyped_storage().nbytes() >= vlm.config.vocab_size * each.element_size() for each in found)

    request = Request(
        vlm.processor(image, QUERIES[0]), SamplingOptions(max_new_tokens=20), logprobs=True, top_logprobs=20
    )
    with vlm.engine().session(max_rows=2) as session:
        session.add(request)
        for _ in range(3):
            session.step()
        before = large()
        for _ in range(12):
            session.step()
        assert large() <= before + 2


def test_scores_cost_nothing_where_nobody_asks(vlm: VLM, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sat_models.generation.session.score_step", lambda *_: pytest.fail("scored"))
    result = vlm.engine().answer(Request(vlm.processor(image, QUERIES[0]), SamplingOptions(max_new_tokens=3)))
    assert result.logprobs is None and result.token_scores == []


def test_known_numbers() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5), -math.inf], [math.nan] * 4, [3.0] * 4])
    step = score_step(logits, torch.tensor([1, -1, 0]), [0, 2], top=9)
    torch.testing.assert_close(step.chosen.exp(), torch.tensor([0.25, 0.25]))
    assert step.ids[0].tolist() == [2, 1, 0, 3] and step.top[0, 3] == -math.inf
    torch.testing.assert_close(step.top[0, :3].exp(), torch.tensor([0.625, 0.25, 0.125]))


class Words:
    """Token n is the n-th of some words; one that begins with "~" has no text until the next."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words, self._held = words, ""

    def push(self, token: int) -> str:
        word = self._held + self._words[token].lstrip("~")
        self._held = word if self._words[token].startswith("~") else ""
        return "" if self._held else word

    def flush(self) -> str:
        return self._held


def said(words: Sequence[str], probabilities: Sequence[float], **request: Any) -> GenerationResult:
    """An answer of these words with these probabilities."""
    row = AnswerRow(
        Request(SimpleNamespace(length=3), logprobs=True, **request), budget=99, end_ids=[-1], decoder=Words(words)
    )
    for token, share in [*enumerate(probabilities), (-1, 0.5)]:
        row.scores.note(score_step(torch.tensor([[math.log(share), math.log(1 - share)]]), torch.tensor([0]), [0]), 0)
        row.take(token)
        if row.over:
            break
    return row.result()


def test_an_answer_and_its_boxes_have_the_probability_of_their_tokens() -> None:
    words = ["A cat", " [[", "010", ",", "020", ",030,040", "]]", " and", " [[", "1,2,3", "]] [[5,6,", "7,8]]"]
    shares = [0.5, 0.9, 0.8, 1 - 1e-7, 0.5, 0.5, 0.9, 0.9, 0.9, 0.1, 0.5, 0.25]
    answer = said(words, shares)
    assert answer.score == pytest.approx(math.prod(shares), rel=1e-4)
    boxes = parse_boxes(answer.text, 100, 100, use_spacy=False)
    assert [box.normalized for box in boxes] == [(10, 20, 30, 40), (5, 6, 7, 8)], "three numbers are no box"
    assert answer.box_scores == pytest.approx([0.2 ** (1 / 4), 0.125 ** (1 / 2)], rel=1e-4)
    assert answer.logprobs_between(0, 5) == pytest.approx([math.log(0.5)])
    assert said([], []).score == 0.0, "who says nothing is sure of nothing"
    assert [score.token_id for score in answer.token_scores] == answer.token_ids


@pytest.mark.parametrize("name", BOX_FORMS)
def test_boxes_in_every_form(name: str) -> None:
    from sat_models.processing.boxes import format_boxes

    text = format_boxes([(10, 20, 30, 40), (50, 60, 70, 80)], 100, 100, BOX_FORMS[name])
    answer = said(text, [0.9] * len(text))
    boxes = parse_boxes(text, 100, 100, use_spacy=False, form=BOX_FORMS[name])
    assert len(boxes) == len(answer.box_scores) == 2
    assert answer.box_scores == pytest.approx([0.9, 0.9])
    for start, end in box_places(text):
        assert len(answer.logprobs_between(start, end)) == end - start and text[start:end].strip("[]{}<>") != ""


@pytest.mark.parametrize(
    ("words", "request_", "text", "ends"),
    [
        (["a", "~b", "c"], {}, "abc", [1, 1, 3]),
        (["ab", "cd#", "#x"], {"stops": ("##",)}, "abcd", [2, 4]),
        (["ab", " ", "##"], {"stops": ("##",)}, "ab ", [2, 3]),
        (["\n", "ab", " "], {"lead": "\n"}, "ab ", [0, 2, 3]),
        ([" ab", " ", "cd", " "], {"stripped": True}, "ab cd", [2, 2, 5, 5]),
        (["a", "~b"], {}, "ab", [1, 2]),
        ([], {}, "", []),
    ],
)
def test_where_the_text_of_a_token_ends(words: list[str], request_: dict[str, Any], text: str, ends: list[int]) -> None:
    answer = said(words, [0.5] * len(words), **request_)
    assert (answer.text, answer.text_ends) == (text, ends)
    assert len(answer.logprobs) == len(answer.token_ids) == len(ends)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"top_logprobs": 21}, "from 0 to 20"), ({"top_logprobs": -1}, "is -1"), ({"top_logprobs": 1.5}, "is 1.5"),
        ({"top_logprobs": True}, "is True"), ({"top_logprobs": "3"}, "is '3'"),
    ],
)  # fmt: skip
def test_bad_numbers_of_alternatives(vlm: VLM, how: dict[str, Any], message: str) -> None:
    for door in (vlm.generate, vlm.stream, lambda image, query, **how: vlm.generate_batch([image], [query], **how)):
        with pytest.raises(InputError, match=message):
            door(None, "Hi", **how)
    with pytest.raises(InputError, match="without logprobs"):
        Request(vlm.processor(None, "Hi"), top_logprobs=2)
