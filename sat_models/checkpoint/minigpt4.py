"""Models whose weights were released in several places: MiniGPT-4's folder of files, and LLaVA's tower.

A MiniGPT-4 folder holds, under the names of the release,

    *minigpt*.pth                       the checkpoint: `llama_proj`, and LoRA for v2, under key "model"
    eva_vit_g.pth                       EVA ViT-g
    blip2_pretrained_flant5xxl.pth      Q-Former and `ln_vision`, under key "model"; not for Llama-2 and v2
    <any name>/config.json, shards      the LLaMA: Vicuna v0, or Llama-2 chat, as transformers has it
    model_config.json                   only for other sizes than the released ones
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sat_models import registry
from sat_models.checkpoint.huggingface import by_sat_names, read_shard_file, weight_files
from sat_models.checkpoint.layout import CONFIG_FILE, HF_CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.pickles import load_file
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.minigpt4 import keys as minigpt4_keys
from sat_models.models.minigpt4.config import MiniGPT4Config

MINIGPT4_FILE = "*minigpt*.pth"
EVA_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
_WHERE = {
    EVA_FILE: "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth",
    QFORMER_FILE: (
        "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained_flant5xxl.pth"
    ),
}


@dataclass(frozen=True)
class MiniGPT4Files(SATCheckpoint):
    """The released files in one folder, seen as a SAT checkpoint of one part.

    Attributes:
        files: MiniGPT-4's own checkpoint, EVA's file, the Q-Former's file (where there is one), the LLaMA's shards.
    """

    def read(self) -> list[Mapping[str, Tensor]]:
        """See `SATCheckpoint`."""
        config = MiniGPT4Config.from_dict(self.config)
        own, eva, *rest = self.files
        found: dict[str, Tensor] = {}
        for file in rest:
            found |= _tensors(file) if file.name == QFORMER_FILE else read_shard_file(file)
        found |= {f"{minigpt4_keys.EVA_PREFIX}{name}": value for name, value in _tensors(eva).items()}
        found |= _tensors(own)
        if config.qformer_args is None:  # the original makes this norm and loads nothing into it
            width, kind = config.eva_args.hidden_size, next(iter(found.values()))
            found.setdefault("ln_vision.weight", kind.new_ones(width))
            found.setdefault("ln_vision.bias", kind.new_zeros(width))
        keys = minigpt4_keys.KEYS.of_heads(config.heads)
        return [by_sat_names(minigpt4_keys.FORM, keys, minigpt4_keys.renamed(found, config), self.folder)]


def open_minigpt4(folder: Path) -> MiniGPT4Files:
    """Locate the released files in `folder`.

    Raises:
        CheckpointError: one or more are not there; the message says which and where to get them.
        ConfigError: a LLaMA of another form or size.
    """
    found = sorted(folder.glob(MINIGPT4_FILE))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} must hold one MiniGPT-4 checkpoint; there are {', '.join(f.name for f in found)}"
        )
    own = found[0]
    projector = _tensors(own).get("llama_proj.weight")
    if projector is None:
        raise CheckpointError(f"{own} holds no llama_proj.weight under key 'model': it is no MiniGPT-4 checkpoint")
    llama = next((place.parent for place in sorted(folder.glob(f"*/{HF_CONFIG_FILE}"))), None)
    config = _config(folder, own, projector, None if llama is None else read_json(llama / HF_CONFIG_FILE))
    wanted = [EVA_FILE, *([QFORMER_FILE] if config.get("qformer_args") else [])]
    absent = [f"{name} (from {_WHERE[name]})" for name in wanted if not (folder / name).is_file()]
    if llama is None:
        kind = "Vicuna v0" if config.get("qformer_args") else "Llama-2 chat"
        absent.append(
            f"a folder with {kind} of width {projector.shape[0]} as transformers has it ({HF_CONFIG_FILE}, shards)"
        )
    if absent:
        raise CheckpointError(f"{folder} is incomplete; MiniGPT-4 also needs there: {'; '.join(absent)}")
    files = (own, *(folder / name for name in wanted), *weight_files(llama)[0])
    return MiniGPT4Files(folder, files, config)


def _config(folder: Path, own: Path, projector: Tensor, llama: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of a `model_config.json`: the folder's own, or the released sizes that fit the projector."""
    if (folder / CONFIG_FILE).is_file():
        return MiniGPT4Config.from_dict(read_json(folder / CONFIG_FILE)).to_dict()
    with_queries = read_json(registry.config_path("minigpt4-7b"))
    if projector.shape[1] == with_queries["qformer_args"]["hidden_size"]:
        sizes = with_queries
    else:
        sizes = read_json(registry.config_path("minigpt-v2" if "v2" in own.name else "minigpt4-llama2-7b"))
    if llama is None:
        return sizes
    config = minigpt4_keys.FORM.config_to_sat({**sizes, "llama": llama})
    config.pop("llama", None)
    if config["hidden_size"] != projector.shape[0]:
        raise ConfigError(
            f"{own.name} projects pictures to width {projector.shape[0]}, but the LLaMA beside it is "
            f"{config['hidden_size']} wide: it was made for another one"
        )
    return config


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a released file: under key "model", or bare."""
    content = load_file(path)
    inner = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise CheckpointError(f"{path} holds no weights by name, neither bare nor under key 'model'")
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}
