"""Golden folders of CogVideoX, a folder a kind, ready to be loaded: SAT's come without sizes, and all kinds share text
encoder and autoencoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_set import SET, reference
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.config import read_json
from sat_models.models.build import build_model, make_config
from sat_models.registry import config_file

_T5 = Path(__file__).parent / "golden" / "cogview3-plus-mini" / "sat" / "t5-v1_1-xxl"

_TOLD = {
    "text_length": "text_len", "latent_height": "latent_height", "latent_width": "latent_width", "spatial_scale": "hi",
    "snr_shift": "shift_scale",
}  # fmt: skip
"""What shapes do not tell of a miniature, and what the set calls it."""
GIVEN = ("latents", "timestep", "text", "image_latents", "ofs")


def kinds(*wanted: str) -> list[Path]:
    """The folders of these kinds (default: all) in the set."""
    found = (file.parent for file in sorted(SET.glob("cogvideox-*/*/reference.json")))
    return [folder for folder in found if (folder / "sat").is_dir() and (not wanted or folder.name in wanted)]


def each_kind(*wanted: str) -> Callable[[Any], Any]:
    """Runs a test with `folder` as each folder of `kinds`; skipped by name where the set has none."""
    given = [pytest.param(folder, id=folder.name) for folder in kinds(*wanted)]
    reason = f"the set {SET} has no cogvideox-*/{', '.join(wanted) or '*'}"
    return pytest.mark.parametrize("folder", given or [pytest.param(None, marks=pytest.mark.skip(reason=reason))])


def told(folder: Path) -> dict[str, Any]:
    """What a `model_config.json` has to say of a kind."""
    sizes = reference(folder)["sizes"]
    return {name: sizes[theirs] for name, theirs in _TOLD.items()}


def sat_folder(folder: Path, place: Path) -> Path:
    """A kind's SAT folder in a copy with a `model_config.json` beside `latest`, and text encoder and autoencoder where
    the set has them."""
    copy = Path(shutil.copytree(folder / "sat", place / "sat", copy_function=shutil.copyfile))
    (copy / "transformer" / "model_config.json").write_text(json.dumps(told(folder)))
    shared = folder.parent
    if (shared / "sat/vae").is_dir():
        shutil.copytree(shared / "sat/vae", copy / "vae", copy_function=shutil.copyfile)
    if (shared / "diffusers/text_encoder").is_dir():
        shutil.copytree(shared / "diffusers/text_encoder", copy / "t5-v1_1-xxl", copy_function=shutil.copyfile)
        shutil.copyfile(shared / "diffusers/tokenizer/spiece.model", copy / "t5-v1_1-xxl/spiece.model")
    return copy


def lora_folder(folder: Path, place: Path) -> Path:
    """The SAT folder of a kind with LoRA matrices beside its weights; a set may hold the matrices alone."""
    copy = Path(shutil.copytree(folder / "sat-lora", place / "sat-lora", copy_function=shutil.copyfile))
    file = copy / "1" / "mp_rank_00_model_states.pt"
    weights = torch.load(file, weights_only=True)["module"]
    if not any(name.endswith("time_embed.0.weight") for name in weights):
        base = torch.load(folder / "sat/transformer/1" / file.name, weights_only=True)["module"]
        wrapped = {name.rpartition(".matrix_")[0] for name in weights if ".matrix_" in name}
        for name, value in base.items():
            owner, _, last = name.rpartition(".")
            weights[f"{owner}.original.{last}" if owner in wrapped else name] = value
        torch.save({"module": weights}, file)
    (copy / "model_config.json").write_text(json.dumps(told(folder)))
    return copy


def tiny_folder(name: str, place: Path) -> Path:
    """A SAT folder of random weights with a random decoder and the set's text encoder: what a film needs."""
    import diffusers

    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    config = make_config(read_json(config_file(f"models/{name}-tiny.json")))
    save_checkpoint(build_model(config, device="cpu"), place, config, step=1)
    channels = (8, 8, 8, 8)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=channels, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        scaling_factor=config.latent_scale,
    )  # fmt: skip
    vae.save_pretrained(place / "vae")
    shutil.copytree(_T5, place / "t5-v1_1-xxl", copy_function=shutil.copyfile)
    return place


def given(golden: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """What the model is called with in a case."""
    return {name: golden[f"{key}.{name}"] for name in GIVEN if f"{key}.{name}" in golden}
