"""Films through the front door: trajectories, guidance, frames, an image to begin with, and what is refused before work
begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from film_golden import each_kind, sat_folder, tiny_folder
from golden_set import reference, tensors

from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownArgumentError
from sat_models.processing.film_codec import FilmCodec, filling
from sat_models.sampling.film_memory import film_bytes
from sat_models.sampling.guidance import dynamic_guidance
from sat_models.zoo import FilmPainter, load_pretrained

_METHODS = {"ddim": "-ddim", "dpm": ""}
RED = Image.new("RGB", (200, 100), (200, 20, 20))


@pytest.fixture(scope="module")
def text_to_film(tmp_path_factory: pytest.TempPathFactory) -> FilmPainter:
    return load_pretrained(tiny_folder("cogvideox-2b", tmp_path_factory.mktemp("t2v")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image_to_film(tmp_path_factory: pytest.TempPathFactory) -> FilmPainter:
    place = tiny_folder("cogvideox1.5-5b-i2v", tmp_path_factory.mktemp("i2v"))
    return load_pretrained(place, device="cpu", dtype="float32")


@pytest.mark.parametrize("source", ["sat", "diffusers"])
@each_kind()
def test_trajectories_are_the_originals(folder: Path, source: str, tmp_path: Path) -> None:
    painter, golden = load_pretrained(sat_folder(folder, tmp_path), device="cpu", dtype="float32"), tensors(folder)
    for case in reference(folder)["denoise"]:
        name = case["name"]
        if f"denoise.{name}.{source}" not in golden:
            continue
        method = next(method for method in _METHODS if name.startswith(method))
        states = painter.denoise(
            golden["denoise.start"], golden["denoise.text"], steps=case["steps"], guidance=6.0,
            sampler=source + _METHODS[method], image_latents=golden.get("denoise.image_latents"),
            noise=golden.get(f"denoise.{name}.noise"),
        )  # fmt: skip
        torch.testing.assert_close(torch.stack(list(states)), golden[f"denoise.{name}.{source}"], atol=1e-4, rtol=0)


@each_kind()
def test_steps_and_guidance_are_the_originals(folder: Path) -> None:
    from sat_models.sampling.schedule import diffusers_steps, sat_steps

    golden, shift = tensors(folder), reference(folder)["sizes"]["shift_scale"]
    for count in (4, 7, 28, 50):
        steps = sat_steps(count, shift)
        assert [step.time for step in steps] == golden[f"schedule.sat_{count}.index"].tolist()
        shares = torch.tensor([step.share for step in steps])
        torch.testing.assert_close(shares, golden[f"schedule.sat_{count}.alpha_sqrt"], atol=2e-7, rtol=0)
        theirs = [step.time for step in diffusers_steps(count, shift)]
        assert theirs == golden[f"schedule.diffusers_{count}.timesteps"].tolist()
    guidance = dynamic_guidance(6, 50)
    ours = torch.tensor([guidance(step.time) for step in sat_steps(50, shift)], dtype=torch.float64)
    torch.testing.assert_close(ours, golden["dynamic_cfg.scale6_exp5_steps50"], atol=1e-9, rtol=0)


def test_a_film_has_its_frames_and_its_seed(text_to_film: FilmPainter) -> None:
    how = {"steps": 3, "seed": 7}
    film = text_to_film.film("A red circle moves to the right.", frames=9, **how)
    assert film.frames.shape == (9, 64, 96, 3) and film.fps == 8 and film.frames.std() > 0
    assert (text_to_film.film("A red circle moves to the right.", frames=9, **how).frames == film.frames).all()
    for other in ({"seed": 8}, {"guidance": 1.0}, {"sampler": "sat-ddim"}, {"sampler": "diffusers"}):
        changed = text_to_film.film("A red circle moves to the right.", frames=9, **{**how, **other})
        assert (changed.frames != film.frames).any(), other
    assert text_to_film.film("A red circle.", frames=1, fps=5, **how).frames.shape[0] == 1
    states = list(text_to_film.film_steps("A red circle.", **how))
    assert [(state.index, state.of) for state in states] == [(1, 3), (2, 3), (3, 3)]
    assert states[0].film().frames.shape == (9, 64, 96, 3), "a preview"
    assert states[-1].options.to_dict() == {
        "size": [96, 64], "frames": 9, "fps": 8.0, "steps": 3, "guidance": 6.0, "sampler": "sat", "seed": 7,
    }  # fmt: skip


def test_a_film_that_begins_with_an_image(image_to_film: FilmPainter) -> None:
    film = image_to_film.film("It moves.", image=RED, frames=9, steps=2, seed=7)
    assert film.frames.shape == (9, 64, 96, 3) and film.fps == 16
    blue = Image.new("RGB", (200, 100), (20, 20, 200))
    other = image_to_film.film("It moves.", image={0: blue}, frames=9, steps=2, seed=7)
    assert (other.frames != film.frames).any(), "the image is read"
    assert image_to_film.film("It moves.", image=RED, frames=9, size=(64, 32), steps=1).size == (64, 32)


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits(text_to_film: FilmPainter, bits: int) -> None:
    place = text_to_film.checkpoint.folder
    small = load_pretrained(place, device="cpu", dtype="float32", quant=bits)
    film = small.film("A red circle.", frames=9, steps=2, seed=7)
    whole = text_to_film.film("A red circle.", frames=9, steps=2, seed=7)
    difference = abs(film.frames.astype(int) - whole.frames.astype(int)).mean()
    assert 0 < difference < (10 if bits == 8 else 60)
    assert small.model.transformer.layers[0].mlp.dense_h_to_4h.weight.dtype in (torch.int8, torch.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "say what is to be seen"),
        ({"prompt": ["a", "b"]}, "made of one text"),
        ({"frames": 10}, "frames is 10; films of this model have 1, 9 frames"),
        ({"size": (64, 64)}, "64x64 cannot be made: films of this model are 96x64"),
        ({"image": RED}, "this model makes films out of text alone"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": -1}, "guidance is -1"),
        ({"sampler": "euler"}, "sampler is 'euler'; allowed: sat, sat-ddim, diffusers, diffusers-ddim"),
        ({"fps": 0}, "fps is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_is_refused_before_work_begins(text_to_film: FilmPainter, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message):
        text_to_film.film_steps(**{"prompt": "A red circle.", "steps": 1, **given})


def test_what_is_refused_of_images(image_to_film: FilmPainter, text_to_film: FilmPainter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give an image \(image=, --image\)"):
        image_to_film.film_steps("It moves.")
    with pytest.raises(InputError, match=r"given for the frames \[3\]; this model takes one, for frame 0"):
        image_to_film.film_steps("It moves.", image={3: RED})
    with pytest.raises(InputError, match=r"nothing\.png"):
        image_to_film.film_steps("It moves.", image=str(tmp_path / "nothing.png"))
    with pytest.raises(UnknownArgumentError, match=r"film was given 'frame', .*frames"):
        text_to_film.film("A red circle.", frame=9)
    with pytest.raises(InputError, match=r"noise is \[1, 2, 1\]; for this start and 5 steps: \[5, 2, 1, 3, 4, 8, 12\]"):
        text_to_film.denoise(torch.zeros(1, 3, 4, 8, 12), torch.zeros(1, 12, 32), steps=5, noise=torch.zeros(1, 2, 1))


def test_a_film_that_does_not_fit_is_refused(text_to_film: FilmPainter, monkeypatch: pytest.MonkeyPatch) -> None:
    from sat_models.zoo import film_painter

    config = text_to_film.config
    short, long = (film_bytes(config, frames, (96, 64), torch.float32) for frames in (1, 9))
    assert short < long
    monkeypatch.setattr(film_painter, "free_bytes", lambda device: long - 1)
    with pytest.raises(InputError, match=r"a film of 9 frames of 96x64 takes about .* take fewer frames"):
        text_to_film.film_steps("A red circle.", frames=9)
    text_to_film.film_steps("A red circle.", frames=1)


def test_missing_parts_are_named(text_to_film: FilmPainter, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(text_to_film.checkpoint.folder, tmp_path / "copy"))
    shutil.rmtree(copy / "vae")
    painter = load_pretrained(copy, device="cpu")
    with pytest.raises(CheckpointError, match=r"decoder is missing: put 3d-vae.pt"):
        painter.film_steps("A red circle.")
    shutil.rmtree(copy / "t5-v1_1-xxl")
    with pytest.raises(CheckpointError, match="text encoder is missing"):
        painter.film_steps("A red circle.")


def test_pieces_are_what_diffusers_decodes_at_once() -> None:
    import diffusers

    torch.manual_seed(1)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
    ).eval()
    codec, latents = FilmCodec(vae, 0.5), torch.randn(7, 4, 2, 3)
    with torch.no_grad():
        whole = vae.decode((latents / 0.5).transpose(0, 1)[None]).sample[0].transpose(0, 1)
    pieces = list(codec.pieces(latents))
    assert [len(piece) for piece in pieces] == [9, 8, 8], "three frames of latents, then two at a time"
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=0)
    assert codec.decode(latents).shape == (25, 16, 24, 3)
    assert [len(piece) for piece in codec.pieces(latents[:1])] == [1]
    video = torch.randn(1, 3, 9, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(codec.moments(video), vae.encode(video).latent_dist.parameters, atol=1e-6, rtol=0)


def test_an_image_fills_the_frame() -> None:
    image = Image.fromarray(np.arange(100, dtype=np.uint8)[None, :, None].repeat(50, 0).repeat(3, 2))
    assert filling(image, 50, 50).size == (50, 50)
    assert np.asarray(filling(image, 50, 50))[0, 0, 0] == 25, "the middle"
    assert filling(image, 300, 100).size == (300, 100)
