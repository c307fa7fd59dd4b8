"""Evaluation on the synthetic world (`training.shapes_world`): questions of every task about pictures never trained on.

Pictures come from random streams named `test/...`; those of training are named `train/...`, so the two never share a
picture by construction, whatever the seeds.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from sat_models.evaluation import metrics
from sat_models.processing.prompts import prompt_style
from sat_models.training import shapes_questions as questions
from sat_models.training.shapes_questions import QA, VQA_KINDS
from sat_models.training.shapes_world import COLORS, FORMS, Scene, draw, sample_scene

AnswerFn = Callable[[list[tuple[Image.Image, str, str]]], list[str]]


@dataclasses.dataclass(frozen=True)
class EvalItem:
    """One question about the test picture number `picture`, in one prompt version."""

    picture: int
    scene: Scene
    qa: QA
    version: str


def held_out_scene(seed: int, picture: int, *, max_objects: int = 3) -> Scene:
    """The test picture of this number."""
    return sample_scene(random.Random(f"test/{seed}/{picture}"), max_objects=max_objects)


def held_out_items(
    *, count: int, seed: int, versions: Sequence[str], max_objects: int = 3, vqa_kinds: int = 3, canonical: bool = False
) -> Iterator[EvalItem]:
    """Questions about `count` pictures: one of each task (`vqa_kinds` for vqa), the same in every version.

    Versions for short answers only (`vqa`) get the questions of the task vqa.
    """
    for version in versions:
        prompt_style(version)
    for picture in range(count):
        scene = held_out_scene(seed, picture, max_objects=max_objects)
        rng = random.Random(f"test/{seed}/{picture}/questions")
        asked = [
            questions.caption(scene, rng, canonical=canonical),
            questions.grounded_caption(scene, rng, canonical=canonical),
            questions.rec(scene, rng, rng.choice(scene.objects), canonical=canonical),
            questions.reg(scene, rng, rng.choice(scene.objects), canonical=canonical),
        ]
        kinds = rng.sample(VQA_KINDS, len(VQA_KINDS))
        possible = (questions.vqa(scene, rng, kind=kind, canonical=canonical) for kind in kinds)
        asked += [qa for qa in possible if qa][:vqa_kinds]
        for version in versions:
            yield from (EvalItem(picture, scene, qa, version) for qa in asked if version != "vqa" or qa.task == "vqa")


def evaluate_shapes(
    answer_fn: AnswerFn,
    *,
    count: int = 500,
    seed: int = 0,
    versions: Sequence[str] = ("chat",),
    max_objects: int = 3,
    vqa_kinds: int = 3,
    canonical: bool = False,
    batch_size: int = 32,
    progress: bool = True,
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
        batch_size: questions per call of `answer_fn`.
        progress: show a progress bar.

    Returns:
        `count`, `seed`, `versions`; `scores`: {task: {"count", score: mean}}; `vqa`: the same by kind; `by_version` and
        `by_objects` (number of objects in the picture): {key: {task: share right}}; `predictions`: one dict per
        question.

    Raises:
        ValueError: `answer_fn` returns another number of answers than it was asked for.
    """
    options = {"max_objects": max_objects, "vqa_kinds": vqa_kinds, "canonical": canonical}
    items = list(held_out_items(count=count, seed=seed, versions=versions, **options))
    predictions: list[dict[str, Any]] = []
    with tqdm(total=len(items), desc="shapes", unit="question", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            pictures = {item.picture: draw(item.scene) for item in chunk}
            answers = answer_fn([(pictures[item.picture], item.qa.question, item.version) for item in chunk])
            if len(answers) != len(chunk):
                raise ValueError(
                    f"answer_fn gave {len(answers)} answers to {len(chunk)} questions; one each is needed."
                )
            predictions += [_prediction(item, answer) for item, answer in zip(chunk, answers, strict=True)]
            bar.update(len(chunk))
    return {"count": count, "seed": seed, "versions": list(versions), **options, **summary(predictions)}


def score(qa: QA, answer: str) -> dict[str, float]:
    """Scores of one answer; every task has `right`."""
    if qa.task == "rec":
        overlap = metrics.box_iou(answer, qa.meta["box"])
        return {"right": overlap >= 0.5, "iou": overlap}
    if qa.task == "reg":
        said, words = metrics.listed_names(answer), set(metrics.normalise(answer).split())
        color, form = qa.meta["object"].split()
        return {
            "right": said == [qa.meta["object"]],
            "color": words & set(COLORS) == {color},
            "form": words & set(FORMS) == {form},
        }
    if qa.task == "grounded_caption":
        return metrics.grounded_scores(answer, {obj["name"]: obj["box"] for obj in qa.meta["objects"]})
    if qa.task == "caption":
        return metrics.caption_scores(answer, [obj["name"] for obj in qa.meta["objects"]])
    return {"right": metrics.exact_match(answer, qa.answer)}


def summary(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over predictions: see `evaluate_shapes`."""
    vqa = [p for p in predictions if p["task"] == "vqa"]
    return {
        "scores": {task: _means(group) for task, group in _groups(predictions, "task")},
        "vqa": {kind: _means(group) for kind, group in _groups(vqa, "kind")},
        "by_version": {v: _shares_right(group) for v, group in _groups(predictions, "version")},
        "by_objects": {n: _shares_right(group) for n, group in _groups(predictions, "objects")},
        "predictions": list(predictions),
    }


def _prediction(item: EvalItem, answer: str) -> dict[str, Any]:
    qa = item.qa
    return {
        "picture": item.picture,
        "version": item.version,
        "task": qa.task,
        "kind": qa.kind,
        "question": qa.question,
        "expected": qa.answer,
        "answer": answer,
        "objects": len(item.scene.objects),
        "scores": {name: float(value) for name, value in score(qa, answer).items()},
    }


def _groups(predictions: Iterable[dict[str, Any]], key: str) -> list[tuple[Any, list[dict[str, Any]]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction[key]].append(prediction)
    return sorted(groups.items())


def _means(group: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = group[0]["scores"]
    return {"count": len(group), **{n: sum(p["scores"][n] for p in group) / len(group) for n in names}}


def _shares_right(group: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {task: _means(part)["right"] for task, part in _groups(group, "task")}
