"""The synthetic world written in the formats of public benchmarks, for trying out readers and tasks.

The pictures are those that `evaluation.shapes` asks about, so none was trained on.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sat_models.errors import UnknownNameError
from sat_models.evaluation.shapes import held_out_scene
from sat_models.training import shapes_questions as questions
from sat_models.training.shapes_questions import VQA_KINDS, article
from sat_models.training.shapes_world import COLORS, FORMS, Scene, ShapeObject, draw


@dataclass(frozen=True)
class Picture:
    """One picture of a data set."""

    number: int
    scene: Scene
    rng: random.Random

    @property
    def head(self) -> dict[str, Any]:
        """What COCO says of a picture."""
        return {"id": self.number, "width": self.scene.width, "height": self.scene.height}


def write_public_dataset(output: Path, *, layout: str, count: int, seed: int = 0, max_objects: int = 3) -> list[Path]:
    """Writes pictures and annotations.

    Args:
        output: folder, made where missing; pictures go to `images/` in it.
        layout: one of `FORMATS`.
        count: pictures.
        seed: of the test pictures.

    Returns:
        The annotation files (a folder for Flickr30K Entities).

    Raises:
        UnknownNameError: unknown `layout`.
    """
    if layout not in FORMATS:
        raise UnknownNameError("format", layout, FORMATS, hint="Choose one with --format.")
    (output / "images").mkdir(parents=True, exist_ok=True)
    pictures = [
        Picture(n, held_out_scene(seed, n - 1, max_objects=max_objects), random.Random(f"public/{seed}/{n}"))
        for n in range(1, count + 1)
    ]
    name, write = FORMATS[layout]
    for picture in pictures:
        file = output / "images" / name.format(picture.number)
        draw(picture.scene).save(file, quality=95, subsampling=0)
    return write(output, pictures, name)


def _coco(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    images = [{**picture.head, "file_name": name.format(picture.number)} for picture in pictures]
    captions = [
        {"id": p.number, "image_id": p.number, "caption": questions.caption(p.scene, p.rng).answer} for p in pictures
    ]
    return [_json(output / "captions_val2014.json", {"images": images, "annotations": captions})]


def _vqav2(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    asked, answers = [], []
    for picture in pictures:
        kinds = picture.rng.sample(VQA_KINDS, len(VQA_KINDS))
        possible = (questions.vqa(picture.scene, picture.rng, kind=kind) for kind in kinds)
        for index, qa in enumerate([qa for qa in possible if qa][:3]):
            number = picture.number * 10 + index
            asked.append({"question_id": number, "image_id": picture.number, "question": qa.question})
            kind = "yes/no" if qa.answer in ("yes", "no") else "number" if qa.answer.isdigit() else "other"
            ten = [{"answer_id": n, "answer": qa.answer, "answer_confidence": "yes"} for n in range(1, 11)]
            answers.append(
                {"question_id": number, "image_id": picture.number, "question_type": qa.kind, "answer_type": kind,
                 "multiple_choice_answer": qa.answer, "answers": ten}
            )  # fmt: skip
    return [
        _json(output / "v2_mscoco_val2014_annotations.json", {"data_subtype": "val2014", "annotations": answers}),
        _json(output / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": asked}),
    ]


def _pope(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    lines = []
    for picture in pictures:
        for label in ("yes", "no"):
            thing = _present(picture) if label == "yes" else _absent(picture)
            text = f"Is there {article(thing)} in the image?"
            entry = {"question_id": len(lines) + 1, "image": name.format(picture.number), "text": text, "label": label}
            lines.append(json.dumps(entry) + "\n")
    path = output / "coco_pope_random.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return [path]


def _refcoco(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    images = [{**picture.head, "file_name": name.format(picture.number)} for picture in pictures]
    boxes, refs = [], []
    for number, (picture, thing) in enumerate(_objects(pictures), 1):
        boxes.append({"id": number, "image_id": picture.number, "bbox": list(_size_box(thing)), "category_id": 1})
        sentence = f"the {thing.name}"
        refs.append(
            {"ref_id": number, "ann_id": number, "image_id": picture.number, "category_id": 1, "split": "val",
             "file_name": name.format(picture.number), "sent_ids": [number],
             "sentences": [{"sent_id": number, "sent": sentence, "raw": sentence, "tokens": sentence.split()}]}
        )  # fmt: skip
    path = output / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    return [path, _json(output / "instances.json", {"images": images, "annotations": boxes})]


def _visual_genome(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    regions: dict[int, list[dict[str, Any]]] = {picture.number: [] for picture in pictures}
    for number, (picture, thing) in enumerate(_objects(pictures), 1):
        x, y, width, height = _size_box(thing)
        phrase = f"{article(thing.name)}."
        region = {"region_id": number, "image_id": picture.number, "phrase": phrase}
        regions[picture.number].append({**region, "x": x, "y": y, "width": width, "height": height})
    entries = [{"id": number, "regions": found} for number, found in regions.items()]
    return [_json(output / "region_descriptions.json", entries)]


def _entities(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    for folder in ("Sentences", "Annotations"):
        (output / folder).mkdir(exist_ok=True)
    for picture in pictures:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name.format(picture.number)
        phrases = []
        for index, thing in enumerate(picture.scene.objects):
            entity = str(picture.number * 10 + index)
            found = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(found, "name").text = entity
            frame = ElementTree.SubElement(found, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True):
                ElementTree.SubElement(frame, side).text = str(value)
            phrases.append(f"[/EN#{entity}/other {article(thing.name)}]")
        listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
        (output / "Sentences" / f"{picture.number}.txt").write_text(f"{listed} .\n", encoding="utf-8")
        ElementTree.ElementTree(root).write(output / "Annotations" / f"{picture.number}.xml")
    numbers = "".join(f"{picture.number}\n" for picture in pictures)
    (output / "test.txt").write_text(numbers, encoding="utf-8")
    return [output]


def _pointing(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    """Where something is, among four boxes: those of the picture's things, filled up with empty places."""
    images, boxes = [], []
    for picture in pictures:
        thing = picture.rng.choice(picture.scene.objects)
        others = [_size_box(other) for other in picture.scene.objects if other is not thing]
        frames = [_size_box(thing), *others, *(_elsewhere(picture) for _ in range(3))][:4]
        numbers = []
        for x, y, width, height in frames:
            number = len(boxes) + 1
            boxes.append({"box_id": number, "name": "", "x": x, "y": y, "width": width, "height": height})
            numbers.append(number)
        pair = {"qa_id": picture.number, "image_id": picture.number, "type": "which"}
        pair |= {"question": f"Where is the {thing.name}?", "answer": numbers[0], "multiple_choices": numbers[1:]}
        images.append(_v7w(picture, name, pair))
    return [_json(output / "dataset_v7w_pointing.json", {"dataset": "visual7w", "images": images, "boxes": boxes})]


def _telling(output: Path, pictures: list[Picture], name: str) -> list[Path]:
    """The colour of something, among four colours, or the form, among three."""
    images = []
    for picture in pictures:
        qa = questions.vqa(picture.scene, picture.rng, kind="color", canonical=True)
        qa = qa or questions.vqa(picture.scene, picture.rng, kind="form", canonical=True)
        if qa is None:
            continue
        wrong = [word for word in (COLORS if qa.kind == "color" else FORMS) if word != qa.answer]
        pair = {"qa_id": picture.number, "image_id": picture.number, "type": "what", "question": qa.question}
        pair |= {"answer": qa.answer, "multiple_choices": picture.rng.sample(wrong, min(3, len(wrong)))}
        images.append(_v7w(picture, name, pair))
    return [_json(output / "dataset_v7w_telling.json", {"dataset": "visual7w", "images": images})]


def _v7w(picture: Picture, name: str, pair: dict[str, Any]) -> dict[str, Any]:
    file = name.format(picture.number)
    return {"image_id": picture.number, "filename": file, "split": "test", "qa_pairs": [pair]}


def _objects(pictures: list[Picture]) -> Iterator[tuple[Picture, ShapeObject]]:
    return ((picture, thing) for picture in pictures for thing in picture.scene.objects)


def _size_box(thing: ShapeObject) -> tuple[int, int, int, int]:
    """Corner and size."""
    x0, y0, x1, y1 = thing.box
    return x0, y0, x1 - x0, y1 - y0


def _elsewhere(picture: Picture) -> tuple[int, int, int, int]:
    side = min(picture.scene.width, picture.scene.height) // 5
    x = picture.rng.randrange(picture.scene.width - side)
    return x, picture.rng.randrange(picture.scene.height - side), side, side


def _present(picture: Picture) -> str:
    return picture.rng.choice(picture.scene.objects).name


def _absent(picture: Picture) -> str:
    there = {thing.name for thing in picture.scene.objects}
    return picture.rng.choice([f"{c} {f}" for c in COLORS for f in FORMS if f"{c} {f}" not in there])


def _json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    return path


FORMATS: dict[str, tuple[str, Callable[[Path, list[Picture], str], list[Path]]]] = {
    "coco-captions": ("COCO_val2014_{:012d}.jpg", _coco),
    "vqav2": ("COCO_val2014_{:012d}.jpg", _vqav2),
    "pope": ("COCO_val2014_{:012d}.jpg", _pope),
    "refcoco": ("COCO_train2014_{:012d}.jpg", _refcoco),
    "visual-genome": ("{}.jpg", _visual_genome),
    "flickr30k-entities": ("{}.jpg", _entities),
    "visual7w-pointing": ("v7w_{}.jpg", _pointing),
    "visual7w-telling": ("v7w_{}.jpg", _telling),
}
"""By name: how pictures are called, and what writes the annotations."""
