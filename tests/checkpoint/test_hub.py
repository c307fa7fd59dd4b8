"""Hubs: what is fetched from which, and what is pushed. No test leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sat_models.checkpoint import hub
from sat_models.commands.convert import main as convert
from sat_models.commands.convert import make_parser
from sat_models.errors import CheckpointError, ConfigError, MissingPackageError
from sat_models.processing.hubs import choose_hub, uses_modelscope
from sat_models.processing.tokenizer_files import find_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "golden" / "cogvlm-mini"
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def no_hub_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE", "")


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A stand-in for its library; gives the calls that it gets."""
    calls: list[tuple[Any, ...]] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        calls.append((repository, allow_patterns))
        if repository == "no/such":
            raise OSError("not found")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


@pytest.fixture
def hugging_face(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The same for huggingface_hub."""
    calls: list[tuple[Any, ...]] = []

    class HfApi:
        endpoint = "https://hub.example"

        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create", repository, options))
            if repository.startswith("foreign/"):
                raise PermissionError("403 Forbidden\nlong details")

        def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
            files = {path.name for path in folder_path.iterdir()} - {*ignore_patterns}
            calls.append(("upload", repo_id, files))

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append(("download", repository))
        return "/of/hugging/face"

    monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize("way", ["variable", "flag"])
def test_modelscope_by_its_own_library(
    way: str, modelscope: list, hugging_face: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.fetch("name/model") == Path("/of/hugging/face") and hugging_face == [("download", "name/model")]
    if way == "variable":
        monkeypatch.setenv("USE_MODELSCOPE", "1")
    else:
        make_parser().parse_args(["--from", "x", "--to", "sat", "--output", "y", "--hub", "modelscope"])
    assert hub.fetch("name/model", further=("x*",)) == tmp_path
    assert modelscope == [("name/model", [*hub._WANTED, "x*"])]
    (tmp_path / "tokenizer.model").touch()
    assert find_tokenizer(None, "name/tokenizer") == tmp_path / "tokenizer.model"
    assert modelscope[-1] == ("name/tokenizer", ["tokenizer.model"]) and len(hugging_face) == 1
    with pytest.raises(
        CheckpointError, match=r"no/such .*\(OSError: not found\).*https://modelscope\.cn/models/no/such"
    ):
        hub.fetch("no/such")
    choose_hub("huggingface")
    assert hub.fetch("name/model") == Path("/of/hugging/face")


def test_a_missing_package_and_strange_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    monkeypatch.setenv("USE_MODELSCOPE", "1")
    for ask in (lambda: hub.fetch("name/model"), lambda: find_tokenizer(None, "name/tokenizer")):
        with pytest.raises(MissingPackageError, match=r"ModelScope needs the package 'modelscope'.*\[modelscope\]"):
            ask()
    with pytest.raises(MissingPackageError, match="modelscope"):
        choose_hub("modelscope")
    monkeypatch.setenv("USE_MODELSCOPE", "perhaps")
    with pytest.raises(ConfigError, match=r"USE_MODELSCOPE is 'perhaps'; allowed: 1, true, yes, on, 0"):
        uses_modelscope()
    with pytest.raises(ConfigError, match="no hub 'github'; allowed: huggingface, modelscope"):
        choose_hub("github")


def test_what_is_written_is_pushed_whole(
    hugging_face: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--from", str(SOURCE), "--to", "hf", "--output", str(tmp_path / "hub")]
    assert convert([*command, "--push_to_hub", "me/cogvlm-mini", "--private"]) == 0
    assert "pushed to https://hub.example/me/cogvlm-mini" in capsys.readouterr().out
    created, uploaded = hugging_face
    assert created == ("create", "me/cogvlm-mini", {"private": True, "exist_ok": True})
    assert {"config.json", "README.md", "model.safetensors.index.json", "tokenizer.model"} <= uploaded[2]
    assert "converted.json" not in uploaded[2]
    command[-1] = str(tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"again is written, but .*foreign/x \(PermissionError: 403 Forbidden\)"):
        convert([*command, "--push_to_hub", "foreign/x"])
    assert (tmp_path / "again" / "config.json").is_file()
    command[-1] = str(tmp_path / "third")
    with pytest.raises(ConfigError, match="--private is about the repository of --push_to_hub"):
        convert([*command, "--private"])
    assert not (tmp_path / "third").exists()


class Mirror(BaseHTTPRequestHandler):
    """As much of the hub's HTTP as a download and an upload of small files need."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/me/model/resolve/") and name in self.files:
            self.say(self.files[name])
        elif self.path.startswith("/api/models/me/model/tree/"):
            listed = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in self.files.items()]
            self.say(json.dumps(listed).encode())
        elif self.path.startswith("/api/models/me/model"):
            siblings = [{"rfilename": name} for name in self.files]
            self.say(json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}/me/made"
        if "/preupload/" in self.path:
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.say(json.dumps({"files": [{**mode, "shouldIgnore": False} for mode in modes]}).encode())
        else:
            self.say(json.dumps({"url": url, "commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT}).encode())

    def say(self, body: bytes) -> None:
        self.send_response(200)
        kind = "application/json" if self.path.startswith("/api/") else "application/octet-stream"
        headers = {"Content-Length": len(body), "ETag": f'"{abs(hash(body))}"', "X-Repo-Commit": COMMIT}
        for name, value in {**headers, "Content-Type": kind}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def mirror() -> Iterator[tuple[str, type[Mirror]]]:
    """A hub on this machine, with a repository `me/model`."""
    held = {"config.json": b'{"model_type": "mine"}', "tokenizer.model": b"pieces", "model.bin": b"not wanted"}
    handler = type("Held", (Mirror,), {"files": held, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler
        http.shutdown()


MIRRORED = """
import sys
from pathlib import Path
from sat_models.checkpoint import hub
from sat_models.errors import CheckpointError
print(hub.fetch("me/model"))
print(hub.push(Path(sys.argv[1]), "me/made"))
try:
    hub.fetch("me/none")
except CheckpointError as error:
    print(error)
"""


def test_a_mirror_is_asked_and_nobody_else(mirror: tuple[str, type[Mirror]], tmp_path: Path) -> None:
    """HF_ENDPOINT, which huggingface_hub reads once, so in a process of its own; any other host would fail."""
    url, hub_here = mirror
    written = tmp_path / "written"
    written.mkdir()
    (written / "config.json").write_text("{}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "none", "PYTHONPATH": str(ROOT)}
    environment |= {"http_proxy": "", "no_proxy": "127.0.0.1", "https_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", MIRRORED, str(written)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder, pushed, missing = done.stdout.splitlines()
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {
        name: content for name, content in hub_here.files.items() if name != "model.bin"
    }
    assert pushed == f"{url}/me/made"
    assert f"of {url}/me/none into a folder" in missing
    assert any(line.startswith("POST /api/models/me/made/commit/") for line in hub_here.asked)
