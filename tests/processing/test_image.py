"""Pictures of every kind and of no kind."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_models.config import CLIP_MEAN, CLIP_STD
from sat_models.errors import InputError
from sat_models.processing import fetch
from sat_models.processing.image import kind_of, load_image
from sat_models.processing.pixels import image_to_tensor

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a huge picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 40000, dtype=np.uint16))
        assert image.mode == "I;16"
    else:
        image = Image.new("RGB", (7, 5), RED).convert("L").convert(mode) if mode in "IF" else Image.new(mode, (7, 5))
    got = load_image(image)
    assert got.mode == "RGB" and got.size == (7, 5)
    assert image.mode == mode


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"])
def test_file_types(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.bin"
    path.write_bytes(encoded(Image.new("RGB", (16, 16), RED), kind))
    for source in (path, str(path), path.read_bytes()):
        pixel = load_image(source).getpixel((8, 8))
        assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) <= 3


def test_sixteen_bits_are_scaled() -> None:
    data = encoded(Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)))
    assert [load_image(data).getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert [load_image(encoded(image)).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), RED]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((0, 0), 0)
    data = encoded(palette, transparency=0)
    assert [load_image(data).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), RED]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_exif_orientation() -> None:
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(image, "JPEG", exif=exif.tobytes())).size == (2, 4)
    damaged = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(damaged).size == (4, 2)


def test_the_given_picture_is_left_alone() -> None:
    image = Image.new("RGB", (4, 2))
    load_image(image).putpixel((0, 0), RED)
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png' does not exist"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)
    for content in (b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.png"):
            load_image(tmp_path / "bad.png")
    with pytest.raises(InputError, match="cannot be opened"):
        load_image("x\0y.png")
    with pytest.raises(InputError, match=r"x{50}"):
        load_image("x" * 5000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_truncated(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(InputError, match=r"damaged|not a picture"):
        load_image(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    pixels = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = encoded(pixels, kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = rng.integers(0, 256)
            with contextlib.suppress(InputError):
                assert load_image(bytes(data), max_pixels=10**6).mode == "RGB"


@pytest.mark.parametrize("source", [None, 3, 2.5, [], "", b"", np.zeros((2, 2))])
def test_no_picture_at_all(source: object) -> None:
    with pytest.raises(InputError):
        load_image(source)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_limits_before_decoding() -> None:
    for size in ((60000, 60000), (10000, 10000)):
        start = time.monotonic()
        with pytest.raises(InputError, match=r"too large|at most"):
            load_image(bomb(*size))
        assert time.monotonic() - start < 1
    with pytest.raises(InputError, match=r"10 x 20 = 200 pixels; at most 199"):
        load_image(Image.new("RGB", (10, 20)), max_pixels=199)
    with pytest.raises(InputError, match="more than 10"):
        load_image(encoded(Image.new("RGB", (10, 20))), max_bytes=10)
    with pytest.raises(InputError, match="empty"):
        load_image(Image.new("RGB", (0, 5)))


def test_tensor() -> None:
    tensor = image_to_tensor(Image.new("RGB", (7, 5), RED), 14)
    assert tensor.shape == (3, 14, 14) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    for channel in range(3):
        expected = (RED[channel] / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert torch.allclose(tensor[channel], torch.tensor(expected), atol=1e-6)
    assert image_to_tensor(Image.new("L", (7, 5)), 14, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_data_urls() -> None:
    payload = base64.b64encode(encoded(Image.new("RGB", (3, 2), RED))).decode()
    assert load_image(f"data:image/png;base64,{payload}").size == (3, 2)
    assert load_image(f"DATA:image/png;base64,{payload[:20]}\n{payload[20:]}").size == (3, 2)
    for bad in ("data:image/png;base64", "data:image/png;base64,###", "data:,hello", "data:;base64,\ud800AAA"):
        with pytest.raises(InputError):
            load_image(bad)


@pytest.mark.parametrize("change", ["unpadded", "url", "spaces", "upper"])
def test_base64_as_others_read_it(change: str) -> None:
    rng = np.random.default_rng(0)
    for side in (5, 6, 7, 8):
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        payload = base64.b64encode(encoded(image)).decode()
        url = {
            "unpadded": f"data:image/png;base64,{payload.rstrip('=')}",
            "url": f"data:image/png;base64,{payload.replace('+', '-').replace('/', '_')}",
            "spaces": f" data:image/png;charset=utf-8; base64,{payload}\n",
            "upper": f"Data:image/png;BASE64,{payload}",
        }[change]
        assert load_image(url).tobytes() == image.tobytes()


def test_what_a_source_is() -> None:
    for text in ("data:x", " data:x", "DATA:,x", "\tdata:image/png;base64,AA"):
        assert kind_of(text) == "data"
    for text in ("http://x/y.png", " https://x", "file:///etc/passwd", "ftp://x"):
        assert kind_of(text) == "url"
    for source in ("a.png", "C:\\x.png", "a:b", Path("data:x.png"), Path("http:/x")):
        assert kind_of(source) == "path"


def test_open_files_and_arrays(tmp_path: Path) -> None:
    image = Image.new("RGB", (7, 5), RED)
    path = tmp_path / "x.png"
    image.save(path)
    with path.open("rb") as file:
        for _ in range(2):  # it is left where it stood, so the same file may be given again
            assert load_image(file).tobytes() == image.tobytes()
    assert load_image(io.BytesIO(path.read_bytes())).tobytes() == image.tobytes()
    assert load_image(np.asarray(image)).tobytes() == image.tobytes()
    assert load_image(np.asarray(image)[:, ::-1]).tobytes() == image.tobytes()
    assert load_image(np.asarray(image.convert("L"))).getpixel((0, 0)) == image.convert("L").convert("RGB").getpixel(
        (0, 0)
    )
    assert load_image(np.zeros((5, 7, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    at_end = io.BytesIO(b"abc")
    at_end.seek(3)
    for bad, said in (
        (np.zeros((5, 7, 3)), "float64 [5, 7, 3]"), (np.zeros((3, 5, 7), np.uint8), "uint8 [3, 5, 7]"),
        (np.zeros((0, 7), np.uint8), "empty"), (np.uint8(3), "numpy.uint8|uint8"), (np.zeros(3, np.uint8), "[3]"),
        (io.StringIO("x"), "gives text"), (io.BytesIO(b""), "not a picture"), (at_end, "stands at its end"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said.replace("[", r"\[")):
            load_image(bad)
    with pytest.raises(InputError, match="more than 10"):
        load_image(io.BytesIO(path.read_bytes()), max_bytes=10)


class Handler(BaseHTTPRequestHandler):
    """Serves one picture, and misbehaves on request."""

    def do_GET(self) -> None:
        image = encoded(Image.new("RGB", (3, 2), RED))
        if self.path == "/missing":
            self.send_error(404)
        elif self.path in ("/to-file", "/to-picture", "/loop"):
            target = {"/to-file": "file:///etc/hosts", "/to-picture": "/picture", "/loop": "/loop"}[self.path]
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                try:
                    self.wfile.write(b"x" * 1000)
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.02)
        elif self.path == "/silent":
            time.sleep(1.5)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>" if self.path == "/page" else image)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def test_http(server: str) -> None:
    for path in ("/picture", "/to-picture"):
        assert load_image(server + path).size == (3, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "answered 404"),
        ("/page", "not a picture"),
        ("/to-file", "."),
        ("/loop", "."),
        ("/silent", r"within 0\.5 s"),
        ("/endless", r"within 0\.5 s|larger"),
    ],
)
def test_http_errors(server: str, path: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=message):
        load_image(server + path, timeout=0.5)
    assert time.monotonic() - start < 1.4


def test_http_size_cap(server: str) -> None:
    with pytest.raises(InputError, match="larger than 5000 bytes"):
        fetch.download(server + "/endless", max_bytes=5000, timeout=5)


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://x/y.png", "http://", "http://[", "http://127.0.0.1:1/x"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(InputError):
        load_image(url, timeout=1)
