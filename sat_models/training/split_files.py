"""A folder of data -> folders train, valid and test, as the document's `split_dataset.py` makes them, but kinder.

Differences: files are sorted before they are shuffled (the document's order is that of the disk, so its seed gives
another split on another machine), any picture type and every format of `formats.py` is taken, files are copied unless
told otherwise, nothing is overwritten, and entries that share a picture stay together.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sat_models.errors import ConfigError, InputError
from sat_models.text import json_line
from sat_models.training.formats import detect_format, read_records
from sat_models.training.image_names import IMAGE_KEYS
from sat_models.training.json_entries import json_entries
from sat_models.training.marks import NAMED, UNNAMED
from sat_models.training.records import EntryError, ImageFile, ImageFinder, raise_problem
from sat_models.training.split import group_by_common

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
NAMING_KEYS = (*IMAGE_KEYS, "image_url", "url", "path")
DEFAULT_RATIO = (0.8, 0.05, 0.15)
"""8000/500/1500 of ten thousand, as in the document."""


@dataclass
class Item:
    """A group that goes into one part as a whole.

    Attributes:
        files: (file, its place within the part).
        entries: lines of the part's JSONL.
        weight: how many of the counted things it is: pictures, or entries.
    """

    files: list[tuple[Path, Path]] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    weight: int = 1


def split_dataset(
    source: Path,
    output: Path,
    *,
    ratio: Sequence[float] = DEFAULT_RATIO,
    counts: Sequence[int] | None = None,
    seed: int = 2023,
    how: str = "copy",
    progress: bool = False,
) -> dict[str, int]:
    """Splits `source` into `output`/train, /valid and /test.

    Pictures whose names are answers lie directly in their part. Of SFT-311K folders, images/ and labels/ do. Of a JSON
    or JSONL file, the part holds a JSONL of the same name and images/.

    Args:
        source: anything `formats.detect_format` knows.
        output: folder; its parts must not exist or be empty.
        ratio: sizes of the parts relative to each other.
        counts: sizes instead; where there are too few, the last parts get less, as in the document.
        seed: of the shuffling.
        how: "copy", "move", or "link" (hard links, symbolic ones across disks).
        progress: show a progress bar.

    Returns:
        Number of pictures (of JSON: entries) in each part.

    Raises:
        ConfigError: ratios or counts that make no sense, or an unknown `how`.
        InputError: nothing to split, broken data, or parts that hold files already.
    """
    if how not in ("copy", "move", "link"):
        raise ConfigError(f"how is '{how}'; it must be copy, move or link")
    found, place = detect_format(source)
    for part in PARTS:
        if (output / part).exists() and (not (output / part).is_dir() or any((output / part).iterdir())):
            raise InputError(f"{output / part} exists and is not empty; give another --output, or remove it first")
    split = {"json": _json_items, "sft311k": _sft_items, "captcha": _image_items}
    if found not in split:
        raise InputError(
            f"{place} is read as {found}, which is not split into files here ({', '.join(split)} are). Fine-tuning "
            "holds out a share by itself (--valid_share)."
        )
    items = split[found](place)
    wanted = part_sizes(sum(item.weight for item in items), ratio=ratio, counts=counts)
    parts = _deal(items, wanted, seed)
    transfer = {"copy": shutil.copy2, "move": shutil.move, "link": _link}[how]
    total = sum(len(item.files) for chosen in parts for item in chosen)
    jsonl = f"{place.stem}.jsonl" if found == "json" else None
    try:
        with tqdm(total=total, desc=how, unit="file", disable=not progress) as bar:
            for part, chosen in zip(PARTS, parts, strict=True):
                _write(chosen, output / part, jsonl, transfer, bar)
    except OSError as error:
        raise InputError(f"splitting stopped: {error}. What was written to {output} so far is still there.") from error
    return {part: sum(item.weight for item in chosen) for part, chosen in zip(PARTS, parts, strict=True)}


def part_sizes(total: int, *, ratio: Sequence[float] = DEFAULT_RATIO, counts: Sequence[int] | None = None) -> list[int]:
    """Sizes of train, valid and test.

    By ratio they sum to `total`, and no part with a share is empty while another has two. By counts, the first parts
    are served first.

    Raises:
        ConfigError: not three numbers, a negative one, or all 0.
    """
    given = ratio if counts is None else counts
    if len(given) != 3 or min(given) < 0 or not sum(given) > 0:
        raise ConfigError(f"sizes of train, valid and test are {list(given)}; three numbers are wanted, not all 0")
    if counts is not None:
        sizes, left = [], total
        for count in counts:
            sizes.append(min(count, left))
            left -= sizes[-1]
        if sum(counts) > total:
            logger.warning("%s wanted of only %d: taking %s", list(counts), total, sizes)
        return sizes
    bounds = [round(total * sum(ratio[: i + 1]) / sum(ratio)) for i in range(3)]
    sizes = [bounds[0], bounds[1] - bounds[0], total - bounds[1]]
    for part in range(3):
        if ratio[part] > 0 and sizes[part] == 0 and max(sizes) > 1:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[part] = 1
    return sizes


def _deal(items: list[Item], sizes: list[int], seed: int) -> list[list[Item]]:
    """Shuffled items for each part, in turn until it has its size."""
    order = list(items)
    random.Random(seed).shuffle(order)
    parts: list[list[Item]] = []
    waiting = iter(order)
    for size in sizes:
        chosen, have = [], 0
        while have < size and (item := next(waiting, None)) is not None:
            chosen.append(item)
            have += item.weight
        parts.append(chosen)
    return parts


def _image_items(folder: Path) -> list[Item]:
    """One per picture, flat; names that occur twice get a suffix that does not change the answer."""
    names = _FreeNames()
    return [Item([(r.images[0], Path(names.take(r.images[0].name)))]) for r in read_records(folder, format="captcha")]


def _sft_items(folder: Path) -> list[Item]:
    """One per picture, with its labels."""
    files: dict[Path, list[Path]] = {}
    for record in read_records(folder, format="sft311k"):
        labels = files.setdefault(record.images[0], [])
        label = Path(record.source.rpartition(":")[0])
        if label not in labels:
            labels.append(label)
    return [Item([(file, file.relative_to(folder)) for file in (image, *labels)]) for image, labels in files.items()]


def _json_items(file: Path) -> list[Item]:
    """Entries that share a picture make one; their pictures get names under images/."""
    records = read_records(file, format="json")
    by_source: dict[str, tuple[ImageFile, ...]] = {record.source: record.images for record in records}
    names, finder = _FreeNames(), ImageFinder(file, quiet=True)
    places: dict[ImageFile, Path] = {}
    items = []
    for source, entry in json_entries(file, raise_problem):
        images = [image for image in by_source[source] if isinstance(image, Path)]
        for image in images:
            places.setdefault(image, Path("images", names.take(image.name)))
        files = [(image, places[image]) for image in dict.fromkeys(images)]
        items.append(Item(files, [_renamed(entry, places, finder)]))
    groups = group_by_common(items, [[path for path, _ in item.files] or [id(item)] for item in items])
    return [_together(group) for group in groups]


def _together(group: list[Item]) -> Item:
    files = list(dict.fromkeys(pair for item in group for pair in item.files))
    return Item(files, [entry for item in group for entry in item.entries], len(group))


def _renamed(value: Any, places: dict[ImageFile, Path], finder: ImageFinder, key: str = "") -> Any:
    """A JSON value with the names of pictures replaced, where a name can stand; other texts are left alone."""
    if isinstance(value, list):
        return [_renamed(item, places, finder, key) for item in value]
    if isinstance(value, dict):
        return {name: _renamed(item, places, finder, name) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if key not in NAMING_KEYS:  # Qwen-VL's names stand in the text
        return NAMED.sub(lambda found: _renamed_mark(found, places, finder), value)
    return _place_of(value, places, finder)


def _renamed_mark(mark: re.Match[str], places: dict[ImageFile, Path], finder: ImageFinder) -> str:
    """A mark of a picture with its new name, where it has one."""
    name = mark["name"].strip()
    return mark.group() if name in UNNAMED else f"<img>{_place_of(name, places, finder)}</img>"


def _place_of(name: str, places: dict[ImageFile, Path], finder: ImageFinder) -> str:
    try:
        place = places.get(finder.find(name)) if name else None
    except EntryError:
        return name
    return place.as_posix() if place else name


class _FreeNames:
    """File names that are not taken yet."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        number = 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._taken.add(name.lower())
        return name


def _write(items: list[Item], folder: Path, jsonl: str | None, transfer: Any, bar: tqdm) -> None:
    """One part on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        for source, place in item.files:
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            transfer(source, target)
            bar.update()
    if jsonl:
        lines = (json_line(entry) for item in items for entry in item.entries)
        (folder / jsonl).write_text("".join(lines), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """A hard link, which survives mounts and moves; a symbolic one where the disk does not allow it."""
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source.resolve(), target)
