"""LoRA of a model that makes images or films, as a file for `load_lora_weights` of diffusers' pipelines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sat_models.checkpoint.huggingface import form_of_class
from sat_models.checkpoint.merged import LORA_CONFIG_KEY
from sat_models.checkpoint.output import check_output, new_folder
from sat_models.checkpoint.source import Source
from sat_models.checkpoint.staging import write_tensors
from sat_models.errors import CheckpointError
from sat_models.models.common.hf_form import KeyTable

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""

_MATRIX = re.compile(r"^(.*)\.(matrix_A|matrix_B|magnitude)\.(\d+)$")
_PART = "transformer"
"""Of the pipeline."""


def save_diffusers_lora(source: Source, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a folder with `pytorch_lora_weights.safetensors`: A and B of each linear of diffusers' model, B with
    alpha / rank in it.

    Args:
        source: the model with an adapter, or with matrices beside its weights, as the original scripts save them.
        folder: must not exist, or be empty.
        overwrite: a folder that was written so may give way, as a whole.

    Raises:
        CheckpointError: no LoRA, DoRA, several model-parallel parts, weights that were trained in full, or a linear
            that diffusers has not as one.
        ConfigError: a family without a form for diffusers.
    """
    form = form_of_class(source.config.model_class, "diffusers")
    keys, (matrices, alpha) = form.keys_of(source.config.to_dict()), _matrices(source)
    check_output(folder, overwrite=overwrite, read=source.files())
    tensors: dict[str, Tensor] = {}
    for name, value in matrices.items():
        linear, kind, block = _MATRIX.fullmatch(name).groups()
        module = _module(keys, linear, int(block))
        scaled = value if kind == "matrix_A" else value * (alpha / value.shape[1])
        tensors[f"{_PART}.{module}.lora_{kind[-1]}.weight"] = scaled.contiguous()
    with new_folder(folder, last=LORA_FILE) as staging:
        write_tensors(tensors, staging / LORA_FILE, {"format": "pt"})
    return folder


def _matrices(source: Source) -> tuple[Mapping[str, Tensor], float]:
    """The matrices by SAT's names, and alpha."""
    if source.adapter is not None:
        given = source.adapter.tensors
        if source.adapter.lora is None or (full := [name for name in given if not _MATRIX.fullmatch(name)]):
            raise CheckpointError(
                f"the adapter holds {full[0] if source.adapter.lora else 'no LoRA'}, for which diffusers' LoRA files "
                "have no place; merge it instead (convert_checkpoint.py --merge-lora … --to hf)"
            )
        found, alpha = given, source.adapter.lora.alpha
    else:
        stored = source.checkpoint.read()
        if len(stored) > 1:
            raise CheckpointError(
                f"{source.checkpoint.step_folder} has {len(stored)} model-parallel parts, whose LoRA matrices are not "
                "those of one model; merge them instead (convert_checkpoint.py --to hf)"
            )
        found = {name: value for name, value in stored[0].items() if _MATRIX.fullmatch(name)}
        alpha = float((source.checkpoint.config.get(LORA_CONFIG_KEY) or {}).get("alpha", 1.0))
    if not found:
        raise CheckpointError(f"{source.checkpoint.step_folder} holds no LoRA matrices")
    if any(".magnitude." in name for name in found):
        raise CheckpointError("DoRA has no place in a file of LoRA for diffusers; merge it instead")
    return found, alpha


def _module(keys: KeyTable, linear: str, block: int) -> str:
    """diffusers' linear that a block of one of SAT's is."""
    names = keys.all_hf(f"{linear}.weight", 1)
    place = keys.place(names[0]) if names else None
    if place is None or place.pieces > 1 or place.swapped or block >= len(names):
        raise CheckpointError(f"{linear} is no linear of diffusers' model; merge the LoRA instead")
    return names[block].removesuffix(".weight")
