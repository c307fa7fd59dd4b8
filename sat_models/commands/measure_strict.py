"""What holding answers to a form costs: tokens per second with a constraint, and of answers as long without one.

python scripts/measure_strict.py                                      # cogvlm-tiny, one row and eight
python scripts/measure_strict.py --from_pretrained MODEL --rows 1 --answers 2

A larger model takes longer for a token while a mask stays as it is: "ms added" is what to compare with its own token.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from sat_models.errors import run_script
from sat_models.flags import add_model_flags, check_numbers, loading
from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.text import markdown_table
from sat_models.zoo import Constraint, load_pretrained
from sat_models.zoo.vlm import VLM

_SHAPE = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "note": {"type": "string", "minLength": 20}},
    "required": ["color", "note"],
    "additionalProperties": False,
}
_COLORS, _KINDS = ("red", "green", "blue", "yellow", "orange", "purple"), ("circle", "triangle", "square")
FORMS = {
    "JSON by a schema": Constraint.json({"type": "array", "items": _SHAPE, "minItems": 2, "maxItems": 2}),
    "a regular expression": Constraint.regex("[a-z ]{200,240}"),
    "one of 18 texts": Constraint.choice([f"There is a {color} {kind} in it." for color in _COLORS for kind in _KINDS]),
    "boxes": Constraint.boxes(),
    "text with whole boxes": Constraint.boxes(in_text=True),
}
"""What is measured: a constraint of each kind."""
_QUERY, _TEMPERATURE = "Say something.", 1.5
_COLUMNS = ("form", "rows", "tokens an answer", "tokens/s", "without", "ratio", "ms added to a token")


def measure(vlm: VLM, *, rows: Sequence[int], answers: int, tokens: int, repeats: int) -> str:
    """A Markdown table: a line for each form and number of rows.

    Args:
        rows: answers that are decoded together.
        answers: how many are made in a turn.
        tokens: most of one answer.
        repeats: turns of which the best counts; one more goes before, in which schemas are compiled.
    """
    lines: list[Sequence[str]] = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for count in rows:
        for name, form in FORMS.items():
            turns = list(_turns(vlm, form, count, answers, tokens, repeats + 1))[1:]
            made = turns[0][0]
            held, free = (min(turn[way] for turn in turns) for way in (1, 2))
            lines.append((
                name, str(count), f"{made / answers:.0f}", f"{made / held:.0f}", f"{made / free:.0f}",
                f"{free / held:.2f}", f"{1000 * (held - free) / made:.2f}",
            ))  # fmt: skip
    return markdown_table(lines)


def _turns(
    vlm: VLM, form: Constraint, rows: int, answers: int, tokens: int, turns: int
) -> Iterator[tuple[int, float, float]]:
    """How many tokens were made, the seconds with the constraint, and those without for answers as long."""
    endless = Engine(
        vlm.model, eos_id=(), max_length=vlm.processor.max_length, device=vlm.device, tokenizer=vlm.processor.tokenizer
    )
    for _ in range(turns):
        asked = [_request(vlm, seed, tokens, form) for seed in range(answers)]
        made, held = _timed(vlm.engine(), asked, rows)
        lengths = [len(answer.token_ids) for answer in made]
        _, free = _timed(endless, [_request(vlm, seed, length) for seed, length in enumerate(lengths)], rows)
        yield sum(lengths), held, free


def _request(vlm: VLM, seed: int, tokens: int, form: Constraint | None = None) -> Request:
    options = SamplingOptions(temperature=_TEMPERATURE, max_new_tokens=tokens, seed=seed)
    return vlm.request(None, _QUERY, options=options, constraint=form)


def _timed(engine: Engine, asked: Sequence[Request], rows: int) -> tuple[list[GenerationResult], float]:
    began = time.perf_counter()
    made = engine.answers(asked, max_rows=rows)
    return made, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], metavar="N", help="decoded together (1 8)")
    parser.add_argument("--answers", type=int, default=8, metavar="N", help="in a turn (8)")
    parser.add_argument("--max_new_tokens", type=int, default=64, metavar="N", help="of an answer (64)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of which the best counts (5)")
    given = parser.parse_args(argv)
    check_numbers(given, dict.fromkeys(("rows", "answers", "max_new_tokens", "repeats"), 1))
    vlm = load_pretrained(given.from_pretrained, **loading(given))
    counts = {"answers": given.answers, "tokens": given.max_new_tokens, "repeats": given.repeats}
    print(measure(vlm, rows=given.rows, **counts))
    return 0


def command() -> None:
    """The console command `sat-measure-strict`, and `scripts/measure_strict.py`."""
    run_script(main)
