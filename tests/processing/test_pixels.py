"""The way from a picture of any shape to a tower's pixels: the same under every Pillow, and in proportion."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_models.config import CLIP_MEAN, ImagePlan, ImageProcessing
from sat_models.errors import ConfigError
from sat_models.processing.image import load_image
from sat_models.processing.pixels import FITS, image_to_tensor, normalised, planned_pixels, resize

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases" / "pictures"

PIXELS = {
    (30, 50): {"stretch": "21500c8826bb75fe", "pad": "75ab9c86ea9e3c42", "crop": "96a0a251788e64fc"},
    (60, 200): {"stretch": "dc5f9b59bbce8354", "pad": "61a4ac69a65bdb71", "crop": "c51a54eadd038ef0"},
    (37, 111): {"stretch": "5303846745f11a6b", "pad": "9d545bf598e2e72f", "crop": "4989424e26180a28"},
    (200, 60): {"stretch": "11b906afac194bb5", "pad": "1923d4ac4e1225cb", "crop": "da372345d2b2363b"},
    (90, 91): {"stretch": "a01de566e172fb02", "pad": "dc008e65df61acc6", "crop": "a01de566e172fb02"},
    (64, 64): {"stretch": "8613f54221c5dc94", "pad": "8613f54221c5dc94", "crop": "8613f54221c5dc94"},
    (1500, 100): {"stretch": "95454b75f84d0b25", "pad": "1c51368775d1c785", "crop": "7463abce5204823e"},
    (7, 300): {"stretch": "85e900a5b66915c7", "pad": "ecca1d51df15bf15", "crop": "669e723592a0923f"},
    (480, 640): {"stretch": "7b2d371d80c6aee9", "pad": "01be221062b74cab", "crop": "d31b20b61dfe79da"},
    (640, 480): {"stretch": "d9d6388d16c98b20", "pad": "54eef0f5b5cfffed", "crop": "1172ed153de1c77b"},
}  # fmt: skip
"""Width and height -> hash of the pixels at 56 x 56 that Pillow 12's own `resize` gave of the whole padded square."""


def pattern(width: int, height: int) -> Image.Image:
    y, x, channel = np.mgrid[0:height, 0:width, 0:3]
    values = x * 7 + y * 13 + channel * 29 + (x * y) % 97 * 3 + (x // 9) * (y // 5)
    return Image.fromarray((values % 256).astype(np.uint8))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", PIXELS, ids=str)
def test_pixels_are_those_that_pillow_12_gave(size: tuple[int, int], fit: str) -> None:
    """Pillow 13 takes a portrait's columns first; the two passes here are explicit, so the hashes hold there too."""
    got = FITS[fit](pattern(*size), 56)
    assert got.size == (56, 56)
    assert hashlib.sha256(got.tobytes()).hexdigest()[:16] == PIXELS[size][fit]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (20000, 30), (30, 20000)], ids=str)
def test_a_strip_looks_as_it_would_in_full(size: tuple[int, int], fit: str) -> None:
    """Its pixels come by a shorter way, whose result is that of the long one up to what a strip's edge blurs."""
    strip = Image.new("RGB", size, (250, 10, 60))
    got = np.asarray(FITS[fit](strip, 28)).astype(int)
    if fit != "pad":
        assert (got == (250, 10, 60)).all()
        return
    bars = np.array([int(channel * 255) for channel in CLIP_MEAN])
    assert (got[:12, :12] == bars).all() and (got[16:, 16:] == bars).all()
    lines = got if size[0] > size[1] else got.transpose(1, 0, 2)
    middle = lines[13:15, :].mean(axis=(0, 1))
    share = max(min(size), 1) / max(size) * 28 / 2  # of the two middle rows that the strip fills
    assert np.allclose(middle, bars + share * (np.array([250, 10, 60]) - bars), atol=10)


STRIPS = """
import resource, sys, time
from sat_models.processing.image import load_image
from sat_models.config import ImagePlan, ImageProcessing
from sat_models.processing.pixels import FITS, image_to_tensor, planned_pixels
from PIL import Image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
images = [load_image(path) for path in sys.argv[1:]]
images += [image.transpose(Image.Transpose.ROTATE_90) for image in images] + [Image.new("RGB", (9000, 100))]
image_to_tensor(Image.new("RGB", (500, 400)), 336)
before, start = peak(), time.process_time()
for image in images:
    for fit in FITS:
        image_to_tensor(image, 336, ImageProcessing(fit=fit))
    planned_pixels(image, ImagePlan(length=1, canvas=(672, 336), grid=(2, 1), overview=True))
    planned_pixels(image, ImagePlan(length=1, canvas=(672, 336), box=(0, 100, 672, 9), transposed=True))
image_to_tensor(images[-2], 1120)
print(peak() - before, time.process_time() - start)
"""


def test_a_strip_takes_memory_and_time_by_its_own_pixels(tmp_path: Path) -> None:
    """198 bytes took 6.5 GB and 41 s where the padded square of 40000 x 40000 was built."""
    other = tmp_path / "strip.png"
    Image.new("RGB", (2, 60000)).save(other)
    files = [CASES / "w40000x1.png", CASES / "w1000000x1.png", other]
    run = [sys.executable, "-c", STRIPS, *map(str, files)]
    megabytes, seconds = map(float, subprocess.check_output(run, cwd=ROOT, text=True).split())
    assert megabytes < 200 and seconds < 20


@pytest.mark.parametrize("fit", FITS)
def test_any_mode_is_taken(fit: str) -> None:
    assert image_to_tensor(Image.new("LA", (7, 5)), 14, ImageProcessing(fit=fit)).shape == (3, 14, 14)
    with pytest.raises(ConfigError, match="resampling of images is 'cubic'; allowed: bicubic, bilinear"):
        ImageProcessing(resampling="cubic")


def test_notes_in_a_png_do_not_hide_its_picture(tmp_path: Path) -> None:
    """Editors and generators write megabytes of text beside the pixels; Pillow stops reading at one."""
    assert load_image(CASES / "png_big_ztxt.png").mode == "RGB"
    from PIL.PngImagePlugin import PngInfo

    for name, note in {"before": "zTXt", "plain": "tEXt"}.items():
        notes = PngInfo()
        for number in range(1 if note == "zTXt" else 70):
            notes.add_text(f"workflow{number}", "x" * 2**21, zip=note == "zTXt")
        path = tmp_path / f"{name}.png"
        pattern(20, 10).save(path, pnginfo=notes)
        for source in (path, path.read_bytes()):
            assert load_image(source, max_bytes=2**28).tobytes() == pattern(20, 10).tobytes()


def test_tiles_are_cut_row_by_row_and_the_overview_is_last() -> None:
    """InternVL's way: the image is stretched to a grid of tiles."""
    image, how = pattern(150, 96), ImageProcessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    plan = ImagePlan(length=1, canvas=(84, 56), grid=(3, 2), overview=True)
    tiles = planned_pixels(image, plan, how)
    assert tiles.shape == (7, 3, 28, 28) and plan.tile == (28, 28) and plan.num_tiles == 7
    whole = normalised(resize(image, (84, 56)), how)
    for number in range(6):
        row, column = divmod(number, 3)
        part = whole[:, row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]
        assert torch.equal(tiles[number], part)
    assert torch.equal(tiles[6], image_to_tensor(image, 28, how))
    values = torch.from_numpy(np.asarray(resize(image, (28, 28))).astype("float32")) / 255
    expected = (values - torch.tensor(how.mean)) / torch.tensor(how.std)
    torch.testing.assert_close(tiles[6], expected.permute(2, 0, 1))


@pytest.mark.parametrize("lies", [True, False])
def test_an_image_lies_in_its_box_on_a_canvas_of_its_own(lies: bool) -> None:
    """4KHD's way: white above and below, bilinear; a portrait as if it lay on its side."""
    image = pattern(150, 96)
    how = ImageProcessing(resampling="bilinear", colour=(255, 255, 255))
    plan = ImagePlan(length=1, canvas=(168, 112), box=(0, 2, 168, 107))
    white = normalised(Image.new("RGB", (1, 1), "white"), how)
    expected = white.expand(3, 112, 168).clone()
    expected[:, 2:109] = normalised(resize(image, (168, 107), Image.Resampling.BILINEAR), how)
    if not lies:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        plan = ImagePlan(length=1, canvas=(112, 168), box=(2, 0, 107, 168), transposed=True)
        expected = expected.transpose(1, 2)
    got = planned_pixels(image, plan, how)
    assert torch.equal(got, expected[None]) and got.is_contiguous()
