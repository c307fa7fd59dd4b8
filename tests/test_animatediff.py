"""AnimateDiff behind the film call, beside diffusers' pipelines called directly, with tiny random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sat_models.commands import film as command
from sat_models.errors import CheckpointError, ConfigError, InputError, MissingPackageError, UnknownArgumentError
from sat_models.processing.film import read_film
from sat_models.zoo import FilmMaker, load_pretrained

pytestmark = pytest.mark.slow  # diffusers' pipelines take long to import

PROMPT = "a red circle"
OPTIONS: dict[str, Any] = {"frames": 3, "steps": 2, "seed": 5}
ADAPTER, BASE, CONTROL = "motion", "stable-diffusion-v1-5", "animatediff-sparsectrl-rgb"


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=190, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip
    return CLIPTextModel(config)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion adapter, Stable Diffusion, SparseCtrl and a motion LoRA, each in a folder."""
    import diffusers

    torch.manual_seed(0)
    folder, sizes = tmp_path_factory.mktemp("animatediff"), {"block_out_channels": (8, 8), "layers_per_block": 1}
    unet = diffusers.UNet2DConditionModel(
        **sizes, sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8, norm_num_groups=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae, text_encoder(), tokenizer(), unet, diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    ).save_pretrained(folder / BASE)
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2,
        motion_max_seq_length=6,
    )  # fmt: skip
    for parameter in motion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    motion.save_pretrained(folder / ADAPTER)
    control = diffusers.SparseControlNetModel(
        **sizes, in_channels=4, conditioning_channels=3, cross_attention_dim=8, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), conditioning_embedding_out_channels=(8, 8),
        use_simplified_condition_embedding=False, motion_max_seq_length=6, num_attention_heads=2,
    )  # fmt: skip
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    control.save_pretrained(folder / CONTROL)
    write_lora(folder)
    return folder


def write_lora(folder: Path) -> None:
    import diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = direct(folder)
    names = [name for name, _ in pipeline.unet.named_modules() if "motion_modules" in name and name.endswith("to_q")]
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights="gaussian"))
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    weights = get_peft_model_state_dict(pipeline.unet)
    diffusers.AnimateDiffPipeline.save_lora_weights(folder / "lora", unet_lora_layers=weights)


def direct(home: Path) -> Any:
    import diffusers

    adapter = diffusers.MotionAdapter.from_pretrained(home / ADAPTER)
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        home / BASE, subfolder="scheduler", beta_schedule="linear", clip_sample=False, timestep_spacing="linspace",
        steps_offset=1,
    )  # fmt: skip
    pipeline = diffusers.AnimateDiffPipeline.from_pretrained(home / BASE, motion_adapter=adapter, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def frames(pipeline: Any, **given: Any) -> np.ndarray:
    how = {"num_frames": 3, "num_inference_steps": 2, "width": 16, "height": 16, "guidance_scale": 7.5, **given}
    found = pipeline(PROMPT, generator=torch.Generator().manual_seed(5), output_type="np", **how).frames[0]
    return (np.asarray(found) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def maker(home: Path) -> FilmMaker:
    return load_pretrained(home / ADAPTER, device="cpu", dtype="float32", task="film")


def test_a_film_is_that_of_the_pipeline(maker: FilmMaker, home: Path, tmp_path: Path) -> None:
    film = maker.film(PROMPT, **OPTIONS)
    assert film.fps == 8 and np.array_equal(film.frames, frames(direct(home)))
    assert not np.array_equal(film.frames, maker.film(PROMPT, **{**OPTIONS, "seed": 6}).frames)
    assert maker.film(PROMPT, frames=2, steps=1, size=(24, 16)).size == (24, 16)
    direct(home).save_pretrained(tmp_path / "whole")
    whole = load_pretrained(tmp_path / "whole", device="cpu")
    assert np.array_equal(whole.film(PROMPT, **OPTIONS).frames, film.frames)


def test_step_by_step(maker: FilmMaker) -> None:
    states = list(maker.film_steps(PROMPT, frames=2, steps=4, seed=1))
    assert [(state.index, state.of) for state in states] == [(index, 4) for index in range(1, 5)]
    assert states[0].options.to_dict() == {
        "size": [16, 16], "frames": 2, "fps": 8, "steps": 4, "guidance": 7.5, "seed": 1,
    }  # fmt: skip
    rough, last = states[0].film(), states[-1].film()
    assert rough.frames.shape == last.frames.shape and not np.array_equal(rough.frames, last.frames)
    stopped = maker.film_steps(PROMPT, frames=2, steps=1000, seed=1)
    next(stopped)
    stopped.close()
    assert np.array_equal(maker.film(PROMPT, frames=2, steps=4, seed=1).frames, last.frames)


def test_images_for_chosen_frames(maker: FilmMaker, home: Path) -> None:
    import diffusers

    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    found = maker.film(PROMPT, **OPTIONS, image={0: images[0], 2: images[1]})
    control = diffusers.SparseControlNetModel.from_pretrained(home / CONTROL)
    pipeline = diffusers.AnimateDiffSparseControlNetPipeline(**direct(home).components, controlnet=control)
    expected = frames(pipeline, conditioning_frames=images, controlnet_frame_indices=[0, 2])
    assert np.array_equal(found.frames, expected)
    plain = maker.film(PROMPT, **OPTIONS).frames
    assert not np.array_equal(plain, expected) and np.array_equal(plain, frames(direct(home)))
    assert not np.array_equal(maker.film(PROMPT, **OPTIONS, image=images[0]).frames, plain)


def test_motion_lora(maker: FilmMaker, home: Path) -> None:
    pipeline = direct(home)
    pipeline.load_lora_weights(home / "lora")
    expected, plain = frames(pipeline), maker.film(PROMPT, **OPTIONS).frames
    assert np.array_equal(maker.film(PROMPT, **OPTIONS, motion=[home / "lora"]).frames, expected)
    assert not np.array_equal(expected, plain), "a test of something"
    assert np.array_equal(maker.film(PROMPT, **OPTIONS).frames, plain), "it is gone again"


def test_from_the_command_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    flags = ["--from_pretrained", str(home / ADAPTER), "--prompt", PROMPT, "--device", "cpu", "--frames", "3"]
    flags += ["--steps", "2", "--seed", "5", "--image", f"1={tmp_path / 'a.png'}", "--motion", str(home / "lora")]
    assert command.main([*flags, "--output", str(tmp_path / "x"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == [1] and said["steps"] == 2 and said["size"] == [16, 16]
    assert read_film(tmp_path / "x").frames.shape == (3, 16, 16, 3)


def test_what_is_refused(maker: FilmMaker, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (16, 16))
    for options, kind, said in (
        ({"frames": 7}, InputError, "frames is 7; these motion layers know 1 to 6"),
        ({"frames": 3, "image": {3: image}}, InputError, "frame 3; the film has frames 0 to 2"),
        ({"guidance": 0.5}, InputError, "guidance is 0.5; it must be at least 1"),
        ({"size": (20, 16)}, InputError, "20x16; both must be multiples of 8"),
        ({"steps": 0}, ConfigError, "steps is 0"), ({"sampler": "sat"}, ConfigError, "leave it out"),
        ({"motion": [tmp_path / "no"]}, InputError, "does not exist"),
        ({"style": "oil"}, UnknownArgumentError, "'style'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            maker.film_steps(PROMPT, **{"frames": 3, **options})
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    shutil.copytree(home / ADAPTER, tmp_path / "alone" / ADAPTER)
    alone = load_pretrained(tmp_path / "alone" / ADAPTER, device="cpu")
    with pytest.raises(CheckpointError, match=r"Stable Diffusion is missing: fetch .*stable-diffusion-v1-5"):
        alone.film(PROMPT, frames=3)
    shutil.copytree(home / BASE, tmp_path / "alone" / BASE)
    with pytest.raises(CheckpointError, match="images for chosen frames need SparseCtrl"):
        alone.film(PROMPT, frames=3, image=image)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"a motion LoRA needs the package 'peft'.*\[film\]"):
        maker.film_steps(PROMPT, frames=3, motion=[home / "lora"])
    with pytest.raises(ConfigError, match="is for film; only models that draw will do here"):
        load_pretrained(home / ADAPTER, task="drawing")
