"""Readers of public annotation formats, each as its dataset publishes it.

| task | file(s) | made by |
|---|---|---|
| caption | COCO captions JSON, or Karpathy's `dataset_*.json` | COCO, nocaps, Flickr30K |
| vqa | VQAv2 questions and annotations JSON | VQAv2, OK-VQA; a POPE JSONL is read, too |
| rec | `refs(*).p` and `instances.json`, or the refs as JSON | RefCOCO, RefCOCO+, RefCOCOg |
| reg | `region_descriptions.json` | Visual Genome |
| grounded-caption | the folders `Sentences/` and `Annotations/` | Flickr30K Entities |
| visual7w | `dataset_v7w_pointing.json` or `dataset_v7w_telling.json` | Visual7W |
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sat_models.errors import ConfigError, InputError
from sat_models.evaluation.samples import PixelBox, Sample, corner_box, read_json, unreadable


def read_captions(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per picture, with all its captions."""
    data = read_json(annotations)
    if "annotations" not in data:
        for picture in data["images"]:
            if split is None or picture["split"] == split:
                sentences = tuple(sentence["raw"] for sentence in picture["sentences"])
                yield Sample(str(picture["filename"]), images / picture["filename"], references=sentences)
        return
    _refuse(annotations, "a COCO captions file, which has no splits", split=split)
    captions: dict[int, list[str]] = {}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for picture in data["images"]:
        if picture["id"] in captions:
            yield Sample(str(picture["id"]), images / picture["file_name"], references=tuple(captions[picture["id"]]))


def read_vqa(
    annotations: Path, images: Path, *, questions: Path | None = None, split: str | None = None, **_: Any
) -> Iterator[Sample]:
    """One sample per question; pictures are named as COCO names them (or .png) unless it has a `file_name`."""
    if annotations.suffix == ".jsonl":
        _refuse(annotations, "a POPE file", questions=questions, split=split)
        yield from _read_pope(annotations, images)
        return
    if questions is None:
        raise InputError("VQAv2 keeps questions and answers apart: add --questions FILE (the …_questions.json).")
    asked = read_json(questions)
    if all("file_name" in question for question in asked["questions"]):
        _refuse(questions, "a file of questions that name their pictures", split=split)
    subtype = split or asked.get("data_subtype", "val2014")
    answers = {entry["question_id"]: entry for entry in read_json(annotations)["annotations"]}
    for question in asked["questions"]:
        entry = answers.get(question["question_id"])
        if entry is None:
            raise InputError(f"question {question['question_id']} of '{questions}' has no answer in '{annotations}'.")
        named = question.get("file_name")
        yield Sample(
            str(question["question_id"]),
            images / named if named else _picture(images, f"COCO_{subtype}_{question['image_id']:012d}"),
            {"question": question["question"]},
            tuple(answer["answer"] for answer in entry["answers"]),
            kind=entry.get("answer_type", ""),
        )


def _read_pope(path: Path, images: Path) -> Iterator[Sample]:
    """POPE: a JSON object per line with `question_id`, `image`, `text` and `label`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            sample = Sample(
                str(entry["question_id"]), images / entry["image"], {"question": entry["text"]}, (entry["label"],),
                kind="pope",
            )  # fmt: skip
        except (ValueError, KeyError) as error:
            raise InputError(f"line {number} of '{path}' is not POPE's form ({error!r}).") from error
        yield sample


def read_refcoco(
    annotations: Path, images: Path, *, instances: Path | None = None, split: str | None = None, **_: Any
) -> Iterator[Sample]:
    """One sample per referring expression."""
    refs = read_json(annotations) if annotations.suffix == ".json" else _plain_pickle(annotations)
    data = read_json(instances or annotations.parent / "instances.json")
    boxes = {entry["id"]: corner_box(*entry["bbox"]) for entry in data["annotations"]}
    names = {entry["id"]: entry["file_name"] for entry in data["images"]}
    for ref in refs:
        if split is not None and ref["split"] != split:
            continue
        for sentence in ref["sentences"]:
            yield Sample(
                str(sentence["sent_id"]),
                images / names[ref["image_id"]],
                {"expression": sentence["sent"]},
                (sentence["sent"],),
                (boxes[ref["ann_id"]],),
                kind=ref["split"],
            )


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, numbers and text; a pickle that names any class or function is refused, so none can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain_pickle(path: Path) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise unreadable(path, error) from error
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise InputError(
            f"'{path}' is no pickle of plain data ({error}). Give RefCOCO's refs(...).p, or the same list as JSON."
        ) from error


def read_regions(annotations: Path, images: Path, **_: Any) -> Iterator[Sample]:
    """One sample per region of Visual Genome."""
    for picture in read_json(annotations):
        for region in picture["regions"]:
            box = corner_box(region["x"], region["y"], region["width"], region["height"])
            number = region.get("image_id", picture.get("id"))
            yield Sample(
                str(region["region_id"]),
                _picture(images, *(f"{folder}{number}" for folder in ("", "VG_100K/", "VG_100K_2/"))),
                {"box": box},
                (region["phrase"],),
                (box,),
            )


_ENTITY = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]+)* ([^\]]+)\]")


def read_entities(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per picture of Flickr30K Entities: its captions, and each phrase that has a box with that box.

    Args:
        annotations: the folder that holds `Sentences/` and `Annotations/`.
        split: a file of picture numbers, one per line (`test.txt` of the dataset); a bare name is looked for there.
    """
    wanted = None
    if split is not None:
        listing = annotations / f"{split}.txt"
        if not listing.is_file():
            raise InputError(f"'{listing}' is not there; it should list the pictures of the split '{split}'.")
        wanted = set(listing.read_text().split())
    files = sorted((annotations / "Sentences").glob("*.txt"))
    if not files:
        raise InputError(f"'{annotations / 'Sentences'}' holds no .txt files. Give the folder of Flickr30K Entities.")
    for file in files:
        if wanted is not None and file.stem not in wanted:
            continue
        boxes = _entity_boxes(annotations / "Annotations" / f"{file.stem}.xml")
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        phrases: list[tuple[str, PixelBox]] = []
        for number, phrase in _ENTITY.findall(lines[0]):
            phrases += [(phrase, box) for box in boxes.get(number, [])]
        yield Sample(
            file.stem,
            _picture(images, file.stem),
            references=tuple(_ENTITY.sub(r"\2", line) for line in lines),
            boxes=tuple(box for _, box in phrases),
            choices=tuple(phrase for phrase, _ in phrases),
        )


def _entity_boxes(path: Path) -> dict[str, list[PixelBox]]:
    """Boxes by the number of their entity; entities without a box are left out."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"annotation file '{path}' cannot be read ({error}). Download it again.") from error
    boxes: dict[str, list[PixelBox]] = {}
    for found in root.iter("object"):
        frame = found.find("bndbox")
        if frame is None:
            continue
        corners = tuple(float(frame.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax"))
        for name in found.iter("name"):
            boxes.setdefault((name.text or "").strip(), []).append(corners)  # type: ignore[arg-type]
    return boxes


def read_visual7w(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per question; a file with `boxes` is of the pointing kind, else telling."""
    data = read_json(annotations)
    boxes = {entry["box_id"]: entry for entry in data.get("boxes", [])}

    def box(number: int) -> PixelBox:
        entry = boxes[number]
        return corner_box(entry["x"], entry["y"], entry["width"], entry["height"])

    for picture in data["images"]:
        if split is not None and picture["split"] != split:
            continue
        for pair in picture["qa_pairs"]:
            choices = (pair["answer"], *pair["multiple_choices"])
            yield Sample(
                str(pair["qa_id"]),
                images / picture["filename"],
                {"question": pair["question"]},
                () if boxes else (pair["answer"],),
                tuple(map(box, choices)) if boxes else (),
                () if boxes else tuple(choices),
                kind=pair.get("type", ""),
            )


def _picture(folder: Path, *stems: str) -> Path:
    """The first .jpg that exists, as the datasets have it, else .png; where there is none, the first .jpg."""
    files = [folder / f"{stem}{ending}" for ending in (".jpg", ".png") for stem in stems]
    return next((file for file in files if file.is_file()), files[0])


def _refuse(path: Path, form: str, **given: Any) -> None:
    """What the form of a file gives no use for must not be asked for.

    Raises:
        ConfigError: it was.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"'{path}' is {form}: --{name} is not read; leave it out.")


READERS: dict[str, Callable[..., Iterator[Sample]]] = {
    "caption": read_captions,
    "vqa": read_vqa,
    "rec": read_refcoco,
    "reg": read_regions,
    "grounded-caption": read_entities,
    "visual7w": read_visual7w,
}
"""By task. Arguments: annotations, images, and what the format needs beside them."""


def read_samples(task: str, annotations: Path, images: Path, **options: Any) -> list[Sample]:
    """All samples of a task.

    Args:
        task: one of `READERS`.
        annotations: file or folder.
        images: folder of the pictures.
        options: `questions` (vqa), `instances` (rec), `split`.

    Raises:
        InputError: a file that is missing or not of the format, two samples of one id, or none.
        ConfigError: an option that the form of the file gives no use for.
    """
    try:
        samples = list(READERS[task](annotations, images, **options))
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"'{annotations}' is not in the format that --task {task} reads: {error!r} is missing or of another kind. "
            "docs/evaluation.md shows the formats."
        ) from error
    if not samples:
        raise InputError(f"'{annotations}' gives no samples for --task {task} (split {options.get('split')}).")
    ids = {sample.id for sample in samples}
    if len(ids) != len(samples):
        raise InputError(f"'{annotations}' has {len(samples) - len(ids)} samples whose id is another's.")
    return samples
