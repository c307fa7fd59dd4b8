"""Pictures of the synthetic world with a question each, on disk: PNG files and one JSONL of the training format."""

from __future__ import annotations

import json
import random
from pathlib import Path

from sat_models.shapes import questions
from sat_models.shapes.drawing import draw
from sat_models.shapes.questions import QA
from sat_models.shapes.scenes import Scene, sample_scene

DATASET_TASKS = ("caption", "vqa", "rec", "reg", "grounded_caption")
DATASET_FILE = "example_inputs.jsonl"


def write_dataset(
    output: Path,
    *,
    count: int,
    seed: int = 0,
    task: str = "mixed",
    min_objects: int = 1,
    max_objects: int = 3,
    canonical: bool = False,
    image_prefix: str = "",
) -> Path:
    """Writes `1.png ... count.png` and the JSONL beside them.

    The pictures come from random streams of their own: none is shared with training or evaluation.

    Args:
        output: folder, made where missing.
        count: pictures.
        seed: the same seed writes the same files.
        task: one of `DATASET_TASKS`, or `mixed` for each in turn.
        min_objects: fewest objects in a picture.
        max_objects: most objects in a picture.
        canonical: documented wordings only.
        image_prefix: put before the file names in the JSONL; without it they are relative to the JSONL.

    Returns:
        Path of the JSONL: one `{"id", "prompt", "text", "image"}` per line.
    """
    output.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(1, count + 1):
        rng = random.Random(f"dataset/{seed}/{number}")
        scene = sample_scene(rng, min_objects=min_objects, max_objects=max_objects)
        wanted = DATASET_TASKS[(number - 1) % len(DATASET_TASKS)] if task == "mixed" else task
        qa = question_of_task(scene, rng, wanted, canonical=canonical)
        draw(scene).save(output / f"{number}.png", optimize=True)
        entry = {"id": number, "prompt": qa.question, "text": qa.answer, "image": f"{image_prefix}{number}.png"}
        lines.append(json.dumps(entry) + "\n")
    path = output / DATASET_FILE
    path.write_text("".join(lines), encoding="utf-8")
    return path


def question_of_task(scene: Scene, rng: random.Random, task: str, *, canonical: bool = False) -> QA:
    """One question of a task about a random object of the picture.

    Raises:
        ValueError: `task` is not one of `DATASET_TASKS`.
    """
    if task == "vqa":
        qa = questions.vqa(scene, rng, canonical=canonical)
        assert qa is not None, "counting can always be asked"
        return qa
    if task in ("rec", "reg"):
        return getattr(questions, task)(scene, rng, rng.choice(scene.objects), canonical=canonical)
    if task in ("caption", "grounded_caption"):
        return getattr(questions, task)(scene, rng, canonical=canonical)
    raise ValueError(f"Unknown task '{task}'. Known: {', '.join(DATASET_TASKS)}.")
