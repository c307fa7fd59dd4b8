"""Golden folders of painters, ready to be loaded: SAT's folders come without sizes, a pipeline may lack its twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from golden_set import reference
from safetensors.torch import save_file
from torch import Tensor

from sat_models.checkpoint.painter_parts import read_vae

TOLD = ("num_attention_heads", "text_length")
"""What shapes do not tell of a miniature."""
SIZES = ("original_size", "crop", "target_size")


def sat_folder(folder: Path, place: Path) -> Path:
    """SAT's folder with all parts, in a copy with a `model_config.json` beside `latest`."""
    copy = Path(shutil.copytree(folder / "sat", place / "sat", copy_function=shutil.copyfile))
    sizes = reference(folder)["sizes"]
    (copy / "transformer" / "model_config.json").write_text(json.dumps({name: sizes[name] for name in TOLD}))
    return copy


def pipeline(folder: Path, place: Path) -> Path:
    """diffusers' folder with all parts, in a copy; a part that the set lacks there is made of SAT's."""
    copy = Path(shutil.copytree(folder / "diffusers", place / "diffusers", copy_function=shutil.copyfile))
    if not (copy / "vae").is_dir():
        config, weights = read_vae(folder / "sat" / "vae" / "imagekl_ch16.pt", 1.0)
        (copy / "vae").mkdir()
        (copy / "vae" / "config.json").write_text(json.dumps(config))
        save_file(weights, copy / "vae" / "diffusion_pytorch_model.safetensors")
    if not (copy / "text_encoder").is_dir():
        shutil.copytree(folder / "sat" / "t5-v1_1-xxl", copy / "text_encoder", copy_function=shutil.copyfile)
        shutil.copytree(folder / "sat" / "t5-v1_1-xxl", copy / "tokenizer", copy_function=shutil.copyfile)
        (copy / "tokenizer" / "config.json").unlink()
        (copy / "tokenizer" / "model.safetensors").unlink()
    return copy


def given(golden: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """What the model is called with in a case."""
    return {name: golden[f"{key}.{name}"] for name in ("latents", "timestep", "text", *SIZES)}
