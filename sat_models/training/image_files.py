"""Files of images in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm")
HELD_OUT = ("valid", "val", "test")
"""Sub-folders that are not read as part of the training data around them."""


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
