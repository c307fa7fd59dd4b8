"""The format of a path, seen by looking at it. Of a JSON file the beginning is enough."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from sat_models.errors import InputError
from sat_models.files import refuse_packed
from sat_models.training.grounding.yolo import YAML_SUFFIXES, is_yolo
from sat_models.training.image_files import HELD_OUT, images_in

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE = ".parquet"
PICKLES = (".p", ".pkl", ".pickle")
_LOOKED_AT = 1 << 20
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[\[\]{}]')


def format_of(path: Path) -> tuple[str, Path]:
    """The format of an existing path, and the file or folder to read.

    Raises:
        InputError: nothing known in it, or several files of which one must be named.
    """
    return (_of_file(path), path) if path.is_file() else _of_folder(path)


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return _of_json(path)
    if suffix in YAML_SUFFIXES:
        return "yolo"
    if suffix in PICKLES:
        return "refcoco"
    if suffix == TABLE:
        return "table"
    with path.open("rb") as file:
        refuse_packed(path, file.read(8))
    raise InputError(
        f"{path} is no training data: a .json or .jsonl file is wanted, a data.yaml of YOLO, refs of RefCOCO (.p), a "
        ".parquet file, or a folder."
    )


def _of_folder(path: Path) -> tuple[str, Path]:
    if is_yolo(path):
        return "yolo", path
    if sft_folders(path):
        return "sft311k", path
    entries = [e for e in sorted(path.iterdir()) if not e.name.startswith(".") and e.is_file()]
    files = [e for e in entries if e.suffix.lower() in JSON_SUFFIXES]
    if len(files) > 1 and all(_of_json(file) == "labelme" for file in files[:10]):
        return "labelme", path
    files = [e for e in entries if e.match("refs*.p")] or files
    if len(files) == 1:
        return _of_file(files[0]), files[0]
    if not files and any(e.suffix == TABLE for e in entries):
        return "table", path
    if files:
        raise InputError(
            f"{path} holds {len(files)} {'JSON files' if files[0].suffix.lower() in JSON_SUFFIXES else 'refs'} "
            f"({', '.join(f.name for f in files[:6])}); name the one to train on."
        )
    if (path / "train").is_dir():
        return _of_folder(path / "train")
    if next(images_in(path), None):
        return "captcha", path
    if packed := [e for e in entries if e.with_suffix("").suffix.lower() in JSON_SUFFIXES]:
        _of_file(packed[0])
    raise InputError(
        f"{path} holds no training data: a .json or .jsonl file, images/ beside labels/, or pictures named by their "
        f"answers are wanted."
    )


def _of_json(path: Path) -> str:
    """Entries of any style, unless it is an annotation file."""
    is_list, keys = beginning_of(path)
    if is_list:
        if "phrase" in keys.get("regions", ()):
            return "visual-genome"
        whole = "data" in keys and keys.keys() & {"annotations", "completions"}
        if whole or {"annotation_id", "annotator"} <= keys.keys():
            return "label-studio"
        return "refcoco" if {"ref_id", "sentences"} <= keys.keys() else "json"
    if {"sent", "bbox"} <= keys.keys():
        return "refcoco"
    if "shapes" in keys or "imageData" in keys:
        return "labelme"
    annotated = keys.get("annotations", set())
    if "image_id" in annotated and annotated & {"bbox", "caption", "category_id"}:
        return "coco"
    return "coco" if {"file_name", "id"} <= keys.get("images", set()) and "categories" in keys else "json"


def beginning_of(path: Path) -> tuple[bool, dict[str, set[str]]]:
    """Whether a JSON file holds a list, and the keys of its first object: each with those of the objects inside of it.

    What is broken or too far behind is left out; nothing is raised.
    """
    with path.open("rb") as file:
        data = file.read(_LOOKED_AT)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig", errors="ignore").lstrip()
    is_list = text.startswith("[")
    own = 1 + is_list  # so deep is the object that is looked at
    keys: dict[str, set[str]] = {}
    stack: list[str] = []
    for found in _TOKEN.finditer(text):
        token = found.group()
        if token in ("[", "{"):
            stack.append(token)
        elif token in ("]", "}"):
            del stack[-1:]
            if len(stack) < own and keys:
                break
        elif found.group(2) and stack[-1:] == ["{"]:
            if len(stack) == own:
                last = keys.setdefault(found.group(1), set())
            elif len(stack) <= own + 2 and keys:
                last.add(found.group(1))
    return is_list, keys


def sft_folders(path: Path) -> list[Path]:
    """`path` itself, or its sub-folders, where they hold images/ and labels/."""
    if not path.is_dir():
        return []
    inside = (e for e in sorted(path.iterdir()) if e.is_dir() and e.name not in (*HELD_OUT, "train"))
    return [folder for folder in ([path] if _is_sft(path) else inside) if _is_sft(folder)]


def label_folders(folder: Path) -> list[Path]:
    """`labels/`, and `labels_zh/`, `labels-en/` and the like."""
    return [e for e in sorted(folder.glob("labels*")) if e.is_dir() and re.fullmatch(r"labels([-_]\w+)?", e.name)]


def _is_sft(folder: Path) -> bool:
    return (folder / "images").is_dir() and bool(label_folders(folder))
