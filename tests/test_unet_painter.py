"""Drawing with a UNet, enlarging, and both as one: through the front door and through the command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from unet_golden import tiny_vae, unet_folder

from sat_models.commands.draw import main
from sat_models.errors import CheckpointError, ConfigError, InputError
from sat_models.processing.image_codec import to_images, to_pixels
from sat_models.zoo import load_pretrained
from sat_models.zoo.painter import noise
from sat_models.zoo.unet_painter import UNetPainter

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"least_side": 32, "most_side": 128, "most_pixels": 8192, "side_multiple": 32, "steps": 3}
LARGE = {"least_side": 64, "most_side": 256, "most_pixels": 32768, "side_multiple": 64, "steps": 4}
SIZE, DOUBLE = (64, 32), (128, 64)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, a relay and a distilled base; T5 and the autoencoder lie once for all of them."""
    place = tmp_path_factory.mktemp("home")
    folder = GOLDEN / "cogview3-base-mini"
    unet_folder(folder, "base", place, **SMALL)
    unet_folder(folder, "distill", place, **SMALL)
    unet_folder(folder, "base", place / "other", **LARGE, partial_num_steps=2)
    (place / "other" / "base").rename(place / "relay")
    shutil.copytree(GOLDEN / "cogview3-plus-mini" / "sat" / "t5-v1_1-xxl", place / "t5-v1_1-xxl")
    tiny_vae(place / "cogview3-base-3b-vae")
    return place


@pytest.fixture(scope="module", autouse=True)
def sat_home(home: Path) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SAT_HOME", str(home))
        yield


def opened(place: Path, **how: Any) -> UNetPainter:
    return load_pretrained(place, device="cpu", dtype="float32", **how)


@pytest.fixture(scope="module")
def both(home: Path) -> UNetPainter:
    return opened(home / "base", relay=home / "relay", keep="all")


@pytest.fixture(scope="module")
def relay(home: Path) -> UNetPainter:
    return opened(home / "relay", keep="all")


def test_an_image_has_its_size_and_its_seed(home: Path) -> None:
    for kind in ("base", "distill"):
        painter = opened(home / kind, keep="all")
        first = painter.draw("A red circle", size=SIZE, seed=7)
        assert first.size == SIZE and first.getextrema() != ((0, 0),) * 3
        assert painter.draw("A red circle", size=SIZE, seed=7).tobytes() == first.tobytes()
        others = ({"seed": 8}, {"steps": 2}, *([{"guidance": 2}] if kind == "base" else []))
        for other in others:  # of a distilled model's guidance random weights hardly heed anything
            assert painter.draw("A red circle", **{"size": SIZE, "seed": 7, **other}).tobytes() != first.tobytes()
        several = painter.draw(["A blue square", "A red circle"], size=SIZE, seed=6)
        assert max(abs(a - b) for a, b in zip(several[1].tobytes(), first.tobytes(), strict=True)) <= 1
    assert painter.draw("A red circle", steps=1).size == painter.config.usual_size


def test_a_distilled_model_makes_one_forward_a_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[int]] = {}
    for kind in ("base", "distill"):
        painter = opened(home / kind)
        network, seen = painter.model.network, calls.setdefault(kind, [])
        network.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        painter.draw("A red circle", size=SIZE, seed=1)
    assert calls == {"base": [2, 2, 2], "distill": [1, 1, 1]}


def test_both_stages_are_one_call(both: UNetPainter, relay: UNetPainter) -> None:
    states = list(both.steps(["A red circle", "A blue square"], size=DOUBLE, seed=5))
    assert [(state.index, state.of) for state in states] == [(n, 5) for n in range(1, 6)]
    assert [image.size for image in states[0].preview()] == [SIZE, SIZE]
    assert [image.size for image in states[-1].preview()] == [DOUBLE, DOUBLE]
    images = states[-1].images()
    assert [image.size for image in images] == [DOUBLE, DOUBLE]
    small = opened(both.checkpoint.step_folder, keep="all").draw(["A red circle", "A blue square"], size=SIZE, seed=5)
    doubled = relay._doubled(small)
    before = 4 * 8 * 4
    start = torch.stack([noise((4, 8, 16), seed, before=before) for seed in (5, 6)])
    text = relay.encode(["A red circle", "A blue square"])
    *_, last = relay.denoise(start, text, image_latents=doubled)
    again = relay._codec.get().decode(last)
    assert [image.tobytes() for image in again] == [image.tobytes() for image in images]
    assert both.draw("A red circle", seed=1).size == relay.config.usual_size


def test_what_is_enlarged_keeps_to_its_image(relay: UNetPainter) -> None:
    red, blue = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue"))
    first = relay.enlarge("A red square", red, seed=3)
    assert first.size == DOUBLE
    assert relay.enlarge("A red square", red, seed=3).tobytes() == first.tobytes()
    assert relay.enlarge("A red square", blue, seed=3).tobytes() != first.tobytes()
    assert len(relay.enlarge(["a", "b"], [red, blue], seed=3)) == 2
    assert [state.of for state in relay.enlarge_steps("a", red, steps=8, seed=3)] == [4] * 4, "the same share of them"


def test_who_stops_listening_cancels(home: Path) -> None:
    painter = opened(home / "base", relay=home / "relay", keep="none")
    states = painter.steps("A red circle", size=DOUBLE, seed=5)
    for _ in range(4):
        next(states)
    assert painter.relay._model.here and not painter._model.here, "one network at a time"
    states.close()
    assert not any(part.here for part in (painter.relay._model, painter._model, painter._codec, painter._text_encoder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "say what is to be seen"),
        ({"size": SIZE}, "64x32 cannot be drawn: width and height are multiples of 64 from 64 to 256"),
        ({"size": (256, 256)}, "256x256 is 65536 pixels"),
        ({"size": 64}, "the size is 64; it must be two whole numbers"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "diffusers"}, "sampler is 'diffusers'; allowed: sat"),
        ({"guidance": -1}, "guidance is -1"),
    ],
)
def test_what_is_refused_before_work_begins(both: UNetPainter, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        both.draw(**{"prompt": "A red circle", "size": DOUBLE, **given})


def test_stages_that_are_no_pair(home: Path, both: UNetPainter, relay: UNetPainter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model enlarges images: give one"):
        relay.draw("A red circle")
    with pytest.raises(ConfigError, match="this model draws; one that enlarges images is needed"):
        both.enlarge("A red circle", Image.new("RGB", SIZE))
    with pytest.raises(ConfigError, match="relay is for a model that draws; this one enlarges images itself"):
        opened(home / "relay", relay=home / "relay")
    with pytest.raises(ConfigError, match=r"relay is for two UNets.*these are a CogView3PlusModel and a CogView3UNet"):
        opened(GOLDEN / "cogview3-plus-mini" / "diffusers" / "transformer", relay=home / "relay")
    with pytest.raises(ConfigError, match="relay: for models that draw"):
        load_pretrained("cogvlm-tiny", device="cpu", relay=home / "relay")
    short = unet_folder(GOLDEN / "cogview3-base-mini", "base", tmp_path, **{**LARGE, "text_length": 9})
    with pytest.raises(ConfigError, match=r"relay has text_length = 9, the model that draws has \d+: they are no pair"):
        opened(home / "base", relay=short)
    with pytest.raises(InputError, match=r"1 prompts and 2 images of the sizes \[\(32, 32\), \(64, 32\)\]"):
        relay.enlarge(["a"], [Image.new("RGB", SIZE), Image.new("RGB", (32, 32))])
    with pytest.raises(InputError, match="these images become 128x64: leave it out"):
        relay.enlarge("a", Image.new("RGB", SIZE), size=SIZE)
    with pytest.raises(InputError, match="66x64 cannot be drawn"):
        relay.enlarge("a", Image.new("RGB", (33, 32)))


def test_latents_that_are_no_pair(both: UNetPainter, relay: UNetPainter) -> None:
    text, latents = torch.zeros(1, 4, both.config.text_hidden_size), torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="partial_num_steps is for an image that is enlarged"):
        both.denoise(latents, text, partial_num_steps=2)
    with pytest.raises(InputError, match=r"image_latents are \[1, 4, 4, 4\], the noise is \[1, 4, 8, 8\]"):
        relay.denoise(latents, text, image_latents=latents[..., :4, :4])
    with pytest.raises(ConfigError, match="this model draws: say partial_num_steps"):
        both.denoise(latents, text, image_latents=latents)
    with pytest.raises(ConfigError, match="partial_num_steps is 9; of 3 steps, 1 to 3 can be made"):
        both.denoise(latents, text, image_latents=latents, partial_num_steps=9)


def test_missing_parts_are_named_before_work(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    alone = Path(shutil.copytree(home / "base", tmp_path / "models" / "base"))
    shutil.copytree(home / "t5-v1_1-xxl", alone / "t5-v1_1-xxl")
    wanted = f"put sdxl_vae.safetensors of the release into .* or {tmp_path}/cogview3-base-3b-vae"
    with pytest.raises(CheckpointError, match=wanted):
        opened(alone).draw("A red circle", size=SIZE)


def test_an_image_comes_back_as_it_was() -> None:
    image = Image.frombytes("RGB", (4, 2), bytes(range(0, 240, 10)))
    assert to_images(to_pixels([image]))[0].tobytes() == image.tobytes()


def test_the_command_draws_and_enlarges(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, relay = str(home / "base"), str(home / "relay")
    first = ["--from_pretrained", base, "--relay", relay, "--prompt", "A red circle", "--size", "128x64", "--seed", "4"]
    assert main([*first, "--output", str(tmp_path / "large.png"), "--json", "--fp32"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size"] == [128, 64] and said["steps"] == 3 and said["seed"] == 4
    assert Image.open(tmp_path / "large.png").size == DOUBLE
    Image.new("RGB", SIZE, "red").save(tmp_path / "small.png")
    enlarged = ["--from_pretrained", relay, "--image", str(tmp_path / "small.png"), "--prompt", "A red square"]
    assert main([*enlarged, "--output", str(tmp_path / "two.png"), "--json", "--fp32", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [128, 64]
    assert Image.open(tmp_path / "two.png").size == DOUBLE
    with pytest.raises(ConfigError, match="this model draws; one that enlarges images is needed"):
        main(["--from_pretrained", base, "--image", str(tmp_path / "small.png"), "--prompt", "A red square"])
    with pytest.raises(ConfigError, match="--image is for models that enlarge images"):
        plus = str(GOLDEN / "cogview3-plus-mini" / "diffusers" / "transformer")
        main(["--from_pretrained", plus, "--image", str(tmp_path / "small.png"), "--prompt", "A red square"])
    with pytest.raises(InputError):
        main([*enlarged[:2], "--image", str(tmp_path / "none.png"), "--prompt", "A red square"])
