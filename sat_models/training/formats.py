"""Training data of many forms -> records. What a path holds is seen by looking at it.

    a .json or .jsonl file       entries of any style that `entries.py` knows, one per line or in a list
    a folder with one such file  that file
    images/ beside labels/       CogVLM-SFT-311K: `labels/x.json` describes `images/x.jpg`; or a folder of such folders
    pictures alone               captchas: the file name up to its first "_" is the answer, the question is "CAPTCHA:"
    a folder with train/         what `train/` holds

JSON is taken strictly: a trailing comma, as the document's print of SFT-311K shows, is an error that names its place.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sat_models.errors import InputError, UnknownNameError
from sat_models.training.entries import parse_entry
from sat_models.training.grounding.asking import Asking
from sat_models.training.json_entries import json_entries
from sat_models.training.reading import SPLITS, Reading
from sat_models.training.records import EntryError, OnProblem, Problem, Record, raise_problem

logger = logging.getLogger(__name__)

CAPTCHA_PROMPT = "CAPTCHA:"
"""The originals' question for a captcha."""
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")
HELD_OUT = ("valid", "val", "test")
"""Sub-folders that are not read as part of the training data around them."""


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
    found, place = (format, _existing(path)) if format else detect_format(path)
    root = Path(image_root).expanduser() if image_root is not None else None
    problems = 0

    def report(problem: Problem) -> None:
        nonlocal problems
        problems += 1
        on_problem(problem)

    records = []
    for record in FORMATS[found](place, Reading(prompt, root, asking or Asking(), split, report)):
        fault = record.fault()
        if fault is None:
            records.append(record)
        else:
            report(Problem(record.source, "json", fault))
    logger.info("%s: %d record(s), read as %s%s", place, len(records), found, _example(found, records))
    if not records and not problems:
        raise InputError(f"{place} holds no records (read as {found}). Check the path, or force another format.")
    return records


def detect_format(path: str | os.PathLike[str]) -> tuple[str, Path]:
    """The format of a path and the file or folder to read.

    Raises:
        InputError: not there, nothing known in it, or several files of which one must be named.
    """
    path = _existing(Path(path).expanduser())
    if path.is_file():
        if path.suffix.lower() in JSON_SUFFIXES:
            return "json", path
        raise InputError(f"{path} is no training data: a .json or .jsonl file is wanted, or a folder.")
    if _sft_folders(path):
        return "sft311k", path
    entries = [e for e in sorted(path.iterdir()) if not e.name.startswith(".")]
    files = [e for e in entries if e.suffix.lower() in JSON_SUFFIXES and e.is_file()]
    if len(files) == 1:
        return "json", files[0]
    if files:
        raise InputError(
            f"{path} holds {len(files)} JSON files ({', '.join(f.name for f in files[:6])}); name the one to train on."
        )
    if (path / "train").is_dir():
        return detect_format(path / "train")
    if next(images_in(path), None):
        return "captcha", path
    raise InputError(
        f"{path} holds no training data: a .json or .jsonl file, images/ beside labels/, or pictures named by their "
        f"answers are wanted."
    )


def images_in(folder: Path) -> Iterator[Path]:
    """Pictures under a folder, sorted; hidden folders and, at its top, valid/, val/ and test/ are passed over."""
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        at_top = Path(name) == folder
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (at_top and f in HELD_OUT))
        for file in sorted(files):
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield Path(name, file)


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
    for folder in _sft_folders(path):
        images = {image.stem: image for image in reversed(list(images_in(folder / "images")))}
        labelled = set()
        for label in sorted(file for labels in _label_folders(folder) for file in labels.glob("*.json")):
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
}


def _sft_folders(path: Path) -> list[Path]:
    """`path` itself, or its sub-folders, where they hold images/ and labels/."""
    if not path.is_dir():
        return []
    inside = (e for e in sorted(path.iterdir()) if e.is_dir() and e.name not in (*HELD_OUT, "train"))
    return [folder for folder in ([path] if _is_sft(path) else inside) if _is_sft(folder)]


def _is_sft(folder: Path) -> bool:
    return (folder / "images").is_dir() and bool(_label_folders(folder))


def _label_folders(folder: Path) -> list[Path]:
    """`labels/`, and `labels_zh/`, `labels-en/` and the like."""
    return [e for e in sorted(folder.glob("labels*")) if e.is_dir() and re.fullmatch(r"labels([-_]\w+)?", e.name)]


def _example(found: str, records: list[Record]) -> str:
    """For captchas, what a file name is taken to say: any folder of pictures would be read as one."""
    if found != "captcha" or not records:
        return ""
    return f": the answer to '{records[0].turns[0][0]}' of {records[0].images[0]} is '{records[0].turns[0][1]}'"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"Training data '{path}' do not exist. Give a .json or .jsonl file, or a folder.")
    return path
