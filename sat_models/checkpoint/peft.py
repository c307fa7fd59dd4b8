"""Adapters that Hugging Face's PEFT wrote: `adapter_config.json` beside `adapter_model.safetensors` (or `.bin`).

LoRA, rsLoRA and DoRA on linears, and modules that were trained in full (`modules_to_save`), for the families whose
Hugging Face names the zoo knows. PEFT wraps each of q, k and v by itself where SAT holds them as one: what was not
adapted of the three gets matrices of zeros. Ranks and scales may differ from linear to linear there (`rank_pattern`,
`alpha_pattern`, `use_rslora`); then all get one rank here, filled up with zeros, and B carries the scale.
Names are translated in `peft_names`; `peft_writer` writes such folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sat_models.checkpoint.huggingface import read_shard_file
from sat_models.checkpoint.layout import CONFIG_FILE, HF_CONFIG_FILE
from sat_models.checkpoint.peft_blocks import read_header
from sat_models.config import read_json
from sat_models.errors import CheckpointError

PEFT_CONFIG_FILE = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_FILES = ("model.safetensors*", "model-*.safetensors", "pytorch_model*.bin*")
_LLAVA_REST = "non_lora_trainables.bin"
"""The file that LLaVA's own scripts write beside, outside of PEFT's form."""
_READ = ("use_rslora", "use_dora", "eva_config")
_NOT_READ = re.compile(
    r"bias|fan_in_fan_out|lora_bias|layer_replication|trainable_token_indices|target_parameters"
    r"|alora_invocation_tokens|use_\w+|\w+_config"
)
"""Settings by which PEFT computes otherwise, where they say something."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base model as it is."""


@dataclass(frozen=True)
class PeftSettings:
    """The settings of the matrices in `adapter_config.json`.

    Attributes:
        alpha: numerator of the scale.
        rooted: the scale is alpha / sqrt(rank) (rsLoRA), else alpha / rank.
        dora: the length of each row is learned, too.
        alphas: pattern over the names of linears -> alpha of those that it fits.
        blocks: rows of the blocks of linears that are joined in the files (see `peft_blocks`).
        extra: of the adapter that the folder was written from.
    """

    alpha: float
    rooted: bool = False
    dora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """Factor of B A for a linear, by its name in PEFT's model."""
        fitting = (alpha for pattern, alpha in self.alphas.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        return next(fitting, self.alpha) / (rank**0.5 if self.rooted else rank)


def find_peft(path: Path) -> Path | None:
    """The weights file of a folder that PEFT wrote, or of a path to that file; None for anything else."""
    folder = path.parent if path.name in PEFT_WEIGHTS else path
    if not (folder / PEFT_CONFIG_FILE).is_file() or (folder / CONFIG_FILE).is_file():
        return None
    if (folder / HF_CONFIG_FILE).is_file() and any(next(folder.glob(name), None) for name in _MODEL_FILES):
        return None  # a model, from which somebody forgot to remove the adapter
    if path.name in PEFT_WEIGHTS:
        return path if path.is_file() else None
    return next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)


def read_peft(file: Path) -> tuple[dict[str, Tensor], str, PeftSettings]:
    """Tensors by PEFT's names, the base model, and the settings.

    Args:
        file: as `find_peft` gives it.

    Raises:
        CheckpointError: damaged, of a kind that is not LoRA, or settings that are not read here.
    """
    place = file.parent / PEFT_CONFIG_FILE
    data = read_json(place)
    if data.get("peft_type") != "LORA":
        raise CheckpointError(f"{place} has peft_type {data.get('peft_type')!r:.40}; LORA alone is read")
    base = data.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{place} has no base_model_name_or_path; write there what the adapter was trained on")
    if (file.parent / _LLAVA_REST).is_file():
        raise CheckpointError(
            f"{file.parent} holds {_LLAVA_REST}, too: LLaVA's own form of LoRA, on {base:.200}. Merge it with LLaVA's "
            "scripts/merge_lora_weights.py, and give the folder that this writes"
        )
    _refuse_unread(data, place)
    tensors, header = read_shard_file(file), read_header(file)
    alphas = data.get("alpha_pattern") or {}
    try:
        settings = PeftSettings(
            float(data["lora_alpha"]), bool(data.get("use_rslora")), bool(data.get("use_dora")),
            {str(pattern): float(alpha) for pattern, alpha in alphas.items()},
            header.get("blocks", {}), header.get("extra", {}),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{place} is damaged: lora_alpha or alpha_pattern is no number ({error})") from error
    return tensors, base, settings


def _refuse_unread(data: Mapping[str, Any], place: Path) -> None:
    for name, value in data.items():
        if name not in _READ and _NOT_READ.fullmatch(name) and value not in (None, False, "none", [], {}):
            raise CheckpointError(
                f"{place} has {name} {value!r:.60}, which is not read here; merge the adapter with PEFT's "
                "merge_and_unload() and give the model that this makes"
            )
    if data.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{place} has init_lora_weights {data['init_lora_weights']!r:.40}, which changed the base model, too; save "
            "it as plain LoRA (PEFT: path_initial_model_for_weight_conversion), or merge it with merge_and_unload()"
        )
