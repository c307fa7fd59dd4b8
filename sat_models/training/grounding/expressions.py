"""Expressions of people with a box each: RefCOCO's refs, RefCOCO as lines of JSON, regions of Visual Genome.

They are read as evaluation reads them; training takes the expressions of its own split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.evaluation.lines import holds_lines
from sat_models.evaluation.readers import read_samples
from sat_models.evaluation.samples import Sample
from sat_models.training.grounding.annotated import Annotated, reporting, size_of
from sat_models.training.grounding.samples import records_of
from sat_models.training.reading import Reading, image_folders
from sat_models.training.records import Problem, Record

VISUAL_GENOME = ("VG_100K", "VG_100K_2")
"""Folders of the publication, which lie beside its annotations."""


def read_refcoco(path: Path, how: Reading) -> Iterator[Record]:
    """The records of `refs(*).p` (with `instances.json` beside it), of the same as JSON, or of lines of JSON."""
    lines = path.suffix in (".json", ".jsonl") and holds_lines(path, "sent")
    yield from _read("rec", path, how, {} if lines else {"split": how.split})


def read_visual_genome(path: Path, how: Reading) -> Iterator[Record]:
    """The records of `region_descriptions.json`."""
    yield from _read("reg", path, how, {})


def _read(task: str, path: Path, how: Reading, options: Mapping[str, Any]) -> Iterator[Record]:
    folder = _image_folder(path, how)
    try:
        samples = read_samples(task, path, folder, **options)
    except InputError as error:
        how.on_problem(Problem(str(path), "fields", str(error)))
        return
    by_image: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    finder = how.finder(path)
    for image, own in by_image.items():
        source = f"{path}, {image.name}"
        with reporting(source, how.on_problem):
            file = finder.find(str(image))
            found = Annotated(file, size_of(file), source)
            for sample in own:
                with found.reporting(f"{source}, {sample.id}", how.on_problem):
                    found.add(sample.references[0], sample.boxes[0])
            yield from records_of(found, how.asking)


def _image_folder(path: Path, how: Reading) -> Path:
    """Where the pictures are: what the user says, else `images` or a like folder near by, else the file's own."""
    near = [*image_folders(path), *(path.parent for name in VISUAL_GENOME if (path.parent / name).is_dir())]
    return how.image_root or next((folder for folder in near if folder.is_dir()), path.parent)
