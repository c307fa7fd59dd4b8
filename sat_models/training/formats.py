"""Training data of many forms -> records. What a path holds is seen by looking at it.

    a .json or .jsonl file       entries of any style that `entries.py` knows, one per line or in a list
    a folder with one such file  that file
    images/ beside labels/       CogVLM-SFT-311K: `labels/x.json` describes `images/x.jpg`; or a folder of such folders
    pictures alone               captchas: the file name up to its first "_" is the answer, the question is "CAPTCHA:"
    a folder with train/         what `train/` holds
    .parquet, hf:OWNER/NAME      rows that are such entries (`tables.py`)
    boxes in pixels              COCO, RefCOCO, Visual Genome, YOLO, LabelMe, Label Studio (`grounding/`)

JSON is taken strictly: a trailing comma, as the document's print of SFT-311K shows, is an error that names its place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sat_models.errors import InputError, UnknownNameError
from sat_models.training.detecting import format_of, label_folders, sft_folders
from sat_models.training.entries import parse_entry
from sat_models.training.grounding.asking import Asking, asking_from
from sat_models.training.grounding.coco import read_coco
from sat_models.training.grounding.expressions import read_refcoco, read_visual_genome
from sat_models.training.grounding.label_studio import read_label_studio
from sat_models.training.grounding.labelme import read_labelme
from sat_models.training.grounding.samples import tasks_of
from sat_models.training.grounding.yolo import read_yolo
from sat_models.training.image_files import images_in
from sat_models.training.json_entries import json_entries
from sat_models.training.reading import SPLITS, Reading
from sat_models.training.records import EntryError, OnProblem, Problem, Record, raise_problem
from sat_models.training.tables import is_hub, read_table

logger = logging.getLogger(__name__)

CAPTCHA_PROMPT = "CAPTCHA:"
"""The originals' question for a captcha."""


def read_records(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    prompt: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    asking: Asking | None = None,
    split: str = SPLITS[0],
    on_problem: OnProblem = raise_problem,
) -> list[Record]:
    """All records of a file or folder, in a fixed order.

    Args:
        path: see the table at the top of this file.
        format: one of `FORMATS` to force it; None looks.
        prompt: question where the data carry none (captchas, SFT-311K captions); None takes the format's own.
        image_root: folder that picture names are tried in first.
        asking: what is asked about boxes in pixels; None is the usual.
        split: "train" or "val", for data that hold both.
        on_problem: called with each fault; the default raises it.

    Raises:
        InputError: the path is not there or holds nothing known, there is no record at all, or `on_problem` raises.
        UnknownNameError: unknown `format`.
    """
    path = Path(path).expanduser()
    if format is not None and format not in FORMATS:
        raise UnknownNameError("data format", format, FORMATS)
    found, place = (format, path if is_hub(path) else _existing(path)) if format else detect_format(path)
    root = Path(image_root).expanduser() if image_root is not None else None
    problems = 0

    def report(problem: Problem) -> None:
        nonlocal problems
        problems += 1
        on_problem(problem)

    records = []
    for record in FORMATS[found](place, Reading(prompt, root, asking or asking_from(prompt=prompt), split, report)):
        fault = record.fault()
        if fault is None:
            records.append(record)
        else:
            report(Problem(record.source, "json", fault))
    asked = ", ".join(f"{count} {task}" for task, count in tasks_of(records).items())
    made = f" ({asked})" if asked else _example(found, records)
    logger.info("%s: %d record(s), read as %s%s", place, len(records), found, made)
    if not records and not problems:
        raise InputError(f"{place} holds no records (read as {found}). Check the path, or force another format.")
    return records


def detect_format(path: str | os.PathLike[str]) -> tuple[str, Path]:
    """The format of a path and the file or folder to read.

    Raises:
        InputError: not there, nothing known in it, or several files of which one must be named.
    """
    path = Path(path).expanduser()
    return ("table", path) if is_hub(path) else format_of(_existing(path))


def captcha_answer(path: Path) -> str:
    """The answer in a captcha's file name: up to the first "_", so that `0427_000001.png` is 0427."""
    return path.stem.split("_")[0]


def _read_json(path: Path, how: Reading) -> Iterator[Record]:
    """Entries of one file."""
    finder = how.finder(path)
    for source, entry in json_entries(path, how.on_problem):
        try:
            yield from parse_entry(entry, source, finder, prompt=how.prompt, asking=how.asking)
        except EntryError as error:
            how.on_problem(error.at(source))


def _read_sft311k(path: Path, how: Reading) -> Iterator[Record]:
    """Labels with the picture of the same stem."""
    for folder in sft_folders(path):
        images = {image.stem: image for image in reversed(list(images_in(folder / "images")))}
        labelled = set()
        for label in sorted(file for labels in label_folders(folder) for file in labels.glob("*.json")):
            labelled.add(label.stem)
            for source, entry in json_entries(label, how.on_problem):
                try:
                    if label.stem not in images:
                        raise EntryError("image", f"no picture {folder / 'images' / label.stem}.* belongs to it")
                    own = {"images": [images[label.stem]], "asking": how.asking}
                    yield from parse_entry(entry, source, how.finder(label), prompt=how.prompt, **own)
                except EntryError as error:
                    how.on_problem(error.at(source))
        bare = sorted(set(images) - labelled)
        if bare:
            logger.warning("%s: %d picture(s) without a label are not used, such as '%s'", folder, len(bare), bare[0])


def _read_captchas(path: Path, how: Reading) -> Iterator[Record]:
    """One record per picture."""
    for image in images_in(path):
        answer, source = captcha_answer(image), f"{image}:1"
        if answer.strip():
            yield Record(source, (image,), ((CAPTCHA_PROMPT if how.prompt is None else how.prompt, answer),), source)
        else:
            how.on_problem(Problem(source, "empty", "the file name holds no answer before its first '_'"))


FORMATS: dict[str, Callable[[Path, Reading], Iterator[Record]]] = {
    "json": _read_json,
    "sft311k": _read_sft311k,
    "captcha": _read_captchas,
    "coco": read_coco,
    "refcoco": read_refcoco,
    "visual-genome": read_visual_genome,
    "yolo": read_yolo,
    "labelme": read_labelme,
    "label-studio": read_label_studio,
    "table": read_table,
}


def _example(found: str, records: list[Record]) -> str:
    """For captchas, what a file name is taken to say: any folder of pictures would be read as one."""
    if found != "captcha" or not records:
        return ""
    return f": the answer to '{records[0].turns[0][0]}' of {records[0].images[0]} is '{records[0].turns[0][1]}'"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"Training data '{path}' do not exist. Give a .json or .jsonl file, or a folder.")
    return path
