"""Readers of public annotation formats, each as its dataset publishes it.

| task | file(s) | made by |
|---|---|---|
| caption | COCO captions JSON, or Karpathy's `dataset_*.json` | COCO, nocaps, Flickr30K |
| vqa | VQAv2 questions and annotations JSON | VQAv2, OK-VQA; a POPE JSONL is read, too |
| rec | `refs(*).p` and `instances.json`, or the refs as JSON; or Qwen-VL's JSONL | RefCOCO(+, g) |
| reg | `region_descriptions.json` | Visual Genome |
| grounded-caption | the folders `Sentences/` and `Annotations/` | Flickr30K Entities |
| visual7w | `dataset_v7w_pointing.json` or `dataset_v7w_telling.json` | Visual7W |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sat_models.errors import ConfigError, InputError
from sat_models.evaluation.entry import Entry, entries_of, read_entry
from sat_models.evaluation.lines import holds_lines, read_expressions, read_pope
from sat_models.evaluation.samples import PixelBox, Sample, is_file, read_json, read_plain_pickle, read_text
from sat_models.text import is_utf8

logger = logging.getLogger(__name__)


def read_captions(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per picture, with all its captions."""
    data = read_entry(annotations)
    if "annotations" not in data:
        for image in data.entries("images"):
            if split is None or image.name("split") == split:
                name = image.name("filename")
                yield Sample(name, images / name, references=image.texts("sentences", "raw"))
        return
    _refuse(annotations, "a COCO captions file, which has no splits", split=split)
    captions: dict[str, list[str]] = {}
    names = {image.name("id"): image.name("file_name") for image in data.entries("images")}
    for annotation in data.entries("annotations"):
        number = annotation.name("image_id")
        if number not in names:
            raise InputError(f"{annotation.place}: its image_id {number} is none of the 'images' of the file.")
        captions.setdefault(number, []).append(annotation.text("caption"))
    for number, name in names.items():
        if number in captions:
            yield Sample(number, images / name, references=tuple(captions[number]))


def read_vqa(
    annotations: Path, images: Path, *, questions: Path | None = None, split: str | None = None, **_: Any
) -> Iterator[Sample]:
    """One sample per question; pictures are named as COCO names them (or .png) unless it has a `file_name`. An id that
    is no number names the picture itself."""
    if annotations.suffix == ".jsonl" or (questions is None and holds_lines(annotations, "label")):
        _refuse(annotations, "a POPE file", questions=questions, split=split)
        yield from read_pope(annotations, images)
        return
    if questions is None:
        raise InputError("VQAv2 keeps questions and answers apart: add --questions FILE (the …_questions.json).")
    file = read_entry(questions)
    asked = file.entries("questions")
    if all("file_name" in question for question in asked):
        _refuse(questions, "a file of questions that name their pictures", split=split)
    subtype = split or file.optional("data_subtype", "val2014")
    answers = {entry.name("question_id"): entry for entry in read_entry(annotations).entries("annotations")}
    for question in asked:
        number = question.name("question_id")
        if number not in answers:
            raise InputError(f"question {number} of '{questions}' has no answer in '{annotations}'.")
        yield Sample(
            number,
            _image_asked_about(question, images, subtype),
            {"question": question.text("question")},
            answers[number].texts("answers", "answer"),
            kind=answers[number].optional("answer_type"),
        )


def _image_asked_about(question: Entry, images: Path, subtype: str) -> Path:
    if question.optional("file_name"):
        return images / question.text("file_name")
    name = question.name("image_id")
    return _image_file(images, f"COCO_{subtype}_{int(name):012d}" if re.fullmatch("[0-9]{1,12}", name) else name)


def read_refcoco(
    annotations: Path, images: Path, *, instances: Path | None = None, split: str | None = None, **_: Any
) -> Iterator[Sample]:
    """One sample per referring expression."""
    if annotations.suffix in (".json", ".jsonl") and holds_lines(annotations, "sent"):
        _refuse(annotations, "a file of lines that hold their boxes and one split", instances=instances, split=split)
        yield from read_expressions(annotations, images)
        return
    refs = read_json(annotations) if annotations.suffix == ".json" else read_plain_pickle(annotations)
    data = read_entry(instances or annotations.parent / "instances.json")
    boxes = {entry.name("id"): entry.box("bbox") for entry in data.entries("annotations")}
    names = {entry.name("id"): entry.name("file_name") for entry in data.entries("images")}
    for ref in entries_of(refs, f"'{annotations}', ."):
        kind = ref.name("split")
        if split is not None and kind != split:
            continue
        image, box = ref.name("image_id"), ref.name("ann_id")
        if image not in names or box not in boxes:
            raise InputError(f"{ref.place}: image_id {image} or ann_id {box} is not in {data.place}.")
        for sentence in ref.entries("sentences"):
            said = sentence.text("sent")
            number = sentence.name("sent_id")
            yield Sample(number, images / names[image], {"expression": said}, (said,), (boxes[box],), kind=kind)


def read_regions(annotations: Path, images: Path, **_: Any) -> Iterator[Sample]:
    """One sample per region of Visual Genome."""
    for image in entries_of(read_json(annotations), f"'{annotations}', ."):
        for region in image.entries("regions"):
            box = region.box("x", "y", "width", "height")
            number = region.name("image_id") if "image_id" in region else image.name("id")
            yield Sample(
                region.name("region_id"),
                _image_file(images, *(f"{folder}{number}" for folder in ("", "VG_100K/", "VG_100K_2/"))),
                {"box": box},
                (region.text("phrase"),),
                (box,),
            )


_ENTITY = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]+)* ([^\]]+)\]")


def read_entities(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per picture of Flickr30K Entities: its captions, and each phrase that has a box with that box.

    Pictures whose first caption has no box are left out, which is said: nothing could be right about them.

    Args:
        annotations: the folder that holds `Sentences/` and `Annotations/`.
        split: a file of picture numbers, one per line (`test.txt` of the dataset); a bare name is looked for there.
    """
    wanted = None
    if split is not None:
        listing = annotations / f"{split}.txt"
        if not listing.is_file():
            raise InputError(f"'{listing}' is not there; it should list the pictures of the split '{split}'.")
        wanted = set(read_text(listing).split())
    files = sorted((annotations / "Sentences").glob("*.txt"))
    if not files:
        raise InputError(f"'{annotations / 'Sentences'}' holds no .txt files. Give the folder of Flickr30K Entities.")
    bare = []
    for file in files:
        if wanted is not None and file.stem not in wanted:
            continue
        sample = _entities_of(file, annotations, images)
        if sample.boxes:
            yield sample
        else:
            bare.append(sample.id)
    if bare:
        logger.warning(
            "%d picture(s) without a box in their first caption are left out, such as %s", len(bare), bare[0]
        )


def _entities_of(file: Path, annotations: Path, images: Path) -> Sample:
    boxes = _entity_boxes(annotations / "Annotations" / f"{file.stem}.xml")
    lines = [line for line in read_text(file).split("\n") if line.strip()]
    if not lines:
        raise InputError(f"'{file}' holds no caption.")
    phrases = [(phrase, box) for number, phrase in _ENTITY.findall(lines[0]) for box in boxes.get(number, [])]
    return Sample(
        file.stem,
        _image_file(images, file.stem),
        references=tuple(_ENTITY.sub(r"\2", line).rstrip("\r") for line in lines),
        boxes=tuple(box for _, box in phrases),
        choices=tuple(phrase for phrase, _ in phrases),
    )


def _entity_boxes(path: Path) -> dict[str, list[PixelBox]]:
    """Boxes by the number of their entity; entities without a box are left out."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"annotation file '{path}' cannot be read ({error}). Download it again.") from error
    boxes: dict[str, list[PixelBox]] = {}
    for count, found in enumerate(root.iter("object"), 1):
        frame = found.find("bndbox")
        if frame is None:
            continue
        sides = Entry({side: frame.findtext(side) for side in _SIDES}, f"'{path}', object {count}")
        corners = tuple(map(sides.number, _SIDES))
        for name in found.iter("name"):
            boxes.setdefault((name.text or "").strip(), []).append(corners)  # type: ignore[arg-type]
    return boxes


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_visual7w(annotations: Path, images: Path, *, split: str | None = None, **_: Any) -> Iterator[Sample]:
    """One sample per question; a file with `boxes` is of the pointing kind, else telling."""
    data = read_entry(annotations)
    boxes = {
        entry.name("box_id"): entry.box("x", "y", "width", "height")
        for entry in (data.entries("boxes") if data.fields.get("boxes") else ())
    }
    for image in data.entries("images"):
        if split is not None and image.name("split") != split:
            continue
        for pair in image.entries("qa_pairs"):
            named = (pair.value("answer"), *pair.items("multiple_choices"))
            choices = [Entry({"choice": value}, pair.place).name("choice") for value in named]
            unknown = [choice for choice in choices if boxes and choice not in boxes]
            if unknown:
                raise InputError(f"{pair.place}: box {unknown[0]} is none of the 'boxes' of the file.")
            yield Sample(
                pair.name("qa_id"),
                images / image.name("filename"),
                {"question": pair.text("question")},
                () if boxes else (choices[0],),
                tuple(boxes[choice] for choice in choices) if boxes else (),
                () if boxes else tuple(choices),
                kind=pair.optional("type"),
            )


def _image_file(folder: Path, *stems: str) -> Path:
    """The first .jpg that exists, as the datasets have it, else .png; where there is none, the first .jpg."""
    files = [folder / f"{stem}{ending}" for ending in (".jpg", ".png") for stem in stems]
    return next((file for file in files if is_file(file)), files[0])


def _refuse(path: Path, form: str, **given: Any) -> None:
    """Refuse arguments that the form of a file gives no use for.

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
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(f"'{annotations}' is not in the format that --task {task} reads ({error!r}).") from error
    if not samples:
        raise InputError(f"'{annotations}' gives no samples for --task {task} (split {options.get('split')}).")
    for sample in samples:
        if not is_utf8(f"{sample.id}{sample.image}"):
            raise InputError(f"{str(sample.image)!a} cannot be written as UTF-8; give the file another name.")
    ids = {sample.id for sample in samples}
    if len(ids) != len(samples):
        raise InputError(f"'{annotations}' has {len(samples) - len(ids)} samples whose id is another's.")
    return samples
