"""Pictures from strangers' URLs: each hostile case is refused within its limits."""

from __future__ import annotations

import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from PIL import Image, ImageFile

from sat_models.errors import InputError
from sat_models.processing import fetch
from sat_models.processing.image import load_image

PUBLIC = "93.184.215.14"
"""A public address; the tests lead connections to it to this machine."""


def png(width: int = 3, height: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A small PNG whose header promises `side` x `side` pixels, with data that unpacks to many of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(4 * 2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMB = bomb()


class Handler(BaseHTTPRequestHandler):
    """Friendly and hostile answers by path; `asked` notes every path that was reached."""

    asked: ClassVar[list[str]] = []
    sent = 0

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/drip-head":
            self._drip(b"HTTP/1.0 200 OK\r\n" + b"X-Slow: " + b"y" * 200)
        elif self.path == "/drip-body":
            self.send_response(200)
            self.end_headers()
            self._drip(b"z" * 200)
        elif self.path in ("/gigabyte", "/gigabyte-untold"):
            self.send_response(200)
            if self.path == "/gigabyte":
                self.send_header("Content-Length", str(2**30))
            self.end_headers()
            self._flood(2**30)
        else:
            body = {"/bomb": lambda: BOMB, "/truncated": lambda: png(64, 64)[:-40]}.get(self.path, png)()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    def _drip(self, data: bytes) -> None:
        for value in data:
            try:
                self.wfile.write(bytes([value]))
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    def _flood(self, total: int) -> None:
        block = bytes(65536)
        for _ in range(total // len(block)):
            try:
                self.wfile.write(block)
            except OSError:
                return
            type(self).sent += len(block)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield http.server_address[1]
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def fresh() -> None:
    Handler.asked, Handler.sent = [], 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve as the test says; connections to `PUBLIC` come to this machine."""
    table: dict[str, list[str]] = {"pictures.test": [PUBLIC]}
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> list:
        if host.lower() in table:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in table[host.lower()]]
        return resolve(host, port, *args, **kwargs)

    def create_connection(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        host, number = address
        return connect(("127.0.0.1" if host == PUBLIC else host, number), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    return table


def refused(url: str, message: str, *, within: float = 3.0, **options: object) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=message):
        load_image(url, **{"allowed_hosts": ["127.0.0.1"], "timeout": 5.0, **options})
    assert time.monotonic() - start < within


def test_an_allowed_host_is_read(port: int, names: dict[str, list[str]]) -> None:
    for url, allowed in (
        (f"http://127.0.0.1:{port}/x", ["127.0.0.1"]),
        (f"http://127.0.0.1:{port}/x", [f"127.0.0.1:{port}"]),
        (f"http://pictures.test:{port}/x", ["pictures.test"]),
        (f"http://PICTURES.test:{port}/to/http://pictures.test:{port}/x", ["*"]),
    ):
        assert load_image(url, allowed_hosts=allowed).size == (3, 2)


def test_nothing_else_is_read(port: int, names: dict[str, list[str]]) -> None:
    refused(f"http://pictures.test:{port}/x", "not allowed", allowed_hosts=["other.test"])
    refused(f"http://127.0.0.1:{port}/x", "not allowed", allowed_hosts=[])
    refused(f"http://127.0.0.1:{port}/x", "not allowed", allowed_hosts=[f"127.0.0.1:{port + 1}"])
    assert Handler.asked == []


def test_a_decompression_bomb(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its header: nothing is unpacked."""
    unpacked: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", unpacked.append)
    assert len(BOMB) < 20_000
    refused(f"http://127.0.0.1:{port}/bomb", "50000 x 50000|too large", within=2.0)
    with pytest.raises(InputError, match="= 2500 pixels; at most 2499"):
        load_image(png(50, 50), max_pixels=2499)
    assert unpacked == []


@pytest.mark.parametrize("path", ["drip-head", "drip-body"])
def test_a_slow_server(port: int, path: str) -> None:
    """One byte every tenth of a second: no wait for a byte is long, the whole is."""
    refused(f"http://127.0.0.1:{port}/{path}", r"within 0\.6 s", timeout=0.6)


def test_a_server_that_never_greets_over_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(f"https://127.0.0.1:{silent.getsockname()[1]}/x", r"within 0\.4 s", timeout=0.4)


def test_a_redirect_to_loopback(port: int, names: dict[str, list[str]]) -> None:
    names["inside.test"] = ["127.0.0.1"]
    for target in (
        f"http://127.0.0.1:{port}/secret",
        f"http://inside.test:{port}/secret",
        f"http://localhost:{port}/s",
    ):
        refused(f"http://pictures.test:{port}/to/{target}", "private network", allowed_hosts=["*"])
    refused(
        f"http://127.0.0.1:{port}/to/http://127.0.0.1:{port + 1}/s", "not allowed", allowed_hosts=[f"127.0.0.1:{port}"]
    )
    refused(f"http://127.0.0.1:{port}/to/file:///etc/hosts", "could not be downloaded|answered")
    assert not any(path.startswith("/s") for path in Handler.asked)


@pytest.mark.parametrize("path", ["gigabyte", "gigabyte-untold"])
def test_a_body_of_one_gigabyte(port: int, path: str) -> None:
    refused(f"http://127.0.0.1:{port}/{path}", "larger than 1000000 bytes", max_bytes=1_000_000)
    assert Handler.sent < 100_000_000


def test_a_truncated_png(port: int) -> None:
    refused(f"http://127.0.0.1:{port}/truncated", "damaged or cut off")


def test_a_name_with_one_private_address_is_refused(port: int, names: dict[str, list[str]]) -> None:
    names["mixed.test"] = [PUBLIC, "10.0.0.1"]
    refused(f"http://mixed.test:{port}/x", "private network", allowed_hosts=["mixed.test"])


def test_the_address_that_was_checked_is_the_one_connected_to(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time gains nothing: there is no second time."""
    resolve: Callable[..., list] = socket.getaddrinfo
    questions: list[str] = []

    def changing(host: str, number: int, *args: object, **kwargs: object) -> list:
        if host == "pictures.test":
            questions.append(host)
            names[host] = [PUBLIC] if len(questions) == 1 else ["127.0.0.1"]
        return resolve(host, number, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    assert load_image(f"http://pictures.test:{port}/x", allowed_hosts=["*"]).size == (3, 2)
    assert len(questions) == 1
    refused(f"http://pictures.test:{port}/x", "private network", allowed_hosts=["*"])


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::"),
        "64:ff9b::7f00:1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetch.is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert fetch.is_public(address)


def test_file_types_can_be_limited(port: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "TIFF")
    assert load_image(buffer.getvalue()).size == (3, 2)
    with pytest.raises(InputError, match="of the types PNG, JPEG"):
        load_image(buffer.getvalue(), formats=("PNG", "JPEG"))
    assert load_image(png(), formats=("PNG", "JPEG")).size == (3, 2)
