"""Golden folders of CogView3's UNets, ready to be loaded, and small painters made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from golden_set import reference
from safetensors.torch import save_file
from torch import Tensor

from sat_models.checkpoint.io import read_weights
from sat_models.models.cogview3_unet.config import CONDITIONS
from sat_models.models.common.kl_keys import kl_to_sat

KINDS = ("base", "distill")
CONDITION_NAMES = ("original_size", "crop", "target_size")


def told(folder: Path) -> dict[str, Any]:
    """What shapes do not tell of a miniature."""
    sizes = reference(folder)["sizes"]
    return {"num_head_channels": sizes["hd"], "text_length": sizes["L"]}


def unet_folder(folder: Path, kind: str, place: Path, **more: Any) -> Path:
    """SAT's folder of a kind, in a copy with a `model_config.json` beside `latest`."""
    copy = Path(shutil.copytree(folder / kind / "sat", place / kind, copy_function=shutil.copyfile))
    (copy / "transformer" / "model_config.json").write_text(json.dumps({**told(folder), **more}))
    return copy


def stored(folder: Path, kind: str) -> dict[str, Tensor]:
    """The weights of a kind as SAT's file has them, without the prefix."""
    (file,) = (folder / kind / "sat" / "transformer").glob("*/mp_rank_00_model_states.pt")
    return read_weights(file)


def diffusers_folder(folder: Path, place: Path) -> Path:
    """diffusers' folder of the base's network; where the set has its config alone, diffusers converts SAT's weights."""
    from diffusers import UNet2DConditionModel

    own = folder / "base" / "diffusers" / "unet"
    if any(own.glob("*.safetensors")):
        return own
    model = UNet2DConditionModel.from_config(json.loads((own / "config.json").read_text()))
    model.load_state_dict(by_diffusers(folder, "base", model.config))
    model.half().save_pretrained(place / "unet")
    return place / "unet"


def by_diffusers(folder: Path, kind: str, config: Any) -> dict[str, Tensor]:
    """SAT's weights of a kind under the names that diffusers' own conversion gives them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    weights = stored(folder, kind)
    found = convert_ldm_unet_checkpoint({f"model.diffusion_model.{n}": v for n, v in weights.items()}, dict(config))
    if "w_proj.weight" in weights:  # which that conversion does not know
        found["time_embedding.cond_proj.weight"] = weights["w_proj.weight"]
    return found


def conditions(ids: Tensor) -> dict[str, Tensor]:
    """[B, 6], as diffusers calls them, by our names."""
    return dict(zip(CONDITION_NAMES, ids.split(2, dim=1), strict=True))


def sizes_of(golden: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Of the trajectories, whose sinusoids are those of a case."""
    vector = golden[f"{kind}.sample.vector"]
    cases = (key.removesuffix("vector") for key in golden if key.startswith(f"{kind}.case") and key.endswith(".vector"))
    same = next(key for key in cases if golden[f"{key}vector"][:1].equal(vector[:1]))
    assert golden[f"{same}time_ids"].shape[1] == CONDITIONS
    return conditions(golden[f"{same}time_ids"][:1])


def tiny_vae(place: Path) -> None:
    """A random autoencoder like SDXL's, 8 pixels a latent, as the release has it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = AutoencoderKL(block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4, **blocks)
    place.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in kl_to_sat(model.state_dict(), model.config).items()}
    save_file(weights, place / "sdxl_vae.safetensors")
