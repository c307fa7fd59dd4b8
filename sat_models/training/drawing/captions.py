"""Images with texts as training data of painters.

    a folder of images        `x.txt` beside `x.jpg`, or `labels/x.txt` for `images/x.jpg`, as SAT's data have them
    .json, .jsonl             entries with an image ("image", or "file_name" as in image folders of Hugging Face) and
                              its text ("text", "caption" or "prompt")
    a folder with one of them that file; with train/, what lies there

Each becomes a record with one image, whose answer is the text, so that they are split and told apart as all records.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.training.detecting import JSON_SUFFIXES
from sat_models.training.entry_keys import refuse_unread
from sat_models.training.image_files import images_in
from sat_models.training.image_names import image_names
from sat_models.training.json_entries import json_entries
from sat_models.training.reading import SPLITS
from sat_models.training.records import EntryError, ImageFinder, OnProblem, Problem, Record, raise_problem

logger = logging.getLogger(__name__)

TEXT_KEYS = ("text", "caption", "prompt")
_FILE_NAME = "file_name"


def read_captions(
    path: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    split: str = SPLITS[0],
    on_problem: OnProblem = raise_problem,
) -> list[Record]:
    """All images of a file or folder with their texts, in a fixed order.

    Args:
        path: see the table at the top of this file.
        image_root: folder that the names of images are tried in first.
        split: "train" or "val": the sub-folder to read, where there is one.
        on_problem: called with each fault; the default raises it.

    Raises:
        InputError: the path is not there or holds nothing of the kind, or `on_problem` raises.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"Training data '{path}' do not exist. Give a .json or .jsonl file, or a folder.")
    place = _file_or_folder(path, split)
    root = Path(image_root).expanduser() if image_root is not None else None
    found = _of_folder(place, on_problem) if place.is_dir() else _of_file(place, root, on_problem)
    records = []
    for record in found:
        if fault := record.fault():
            on_problem(Problem(record.source, "json", fault))
        else:
            records.append(record)
    logger.info("%s: %d image(s) with texts", place, len(records))
    return records


def text_of(record: Record) -> str:
    """The text of an image."""
    return record.turns[-1][1]


def _file_or_folder(path: Path, split: str) -> Path:
    """The JSON file of a path, or the folder whose images have texts beside them."""
    if path.is_file():
        if path.suffix.lower() in JSON_SUFFIXES:
            return path
        raise InputError(f"{path} holds no images with texts: a .json or .jsonl file is wanted, or a folder")
    files = sorted(e for e in path.iterdir() if e.suffix.lower() in JSON_SUFFIXES and not e.name.startswith("."))
    if len(files) > 1:
        raise InputError(f"{path} holds {len(files)} JSON files ({files[0].name}, …); name the one to train on")
    if files:
        return files[0]
    if (path / split).is_dir():
        return _file_or_folder(path / split, split)
    if next(images_in(path), None) is None:
        raise InputError(f"{path} holds no images: a .txt beside each image is wanted, or a .jsonl that names them")
    return path


def _of_folder(folder: Path, on_problem: OnProblem) -> Iterator[Record]:
    """Images with a text file each."""
    for image in images_in(folder):
        inside = image.relative_to(folder)
        labels = folder / "labels" / Path(*inside.parts[1:]) if inside.parts[0] == "images" else image
        files = [image.with_suffix(".txt"), labels.with_suffix(".txt")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            on_problem(Problem(str(image), "fields", f"it has no text: put one into {files[0]}"))
            continue
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            on_problem(Problem(str(file), "json", f"it cannot be read as UTF-8 ({error!s:.80})"))
            continue
        try:
            yield _record(image, text, str(file))
        except EntryError as error:
            on_problem(error.at(f"{file}:1"))


def _of_file(file: Path, root: Path | None, on_problem: OnProblem) -> Iterator[Record]:
    """Entries of one JSON file."""
    finder = ImageFinder(file, root)
    for source, entry in json_entries(file, on_problem):
        try:
            yield _entry(entry, source, finder)
        except EntryError as error:
            on_problem(error.at(source))


def _entry(entry: Any, source: str, finder: ImageFinder) -> Record:
    if not isinstance(entry, dict):
        raise EntryError("fields", f"an entry is {type(entry).__name__}, but must be an object with 'image' and 'text'")
    refuse_unread(entry)
    named = {("image" if key == _FILE_NAME else key): value for key, value in entry.items()}
    if _FILE_NAME in entry and "image" in entry:
        raise EntryError("fields", f"has both 'image' and '{_FILE_NAME}'; keep the one that is meant")
    names = image_names(named)
    given = [key for key in TEXT_KEYS if key in entry]
    if len(names) != 1 or len(given) != 1:
        raise EntryError(
            "fields",
            f"has {len(names)} image(s) ('image') and {len(given)} text(s) ('{given[0] if given else TEXT_KEYS[0]}'); "
            f"a painter learns from one image with one of {', '.join(TEXT_KEYS)}",
        )
    text = entry[given[0]]
    if not isinstance(text, str):
        raise EntryError("fields", f"'{given[0]}' is {text!a:.60} ({type(text).__name__}); it must be text")
    image = finder.find(names[0])
    if isinstance(image, str):
        raise EntryError("image", f"the image is at {image:.80}: download it, and name the file")
    return _record(image, text, source)


def _record(image: Path, text: str, source: str) -> Record:
    """Raises EntryError for a text that says nothing."""
    said = " ".join(text.split())
    if not said:
        raise EntryError("empty", f"the text of {image} is empty: say what is to be seen, or take the image out")
    return Record(source, (image,), (("", said),), source)
