"""Which models a server has: flags, what is refused, and the programs with a painter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from drawing_place import GOLDEN
from painter_golden import sat_folder
from serving_http import ROOT

pytest.importorskip("fastapi")
pytest.importorskip("gradio")

from sat_models.errors import ZooError
from sat_models.serving import models, server, web


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sat_folder(GOLDEN, tmp_path_factory.mktemp("painter"))


def loaded(*flags: object, parser: object = None) -> models.Models:
    parser = parser or server.make_parser()
    return models.load(parser, parser.parse_args([*map(str, flags), "--device", "cpu"]))


def test_one_that_talks_one_that_draws_or_both(place: Path) -> None:
    alone = loaded("--from_pretrained", place, "--served_model_name", "brush", "--keep", "none")
    assert alone.vlm is None and alone.painter_names == ("brush",) and not alone.painter._model._keep
    both = loaded("--painter", place, "--painter_quant", 8, parser=web.make_parser())
    assert both.named == f"cogvlm-tiny and {place.name}" and both.painter_names == (place.name, str(place))
    assert both.vlm is not None and both.painter.checkpoint.folder.is_relative_to(place)
    assert loaded().painter is None
    args = server.make_parser().parse_args(["--max_drawings", "2", "--draw_timeout", "9", "--max_waiting", "3"])
    limits = (studio := both.studio(args)).limits
    studio.close()
    assert (limits.most, limits.seconds, limits.max_waiting) == (2, 9.0, 3)
    args = server.make_parser().parse_args(["--prompt_piece", "7", "--max_images", "2", "--timeout", "8"])
    talking = models.limits_of(args)
    assert (talking.prompt_piece, talking.max_images, talking.seconds) == (7, 2, 8.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "none"], r"nothing that draws is named; beside --painter there are --keep; leave them out"),
        (["--max_drawings", "2", "--quant_text", "8"], "there are --quant_text, --max_drawings"),
        (["--from_pretrained", "PLACE", "--max_new_tokens", "9"], "for one that talks there are --max_new_tokens"),
        (["--from_pretrained", "PLACE", "--version", "chat"], "version"),
        (["--painter", "cogvlm-tiny"], "only models that draw will do here"),
        (["--painter", "/nowhere"], "nowhere"),
        (["--painter", "PLACE", "--from_pretrained", "PLACE"], "only models that talk will do here"),
    ],
)
def test_what_is_refused(place: Path, flags: list[str], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        loaded(*(str(place) if given == "PLACE" else given for given in flags))


def test_a_painter_is_served_by_one_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ZooError, match="a server draws in one process; start it without torchrun"):
        loaded("--from_pretrained", place)


@pytest.mark.slow
def test_the_program_serves_a_painter_alone_and_ends_in_order(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "openai_api.py"), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--from_pretrained", str(place)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(f"Serving {place.name} on http://127.0.0.1:"), line
        body = json.dumps({"prompt": "A red circle", "size": "96x64", "steps": 1, "seed": 3}).encode()
        address = f"{line.split()[-1]}/images/generations"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert json.loads(answer.read())["data"][0]["seed"] == 3
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_a_missing_part_is_said_before_it_listens(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    shutil.rmtree(copy / "vae")
    assert server.main(["--from_pretrained", str(copy), "--port", "0", "--device", "cpu"]) == 2
    assert "the image decoder is missing: put imagekl_ch16.pt" in capsys.readouterr().err
