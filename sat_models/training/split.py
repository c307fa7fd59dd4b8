"""Who trains and who validates: a seeded partition that keeps together what shares a picture."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sat_models.errors import ConfigError
from sat_models.training.detecting import JSON_SUFFIXES
from sat_models.training.formats import read_records
from sat_models.training.image_files import HELD_OUT
from sat_models.training.reading import SPLITS
from sat_models.training.records import PROBLEMS_SHOWN, Problem, Record, count_kinds, raise_bare_problem, raise_problem

logger = logging.getLogger(__name__)

T = TypeVar("T")
PathLike = str | os.PathLike[str]
Reader = Callable[..., list[Record]]


def load_train_valid(
    train_data: PathLike | Sequence[PathLike],
    *,
    valid_data: PathLike | Sequence[PathLike] | None = None,
    share: float = 0.05,
    seed: int = 0,
    on_bad: str = "error",
    reader: Reader = read_records,
    **reading: Any,
) -> tuple[list[Record], list[Record]]:
    """Records to train on and to validate on.

    Validation data are `valid_data`, else a `valid/` folder beside the training data, else a seeded share of them in
    which no picture also occurs in training.

    Args:
        train_data: one path or several.
        valid_data: the caller's choice (flag or VALID_DATA).
        share: of the training data, where there is nothing else; 0 for no validation.
        seed: of that choice.
        on_bad: "error" raises at the first bad record, "skip" leaves it out and says how many.
        reader: reads one path.
        reading: what it takes; `format`, `prompt`, `image_root`, `asking` of `formats.read_records`.

    Raises:
        InputError: a path that is not there, or a bad record with "error".
        ConfigError: a share out of range.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the validation share is {share}; it must be at least 0 and below 1")
    paths = _paths(train_data)
    train = [record for path in paths for record in read_usable(path, on_bad, reading, reader)]
    chosen = _paths(valid_data) if valid_data else validation_folders(paths)
    if chosen:
        held_out = {**reading, "split": SPLITS[1]}
        valid = [record for path in chosen for record in read_usable(path, on_bad, held_out, reader)]
        logger.info("validation: %d record(s) of %s", len(valid), ", ".join(map(str, chosen)))
        common = {p for r in train for p in r.images} & {p for r in valid for p in r.images}
        if common:
            first = min(map(str, common))
            logger.warning("%d picture(s) of the validation data are trained on, such as %s", len(common), first)
        return train, valid
    return split_records(train, share=share, seed=seed)


def split_records(records: Sequence[Record], *, share: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """(the rest, about `share` of the records), chosen by seed; records that share a picture stay together.

    At least one record is held out where there are two groups to choose from. Both lists keep the order of `records`.
    """
    groups = group_by_common(records, [record.images or (id(record),) for record in records])
    wanted = max(1, round(share * len(records))) if share > 0 else 0
    if wanted and len(groups) < 2:
        logger.warning("all %d record(s) share a picture: none can be held out for validation", len(records))
        wanted = 0
    random.Random(f"valid/{seed}").shuffle(groups)
    held: set[int] = set()
    for group in groups[:-1]:
        if len(held) < wanted:
            held.update(map(id, group))
    logger.info("validation: %d of %d record(s), chosen with seed %d", len(held), len(records), seed)
    return [r for r in records if id(r) not in held], [r for r in records if id(r) in held]


def group_by_common(items: Sequence[T], keys: Sequence[Iterable[Hashable]]) -> list[list[T]]:
    """Items in groups such that two items with a key in common, directly or through others, are in one."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    firsts = []
    for own in keys:
        first, *others = own
        for other in others:
            parent[root(other)] = root(first)
        firsts.append(first)
    groups: dict[Hashable, list[T]] = {}
    for item, first in zip(items, firsts, strict=True):
        groups.setdefault(root(first), []).append(item)
    return list(groups.values())


def validation_folders(train: Sequence[PathLike]) -> list[Path]:
    """Data to validate on that lies beside the training data, each once."""
    return list(dict.fromkeys(path for path in map(validation_beside, train) if path))


def validation_beside(train: PathLike) -> Path | None:
    """The `valid/` folder that belongs to some training data: in the folder, or beside the folder; for a file also
    `valid.jsonl` beside `train.jsonl`."""
    train = Path(train).expanduser()
    folder = train if train.is_dir() else train.parent
    places = [folder / "valid"]
    if train.is_dir() or folder.name == "train":
        places.append(folder.parent / "valid")
    if train.suffix in JSON_SUFFIXES and train.stem == "train":
        places += [train.with_name(f"valid{suffix}") for suffix in JSON_SUFFIXES]
    if folder.name in HELD_OUT:
        places = places[:1]
    return next((place for place in places if place.exists() and place.resolve() != train.resolve()), None)


def _paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(path) for path in given]


def read_usable(path: Path, on_bad: str, reading: dict[str, Any], reader: Reader = read_records) -> list[Record]:
    """Records of one path; bad ones raise (`on_bad` "error"), or are counted and the first few said."""
    problems: list[Problem] = []
    strict = raise_problem if reader is read_records else raise_bare_problem
    records = reader(path, on_problem=strict if on_bad == "error" else problems.append, **reading)
    if problems:
        for problem in problems[:PROBLEMS_SHOWN]:
            logger.warning("bad record left out: %s", problem)
        logger.warning(
            "%s: %d bad record(s) left out (%s)%s", path, len(problems), count_kinds(problems),
            ". scripts/validate_dataset.py lists them all" if reader is read_records else "",
        )  # fmt: skip
    return records
