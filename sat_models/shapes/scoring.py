"""Evaluation on the synthetic world (`scenes`): the questions of `held_out` about pictures
never trained on, scored as those of public benchmarks are (`evaluation.tasks`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from sat_models.evaluation import metrics
from sat_models.evaluation.calibration import calibrations
from sat_models.evaluation.tasks import TASKS, right_boxes
from sat_models.shapes.held_out import EvalItem, held_out_items
from sat_models.shapes.scenes import COLORS, FORMS

AnswerFn = Callable[[list[tuple[Image.Image, str, str]]], Sequence[str | Mapping[str, Any]]]
"""(Picture, question, prompt version) of each -> its text, or `text` with how sure the model was (`runner.SCORES`)."""
VISUAL7W = {"rec": "pointing", "vqa": "telling"}
"""Which questions are scored as multiple choice, too, and what Visual7W calls that."""


def evaluate_shapes(
    answer_fn: AnswerFn,
    *,
    count: int = 500,
    seed: int = 0,
    versions: Sequence[str] = ("chat",),
    max_objects: int = 3,
    vqa_kinds: int = 3,
    canonical: bool = False,
    digit_share: float = 0.0,
    other_eyes: bool = False,
    batch_size: int = 32,
    progress: bool = True,
    accuracy: float = 0.95,
) -> dict[str, Any]:
    """Asks a model about pictures of the world and scores its answers.

    Args:
        answer_fn: takes a list of (picture, question, prompt version), returns the answers in order.
        count: pictures.
        seed: of the test pictures.
        versions: prompt versions; every question is asked in each.
        max_objects: most objects in a picture.
        vqa_kinds: questions with one-word answers per picture.
        canonical: documented wordings only; else paraphrases too.
        digit_share: how many of the large shapes carry a digit, which is asked for then.
        other_eyes: pictures drawn and questions worded by code that training has no part in (`other_eyes`).
        batch_size: questions per call of `answer_fn`.
        progress: show a progress bar.
        accuracy: the one that `calibration` says the coverage of.

    Returns:
        `count`, `seed`, `versions`; `scores`: {task: {"count", score: mean}}; `vqa`: the same by kind; `visual7w`: the
        answers to `rec` (`pointing`) and `vqa` (`telling`) scored as multiple choice; `by_version` and `by_objects`
        (number of objects in the picture): {key: {task: share right}}; `vqa_by_objects`: {number: {kind: share right}};
        `predictions`: one dict per question; `calibration` by task, where the answers say how sure the model was.

    Raises:
        ValueError: `answer_fn` returns another number of answers than it was asked for.
    """
    options = {
        "max_objects": max_objects, "vqa_kinds": vqa_kinds, "canonical": canonical, "digit_share": digit_share,
        "other_eyes": other_eyes,
    }  # fmt: skip
    items = list(held_out_items(count=count, seed=seed, versions=versions, **options))
    predictions: list[dict[str, Any]] = []
    with tqdm(total=len(items), desc="shapes", unit="question", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            images = {item.image: item.draw() for item in chunk}
            answers = answer_fn([(images[item.image], item.qa.question, item.version) for item in chunk])
            if len(answers) != len(chunk):
                raise ValueError(
                    f"answer_fn gave {len(answers)} answers to {len(chunk)} questions; one each is needed."
                )
            predictions += [_prediction(item, answer) for item, answer in zip(chunk, answers, strict=True)]
            bar.update(len(chunk))
    return {"count": count, "seed": seed, "versions": list(versions), **options, **summary(predictions, accuracy)}


def score(item: EvalItem, answer: str) -> dict[str, float]:
    """Scores of one answer: `right`, those of the task, and for `reg` whether colour and form are right."""
    task = TASKS[item.task]
    scores = task.score(item.sample(), answer, item.size)
    if item.qa.task == "reg":
        words, thing = set(metrics.normalise(answer).split()), item.thing()
        for name, known in (("color", COLORS), ("form", FORMS)):
            scores[name] = float(words.intersection(known) == {getattr(thing, name)})
    return {"right": scores[task.right], **scores}


def summary(predictions: Sequence[dict[str, Any]], accuracy: float = 0.95) -> dict[str, Any]:
    """Means over predictions: see `evaluate_shapes`."""
    by_task = dict(_groups(predictions, "task"))
    chosen = {VISUAL7W[task]: group for task, group in by_task.items() if task in VISUAL7W}
    calibrated = calibrations(by_task, accuracy=accuracy)
    return {
        "scores": {task: _means(group) for task, group in by_task.items()},
        "vqa": {kind: _means(group) for kind, group in _groups(by_task.get("vqa", ()), "kind")},
        "visual7w": {kind: _means(group, "visual7w") for kind, group in chosen.items()},
        "by_version": {v: _shares_right(group) for v, group in _groups(predictions, "version")},
        "by_objects": {n: _shares_right(group) for n, group in _groups(predictions, "objects")},
        "vqa_by_objects": {n: _shares_right(group, "kind") for n, group in _groups(by_task.get("vqa", ()), "objects")},
        **({"calibration": calibrated} if calibrated else {}),
        "predictions": list(predictions),
    }


def _prediction(item: EvalItem, given: str | Mapping[str, Any]) -> dict[str, Any]:
    qa, answer = item.qa, given if isinstance(given, str) else given["text"]
    prediction = {
        "picture": item.image,
        "version": item.version,
        "task": qa.task,
        "kind": qa.kind,
        "question": qa.question,
        "expected": qa.answer,
        "answer": answer,
        "objects": len(item.scene.objects),
        "scores": score(item, answer),
    }
    if qa.task in VISUAL7W:
        prediction["visual7w"] = TASKS["visual7w"].score(item.choice_sample(), answer, item.size)
    if not isinstance(given, str) and "score" in given:
        prediction |= {name: given[name] for name in ("tokens", "score", "box_scores")}
        prediction["right"] = prediction["scores"]["right"]
        prediction["boxes_right"] = right_boxes(item.task, item.sample(), answer, item.size)
    return prediction


def _groups(predictions: Iterable[dict[str, Any]], key: str) -> list[tuple[Any, list[dict[str, Any]]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction[key]].append(prediction)
    return sorted(groups.items())


def _means(group: Sequence[dict[str, Any]], key: str = "scores") -> dict[str, float]:
    return {"count": len(group), **metrics.means([prediction[key] for prediction in group])}


def _shares_right(group: Sequence[dict[str, Any]], key: str = "task") -> dict[str, float]:
    return {name: _means(part)["right"] for name, part in _groups(group, key)}
