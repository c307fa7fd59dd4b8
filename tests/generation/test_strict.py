"""Answers of a form that was asked for, on random weights: whole, or said not to be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from whole_forward import check

from sat_models.errors import InputError, ZooError
from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps.choose import Stepper
from sat_models.generation.strict.guide import Guide
from sat_models.zoo import Constraint, load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
IMAGE = GOLDEN / "cogvlm-mini" / "image.png"
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"enum": ["yes", "no"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "objects": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 8},
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                    "note": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Note"}]},
                },
                "required": ["name", "score", "note"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["answer", "count", "objects"],
    "additionalProperties": False,
    "$defs": {"Note": {"type": "string", "pattern": "^[a-z]{2,6}$"}},
}
WILD = SamplingOptions(temperature=2.0, max_new_tokens=200)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    """Random weights with a tokenizer of 480 pieces, bytes among them."""
    return load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")


@pytest.fixture
def ask(vlm: VLM) -> Callable[..., Request]:
    def ask(constraint: Constraint | None, options: SamplingOptions = WILD, **how: Any) -> Request:
        return vlm.request(IMAGE, "What is it?", (), None, options, constraint=constraint, **how)

    return ask


def seeded(request: Request, count: int) -> list[Request]:
    return [replace(request, options=replace(request.options, seed=seed)) for seed in range(count)]


def test_two_hundred_wild_answers_fit_their_schema(vlm: VLM, ask: Callable[..., Request]) -> None:
    options = replace(WILD, max_new_tokens=400)
    answers = vlm.engine().answers(seeded(ask(Constraint.json(SCHEMA), options), 200), max_rows=50)
    assert {(answer.finish_reason, answer.incomplete) for answer in answers} == {("stop", None)}
    for answer in answers:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in answers}) > 190, "and they are drawn, not said by the grammar"


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "string", "maxLength": 5},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        {"type": "object", "properties": {"é\n": {"const": None}}, "required": ["é\n"], "additionalProperties": False},
        {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": {"enum": [1, 2]}},
        {"type": "number", "multipleOf": 0.25, "exclusiveMinimum": -3, "maximum": 40},
        {"type": "string", "format": "date"},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    ],
    ids=lambda schema: str(schema)[:30],
)
def test_what_is_said_to_be_whole_is_valid(vlm: VLM, ask: Callable[..., Request], schema: Any) -> None:
    for answer in vlm.engine().answers(seeded(ask(Constraint.json(schema)), 12)):
        if answer.incomplete is None:
            jsonschema.validate(json.loads(answer.text), schema)
        else:
            assert answer.finish_reason == "length"


def test_an_answer_that_is_cut_off_says_so(vlm: VLM) -> None:
    for limit in (1, 5, 12):
        answer = vlm.generate(IMAGE, "What?", constraint=Constraint.json(SCHEMA), max_new_tokens=limit, seed=0)
        assert answer.finish_reason == "length" and len(answer.token_ids) == limit == len(answer.logprobs)
        assert (
            "not whole" in answer.incomplete
            and "its JSON schema" in answer.incomplete
            and "max_new_tokens" in answer.incomplete
        )
    whole = vlm.generate(IMAGE, "What?", constraint=Constraint.regex("[a-z]+"), max_new_tokens=3)
    assert whole.finish_reason == "length" and whole.incomplete is None, "it fits as it stands"
    exact = vlm.generate(IMAGE, "What?", constraint=Constraint.choice([whole.text]), max_new_tokens=3)
    assert exact.finish_reason == "stop" and exact.text == whole.text, "its last token is the last one allowed"


@pytest.mark.parametrize("pattern", ["[0-9]{2,3} (cm|mm)", '^a/b"\\\\?$', "(?i)yes|no", "é+ ?[一-三]", "x\\d\nz"])
def test_a_regex_matches_the_whole_answer(vlm: VLM, ask: Callable[..., Request], pattern: str) -> None:
    for answer in vlm.engine().answers(seeded(ask(Constraint.regex(pattern)), 20)):
        assert answer.incomplete is not None or re.fullmatch(pattern, answer.text), answer.text


def test_choices_come_whole_and_each_can_come(vlm: VLM, ask: Callable[..., Request]) -> None:
    texts = ["a", "ab", "a big dog", "猫", 'it\'s "x"', "no"]
    answers = vlm.engine().answers(seeded(ask(Constraint.choice(texts)), 80), max_rows=40)
    assert {answer.text for answer in answers} == set(texts)
    assert {answer.finish_reason for answer in answers} == {"stop"}
    short = ask(Constraint.choice(texts), replace(WILD, max_new_tokens=2))
    few = {answer.text for answer in vlm.engine().answers(seeded(short, 30))}
    assert few <= {"a", "ab", "no"}, "what does not fit into the limit is not begun"


def test_rows_of_one_batch_have_constraints_of_their_own(vlm: VLM, ask: Callable[..., Request]) -> None:
    asked = [
        ask(None), ask(Constraint.json(SCHEMA)), ask(Constraint.choice(["left", "right"])), ask(Constraint.boxes()),
        ask(None, SamplingOptions(max_new_tokens=30)), ask(Constraint.regex("[ab]{9}"), SamplingOptions(top_k=1)),
        ask(Constraint.boxes(in_text=True)), ask(Constraint.json(SCHEMA), replace(WILD, top_k=5, top_p=0.7)),
        ask(Constraint.json(SCHEMA), replace(WILD, repetition_penalty=1.3)),
    ]  # fmt: skip
    asked = [replace(each, options=replace(each.options, seed=number)) for number, each in enumerate(asked)]
    engine = vlm.engine()
    alone = [engine.answer(each) for each in asked]
    assert engine.answers(asked, max_rows=4) == alone
    assert ["".join(engine.stream(each).pieces()) for each in asked] == [answer.text for answer in alone]
    for number in (1, 7, 8):
        jsonschema.validate(json.loads(alone[number].text), SCHEMA)


def test_a_batch_takes_a_list_of_constraints(vlm: VLM) -> None:
    forms = [Constraint.choice(["one"]), None, Constraint.boxes()]
    first, free, boxes = vlm.generate_batch([IMAGE] * 3, ["?"] * 3, constraint=forms, max_new_tokens=30)
    assert first.text == "one" and vlm.read(boxes.text, (100, 100)).boxes
    assert free == vlm.generate(IMAGE, "?", max_new_tokens=30)
    with pytest.raises(InputError, match="2 constraints and 3 queries"):
        vlm.generate_batch([IMAGE] * 3, ["?"] * 3, constraint=forms[:2])


def test_tokens_that_must_follow_are_fed_in_one_forward(
    vlm: VLM, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    steps = {name: getattr(Stepper, name) for name in ("__call__", "together")}
    for name, step in steps.items():

        def counted(self: Stepper, ids: torch.Tensor, *args: Any, step: Any = step, **how: Any) -> torch.Tensor:
            fed.append(ids.shape[-1] if ids.dim() == 2 else 1)
            return step(self, ids, *args, **how)

        monkeypatch.setattr(Stepper, name, counted)
    engine, asked = vlm.engine(), ask(Constraint.json(SCHEMA), replace(WILD, seed=1), logprobs=True)
    together = engine.answer(asked)
    steps_taken, most = len(fed), max(fed)
    monkeypatch.setattr(Stepper, "worth", lambda self, rows: range(0))
    fed.clear()
    one_by_one = engine.answer(asked)
    assert together == one_by_one and set(fed) == {1}
    assert steps_taken < 0.7 * len(fed) and most > 5
    torch.testing.assert_close(torch.tensor(together.logprobs), torch.tensor(one_by_one.logprobs), rtol=0, atol=1e-4)


def test_scores_are_those_of_the_whole_distribution(vlm: VLM, ask: Callable[..., Request]) -> None:
    asked = ask(Constraint.json(SCHEMA), replace(WILD, seed=2), logprobs=True, top_logprobs=2)
    answer = vlm.engine().answer(asked)
    check(vlm, asked.inputs, answer, top=2)


def test_a_kept_prefix_serves_the_next_turn(vlm: VLM, ask: Callable[..., Request]) -> None:
    engine, asked = vlm.engine(keep_prefixes=2), ask(Constraint.json(SCHEMA), replace(WILD, seed=4))
    first, again = engine.answer(asked), engine.answer(asked)
    assert again == first and again.cached_tokens > 0
    turn = vlm.request(IMAGE, "And now?", [("What is it?", first.text)], None, WILD)
    assert engine.answer(replace(turn, options=replace(WILD, seed=0))) == vlm.engine().answer(
        replace(turn, options=replace(WILD, seed=0))
    )


def test_without_a_constraint_nobody_asks_for_one(
    vlm: VLM, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *given: object) -> None:
        raise AssertionError("an answer without a constraint was held to one")

    for name in ("ahead", "cut", "take"):
        monkeypatch.setattr(Guide, name, fails)
    assert vlm.engine().answer(ask(None, replace(WILD, seed=1))).incomplete is None


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Constraint.json({"type": "string", "pattern": "(?=a)"}), "look-around"),
    (lambda: Constraint.json({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (lambda: Constraint.json({"type": "integer", "minimum": 5, "maximum": 3}), r"minimum \(5\) is greater"),
    (lambda: Constraint.json({"type": "colour"}), "Invalid type: colour"),
    (lambda: Constraint.json({"$ref": "http://elsewhere/schema"}), "elsewhere"),
    (lambda: Constraint.json(False), "schema is false"),
    (lambda: Constraint.regex("(a"), "unclosed group"),
    (lambda: Constraint.regex(r"(\w) \1"), "backreferences"),
]
WORSE: list[tuple[Callable[[], object], str]] = [
    (lambda: Constraint.json("{no json"), "is no JSON"),
    (lambda: Constraint.json('{"type": "object", "type": "array"}'), "type"),
    (lambda: Constraint.json([1]), r"\[1\]; it must be an object"),
    (lambda: Constraint.json({"const": float("nan")}), "cannot be written as JSON"),
    (lambda: Constraint.json({"enum": [object()]}), "cannot be written as JSON"),
    (lambda: Constraint.regex(""), "not empty"),
    (lambda: Constraint.regex(None), "None; it must be a text"),
    (lambda: Constraint.choice([]), r"\[\]; they must be a list"),
    (lambda: Constraint.choice("yes"), "'yes'; they must be a list"),
    (lambda: Constraint.choice(["yes", ""]), "''; each must be"),
    (lambda: Constraint.choice(["yes", " no"]), "white space"),
    (lambda: Constraint.choice(["yes", 1]), "1; each must be"),
]


@pytest.mark.parametrize(("make", "says"), [pytest.param(*bad, id=bad[1][:20]) for bad in BAD])
def test_what_cannot_be_compiled_is_refused_before_the_model_runs(
    vlm: VLM, make: Callable[[], Constraint], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm.model, "forward", None)
    with pytest.raises(InputError, match=rf"cannot be compiled: .*{says}") as refused:
        vlm.generate(IMAGE, "What?", constraint=make())
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    with pytest.raises(InputError):
        vlm.stream(IMAGE, "What?", constraint=make())


@pytest.mark.parametrize(("make", "says"), [pytest.param(*bad, id=bad[1][:20]) for bad in WORSE])
def test_what_is_no_constraint_is_refused_at_once(make: Callable[[], Constraint], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_options_that_contradict_a_constraint_are_refused(vlm: VLM, ask: Callable[..., Request]) -> None:
    with pytest.raises(InputError, match=r"'END'.*its list of choices.*Leave out one"):
        ask(Constraint.choice(["yes"]), stops=("END",))
    with pytest.raises(InputError, match=r"'json'; it must be made by Constraint.json"):
        vlm.generate(IMAGE, "What?", constraint="json")
    with pytest.raises(InputError, match=r"may have 5 tokens, .*the grammar of boxes takes 20"):
        vlm.generate(IMAGE, "Where?", constraint=Constraint.boxes(), max_new_tokens=5)
    with pytest.raises(InputError, match="may have 2 tokens"):
        vlm.generate(IMAGE, "Where?", constraint=Constraint.choice(["a long way to go"]), max_new_tokens=2)
    with pytest.raises(InputError, match="needs a tokenizer"):
        replace_tokenizer(vlm, ask(Constraint.boxes()))


def replace_tokenizer(vlm: VLM, request: Request) -> GenerationResult:
    engine = vlm.engine()
    engine.tokenizer = None
    return engine.answer(replace(request, stops=()))


def test_a_missing_package_names_its_extra(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ZooError, match=r"cogvlm-sat-zoo\[strict\]"):
        vlm.generate(IMAGE, "What?", constraint=Constraint.regex("[a-z]never asked before"))
    answer = vlm.generate(IMAGE, "Where?", constraint=Constraint.boxes(), max_new_tokens=20)
    assert answer.finish_reason == "stop", "boxes and choices need no package"


def test_a_row_whose_grammar_fails_fails_alone(
    vlm: VLM, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sat_models.generation.strict.library import LibraryState

    monkeypatch.setattr(LibraryState, "allowed", lambda self, left: raise_it())
    engine = vlm.engine()
    with engine.session(max_rows=2) as session:
        bad, good = session.add(ask(Constraint.regex("[a-z]{9}"))), session.add(ask(Constraint.choice(["yes"])))
        while session.running:
            session.step()
        assert session.remove(good).result().text == "yes"
        with pytest.raises(ZooError, match="too large"):
            session.remove(bad).result()


def raise_it() -> None:
    raise ZooError("too large")
