"""The test of the synthetic world written in the formats of public benchmarks.

Pictures, questions and answers are those of `evaluation.held_out`, which `evaluation.shapes` asks, too: a model that is
evaluated from these files is asked the same and gets the same figures. The formats say what is in a picture but not how
to ask for it, so the wordings stand beside them in `prompts.json`: question id -> prompt.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sat_models.errors import UnknownNameError
from sat_models.evaluation.samples import PixelBox
from sat_models.shapes.drawing import draw
from sat_models.shapes.held_out import PEOPLE, EvalItem, held_out_items

PROMPTS_FILE = "prompts.json"


@dataclass(frozen=True)
class Question:
    """One question of a file.

    Attributes:
        number: from 1; the id by which a reader knows the question. Where each picture has one question, this is the
            picture's number.
        file: name of the picture.
        item: what is asked.
    """

    number: int
    file: str
    item: EvalItem

    @property
    def image(self) -> int:
        """The picture's number, from 1."""
        return self.item.image + 1

    @property
    def head(self) -> dict[str, Any]:
        """COCO's entry of a picture."""
        return {"id": self.image, "width": self.item.size[0], "height": self.item.size[1], "file_name": self.file}


def write_public_dataset(
    output: Path, *, layout: str, count: int, seed: int = 0, max_objects: int = 3, canonical: bool = False
) -> list[Path]:
    """Writes pictures, annotations and prompts.

    Args:
        output: folder, made where missing; pictures go to `images/` in it, without loss.
        layout: one of `FORMATS`.
        count: pictures.
        seed: of the test pictures.
        max_objects: most objects in a picture.
        canonical: documented wordings only; else paraphrases too.

    Returns:
        The annotation files (a folder for Flickr30K Entities), and last the prompts.

    Raises:
        UnknownNameError: unknown `layout`.
    """
    if layout not in FORMATS:
        raise UnknownNameError("format", layout, FORMATS, hint="Choose one with --format.")
    chosen = FORMATS[layout]
    (output / "images").mkdir(parents=True, exist_ok=True)
    items = list(
        held_out_items(count=count, seed=seed, versions=("chat",), max_objects=max_objects, canonical=canonical)
    )
    for image, scene in {item.image: item.scene for item in items}.items():
        draw(scene).save(output / "images" / chosen.file_name.format(image + 1))
    asked = [
        Question(number, chosen.file_name.format(item.image + 1), item)
        for number, item in enumerate(filter(chosen.asks, items), 1)
    ]
    prompts = {str(question.number): chosen.prompt or question.item.prompt for question in asked}
    return [*chosen.write(output, asked), _json(output / PROMPTS_FILE, prompts)]


def _coco(output: Path, asked: list[Question]) -> list[Path]:
    captions = [{"id": q.number, "image_id": q.image, "caption": q.item.qa.answer} for q in asked]
    data = {"images": [question.head for question in asked], "annotations": captions}
    return [_json(output / "captions_val2014.json", data)]


def _vqav2(output: Path, asked: list[Question]) -> list[Path]:
    questions, answers = [], []
    for question in asked:
        qa = question.item.qa
        questions.append({"question_id": question.number, "image_id": question.image, "question": qa.question})
        kind = "yes/no" if qa.answer in ("yes", "no") else "number" if qa.answer.isdigit() else "other"
        people = [{"answer_id": n, "answer": qa.answer, "answer_confidence": "yes"} for n in range(1, PEOPLE + 1)]
        answers.append(
            {"question_id": question.number, "image_id": question.image, "question_type": qa.kind, "answer_type": kind,
             "multiple_choice_answer": qa.answer, "answers": people}
        )  # fmt: skip
    head = {"data_subtype": "val2014"}
    return [
        _json(output / "v2_mscoco_val2014_annotations.json", {**head, "annotations": answers}),
        _json(output / "v2_OpenEnded_mscoco_val2014_questions.json", {**head, "questions": questions}),
    ]


def _pope(output: Path, asked: list[Question]) -> list[Path]:
    lines = []
    for question in asked:
        entry = {"question_id": question.number, "image": question.file, "text": question.item.qa.question}
        lines.append(json.dumps({**entry, "label": question.item.qa.answer}) + "\n")
    path = output / "coco_pope_random.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return [path]


def _refcoco(output: Path, asked: list[Question]) -> list[Path]:
    boxes, refs = [], []
    for question in asked:
        number, sentence = question.number, question.item.qa.meta["expression"]
        box = _corner_and_size(question.item.thing().box)
        boxes.append({"id": number, "image_id": question.image, "bbox": box, "category_id": 1})
        refs.append(
            {"ref_id": number, "ann_id": number, "image_id": question.image, "category_id": 1, "split": "val",
             "file_name": question.file, "sent_ids": [number],
             "sentences": [{"sent_id": number, "sent": sentence, "raw": sentence, "tokens": sentence.split()}]}
        )  # fmt: skip
    path = output / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    instances = {"images": [question.head for question in asked], "annotations": boxes}
    return [path, _json(output / "instances.json", instances)]


def _visual_genome(output: Path, asked: list[Question]) -> list[Path]:
    entries = []
    for question in asked:
        frame = dict(zip(("x", "y", "width", "height"), question.item.asked_box(), strict=True))
        phrase = question.item.qa.answer
        region = {"region_id": question.number, "image_id": question.image, "phrase": phrase, **frame}
        entries.append({"id": question.image, "regions": [region]})
    return [_json(output / "region_descriptions.json", entries)]


def _entities(output: Path, asked: list[Question]) -> list[Path]:
    for folder in ("Sentences", "Annotations"):
        (output / folder).mkdir(exist_ok=True)
    for question in asked:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = question.file
        phrases = []
        for index, (phrase, thing) in enumerate(question.item.phrases):
            entity = str(question.image * 10 + index)
            found = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(found, "name").text = entity
            frame = ElementTree.SubElement(found, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True):
                ElementTree.SubElement(frame, side).text = str(value)
            phrases.append(f"[/EN#{entity}/other {phrase}]")
        listed = phrases[0] if len(phrases) == 1 else " , ".join(phrases[:-1]) + " and " + phrases[-1]
        (output / "Sentences" / f"{question.image}.txt").write_text(f"{listed} .\n", encoding="utf-8")
        ElementTree.ElementTree(root).write(output / "Annotations" / f"{question.image}.xml")
    numbers = "".join(f"{question.image}\n" for question in asked)
    (output / "test.txt").write_text(numbers, encoding="utf-8")
    return [output]


def _pointing(output: Path, asked: list[Question]) -> list[Path]:
    """Where something is, among four boxes."""
    boxes: list[dict[str, Any]] = []

    def pair(question: Question) -> dict[str, Any]:
        numbers = []
        for choice in question.item.choices:
            x, y, width, height = _corner_and_size(choice)
            numbers.append(len(boxes) + 1)
            boxes.append({"box_id": numbers[-1], "name": "", "x": x, "y": y, "width": width, "height": height})
        return {"type": "which", "answer": numbers[0], "multiple_choices": numbers[1:]}

    return [_visual7w(output / "dataset_v7w_pointing.json", asked, pair, boxes=boxes)]


def _telling(output: Path, asked: list[Question]) -> list[Path]:
    """A word, among up to four."""

    def pair(question: Question) -> dict[str, Any]:
        right, *wrong = question.item.choices
        return {"type": "what", "answer": right, "multiple_choices": wrong}

    return [_visual7w(output / "dataset_v7w_telling.json", asked, pair)]


def _visual7w(
    path: Path, asked: list[Question], pair: Callable[[Question], dict[str, Any]], **more: list[dict[str, Any]]
) -> Path:
    images = []
    for image, some in itertools.groupby(asked, key=lambda question: question.image):
        questions = list(some)
        head = {"image_id": image, "filename": questions[0].file, "split": "test"}
        pairs = [{"qa_id": q.number, "image_id": image, "question": q.item.qa.question, **pair(q)} for q in questions]
        images.append({**head, "qa_pairs": pairs})
    return _json(path, {"dataset": "visual7w", "images": images, **more})


def _corner_and_size(box: PixelBox) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def _json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Format:
    """One public format.

    Attributes:
        file_name: how its pictures are called, by number.
        asks: which questions of the test are in it.
        write: folder and questions -> the annotation files.
        prompt: what is asked; "": as the question of the test is worded.
    """

    file_name: str
    asks: Callable[[EvalItem], bool]
    write: Callable[[Path, list[Question]], list[Path]]
    prompt: str = ""


def _task(name: str) -> Callable[[EvalItem], bool]:
    return lambda item: item.qa.task == name


FORMATS: dict[str, Format] = {
    "coco-captions": Format("COCO_val2014_{:012d}.png", _task("caption"), _coco),
    "vqav2": Format("COCO_val2014_{:012d}.png", _task("vqa"), _vqav2),
    "pope": Format("COCO_val2014_{:012d}.png", lambda item: item.qa.kind == "exist", _pope),
    "refcoco": Format("COCO_train2014_{:012d}.png", _task("rec"), _refcoco),
    "visual-genome": Format("{}.png", _task("reg"), _visual_genome),
    "flickr30k-entities": Format("{}.png", _task("grounded_caption"), _entities),
    "visual7w-pointing": Format("v7w_{}.png", _task("rec"), _pointing, "{question}"),
    "visual7w-telling": Format("v7w_{}.png", _task("vqa"), _telling),
}
"""By name."""
