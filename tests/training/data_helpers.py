"""Small data on disk and the golden miniature's processor."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sat_models.processing.processor import Processor
from sat_models.training.records import Record
from sat_models.zoo import load_processor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@functools.cache
def processor(name: str = "cogvlm-mini") -> Processor:
    """The processor of a miniature: 16 image tokens, context 256."""
    return load_processor(GOLDEN / name)


def image_file(path: Path, colour: str = "red") -> Path:
    """A small picture file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), colour).save(path)
    return path


def write_jsonl(path: Path, entries: Sequence[Any]) -> Path:
    """One JSON value per line; a str is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json(path: Path, value: Any, **options: Any) -> Path:
    """One JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, **options), encoding="utf-8")
    return path


def record(number: int, image: Path | None, *turns: tuple[str, str]) -> Record:
    """A record as a reader would give it."""
    return Record(
        str(number), (image,) if image else (), turns or (("What?", f"answer {number}"),), f"x.jsonl:{number}"
    )
