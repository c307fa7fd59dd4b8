"""Odd image files through every family's processing: the pixels are those of the first frame, upright, as RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sat_models.config import VisionLanguageConfig, read_json
from sat_models.models.build import make_config
from sat_models.processing.intake import pixels_of, plans_of, sources_of

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    *(ROOT / "configs" / "models").glob("*-tiny.json"),
    *(ROOT / "tests" / "golden").glob("*-mini/model_config.json"),
]
TURNED = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}


def seen(config: VisionLanguageConfig, image: Any) -> list[Tensor]:
    """What the towers get of an image."""
    sources = sources_of(image, config.images)
    cross = getattr(config, "cross_image_pix", None)
    vision, high = pixels_of(sources, plans_of(sources, config.images), config.images, cross)
    return [*(vision if isinstance(vision, list) else [vision]), *([] if high is None else [high])]


def odd_files(folder: Path) -> dict[Path, Image.Image]:
    """Files, and what they show."""
    pixels = np.random.default_rng(0).integers(0, 255, (37, 90, 3), dtype=np.uint8)
    image, red = Image.fromarray(pixels), Image.new("RGB", (90, 37), "red")
    grey, palette, one = image.convert("L"), image.quantize(16), image.convert("1")
    shown: dict[Path, Image.Image] = {}

    def save(name: str, content: Image.Image, shows: Image.Image, **options: Any) -> None:
        content.save(folder / name, **options)
        shown[folder / name] = shows.convert("RGB")

    for name, turn in (("5.webp", 5), ("6.png", 6), ("8.tiff", 8)):
        exif = Image.Exif()
        exif[0x112] = turn
        save(name, image, image.transpose(TURNED[turn]), exif=exif, **({"lossless": True} if turn == 5 else {}))
    for name in ("wide.png", "wide.tiff"):
        save(name, Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), grey)
    on_white = np.asarray(palette.convert("RGB")).copy()
    on_white[np.asarray(palette) == 3] = 255
    for name in ("clear.png", "clear.gif"):
        save(name, palette, Image.fromarray(on_white), transparency=3)
    clear = grey.convert("LA")
    clear.putalpha(0)
    save("clear_grey.png", clear, Image.new("RGB", image.size, "white"))
    save("palette.png", palette, palette)
    save("one.png", one, one)
    save("fax.tiff", one, one, compression="group4")
    save("print.tiff", image.convert("CMYK"), image.convert("CMYK"))
    for name in ("several.png", "several.tiff", "several.webp"):
        extra = {"lossless": True} if name.endswith("webp") else {}
        save(name, image, image, save_all=True, append_images=[red], **extra)
    return shown


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name if "golden" in str(path) else path.stem)
def test_odd_files_look_as_what_they_show(path: Path, tmp_path: Path) -> None:
    config = make_config(read_json(path))
    if not isinstance(config, VisionLanguageConfig):
        assert "image_size" not in config.to_dict(), "a language model alone"
        return
    for file, shows in odd_files(tmp_path).items():
        right = seen(config, shows)
        with Image.open(file) as opened:
            for source in (file, file.read_bytes(), opened):
                found = seen(config, source)
                assert len(found) == len(right) and all(map(torch.equal, found, right)), (file.name, type(source))
