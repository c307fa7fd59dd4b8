"""How data are read: what users say about all forms, handed to every reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sat_models.training.grounding.asking import Asking
from sat_models.training.records import ImageFinder, OnProblem, raise_problem

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Reading:
    """One reading.

    Attributes:
        prompt: question where the data carry none; None takes the format's own.
        image_root: folder that picture names are tried in first.
        asking: what is asked about boxes.
        split: one of `SPLITS`, for data that hold several.
        on_problem: called with each fault; the default raises it.
    """

    prompt: str | None = None
    image_root: Path | None = None
    asking: Asking = field(default_factory=Asking)
    split: str = "train"
    on_problem: OnProblem = raise_problem

    def finder(self, file: Path, folders: Sequence[Path] = ()) -> ImageFinder:
        """Looks up the names of a file's pictures, at last in `folders`."""
        return ImageFinder(file, self.image_root, folders=folders)


def image_folders(file: Path) -> Iterator[Path]:
    """Folders in which the pictures of an annotation file usually lie: `images`, and COCO's `train2017` beside
    `annotations/instances_train2017.json`."""
    for folder in (file.parent, file.parent.parent):
        yield folder / "images"
        yield folder / file.stem.rpartition("_")[2]
