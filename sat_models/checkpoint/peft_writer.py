"""Adapters as Hugging Face's PEFT has them, in the names of the family's Hugging Face model.

What `peft` reads, the other way round: A and B of queries, keys and values apart or joined as that model has its
linears, ranks and alphas by pattern where some are joined, and weights that were trained in full as `modules_to_save`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixins.lora_settings import LoRASettings
from sat_models.checkpoint.huggingface import HFCheckpoint, form_of_class
from sat_models.checkpoint.layout import TRANSFORMER_FOLDER, SATCheckpoint
from sat_models.checkpoint.output import check_output, check_room, new_folder
from sat_models.checkpoint.peft import PEFT_CONFIG_FILE, PEFT_WEIGHTS
from sat_models.checkpoint.peft_blocks import joined, write_header
from sat_models.checkpoint.source import Source
from sat_models.checkpoint.staging import write_tensors
from sat_models.errors import CheckpointError, ConfigError
from sat_models.files import write_json, write_text
from sat_models.models.common.hf_form import HFForm, KeyTable

_MATRIX = re.compile(r"^(.*)\.(matrix_A|matrix_B|magnitude)\.(\d+)$")
_PREFIX = "base_model.model."
DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
"""Where `load_lora_weights` of a pipeline of diffusers looks."""
_INSTEAD = "Merge it instead (scripts/merge_lora.py), and convert the result with --to hf."


def save_peft(source: Source, folder: Path, *, base: str, layout: str | None = None, overwrite: bool = False) -> Path:
    """Write an adapter as PEFT's folder: `adapter_config.json`, `adapter_model.safetensors` and a card.

    Args:
        source: the base model with the adapter.
        folder: must not exist, or be empty.
        base: Hugging Face folder or id of the base model, which PEFT looks up.
        layout: whose names, where the family has two and the base is no Hugging Face folder.
        overwrite: a folder that was written so may give way, as a whole.

    Raises:
        CheckpointError: another base, or what PEFT has no form for, by name; a folder that may not be written.
        ConfigError: a family without a Hugging Face form.
    """
    adapter = source.adapter
    if adapter is None or adapter.lora is None:
        raise CheckpointError("the adapter holds no LoRA, and PEFT's adapters are LoRA with what was trained beside it")
    if adapter.prefix_length:
        raise CheckpointError("the adapter holds a p-tuning prefix in every layer, for which PEFT's LoRA has no form")
    form = peft_form(source.checkpoint, layout)
    form.config_to_hf(source.config.to_dict())
    check_output(folder, overwrite=overwrite, read=source.files())
    source.open()  # its names and sizes are those of the base
    names = _PeftNames(form, form.keys_of(source.config.to_dict()), source.config.num_layers)
    tensors, settings, blocks = names.of(adapter.tensors, adapter.lora)
    check_room(folder, sum(value.nbytes for value in tensors.values()))
    with new_folder(folder, last=PEFT_CONFIG_FILE) as staging:
        write_tensors(tensors, staging / PEFT_WEIGHTS[0], write_header(adapter.extra, blocks))
        if form.layout == "diffusers":
            _write_for_diffusers(tensors, settings, staging / DIFFUSERS_LORA)
        write_json(staging / PEFT_CONFIG_FILE, {**settings, "base_model_name_or_path": base})
        write_text(staging / "README.md", _card(folder.name, base, settings, form))
    return folder


def peft_form(checkpoint: SATCheckpoint, layout: str | None = None) -> HFForm:
    """The form by whose names an adapter on this base is written.

    Raises:
        ConfigError: the family has none that is written, or the base is a Hugging Face folder in another.
    """
    written = form_of_class(checkpoint.config["model_class"], layout)
    if not isinstance(checkpoint, HFCheckpoint) or layout is not None:
        return written
    if checkpoint.form.sizes_to_hf is None:
        raise ConfigError(
            f"{checkpoint.folder} is a {checkpoint.form.architecture}, for which PEFT's adapters are not "
            f"written; convert it with --to hf to {written.architecture}, and name that folder with --base"
        )
    return checkpoint.form


@dataclass
class _Linear:
    """What becomes of one linear of Hugging Face's model.

    Attributes:
        blocks: A, B and lengths (None without DoRA) by their slot and number.
    """

    blocks: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=dict)

    def in_order(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        return [self.blocks[key] for key in sorted(self.blocks)]


@dataclass
class _PeftNames:
    """From SAT's names to those of PEFT."""

    form: HFForm
    keys: KeyTable
    num_layers: int

    def of(
        self, tensors: Mapping[str, Tensor], lora: LoRASettings
    ) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, list[int]]]:
        """PEFT's tensors, the content of its config without the base, and the rows of joined blocks."""
        linears = self._linears({name: value for name, value in tensors.items() if _MATRIX.match(name)})
        full = self._in_full({name: value for name, value in tensors.items() if not _MATRIX.match(name)})
        found: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        blocks: dict[str, list[int]] = {}
        for name, linear in linears.items():
            module, own = self._module(name), linear.in_order()
            found |= self._matrices(name, module, own)
            if len(own) > 1:
                ranks[module], blocks[module] = len(own) * lora.rank, [len(b) for _, b, _ in own]
        targets = [self._module(name) for name in linears]
        saved = list(dict.fromkeys(self._module(name) for name in full))
        _check_apart(targets, saved)
        found |= {f"{_PREFIX}{self.form.in_memory(name)}": value for name, value in full.items()}
        settings = _settings(lora, targets, saved, ranks, task=None if self.form.layout == "diffusers" else "CAUSAL_LM")
        return {name: value.contiguous() for name, value in found.items()}, settings, blocks

    def _module(self, name: str) -> str:
        """The module of a Hugging Face weight, as PEFT calls it."""
        return self.form.in_memory(name).rpartition(".")[0]

    def _linears(self, matrices: Mapping[str, Tensor]) -> dict[str, _Linear]:
        """By the names of their weights in Hugging Face's files; those whose A and B are nothing but zeros left out."""
        linears: dict[str, _Linear] = {}
        counts: dict[str, int] = {}
        for module, _, number in (_MATRIX.match(name).groups() for name in matrices):
            counts[module] = max(counts.get(module, 0), int(number) + 1)
        for module, count in counts.items():
            names = self._names(f"{module}.weight")
            for number in range(count):
                name = names[number] if len(names) == count else names[0]
                a, b, lengths = (matrices.get(f"{module}.{x}.{number}") for x in ("matrix_A", "matrix_B", "magnitude"))
                if len(names) == count > 1 and lengths is None and not (a.any() or b.any()):
                    continue
                slot = next(place.slot for place in self.keys.places(name) if place.name == f"{module}.weight")
                linears.setdefault(name, _Linear()).blocks[slot, number] = a, b, lengths
        for name, linear in linears.items():
            if len({slot for slot, _ in linear.blocks}) < self.keys.place(name).slots:
                raise self._half(name)
        return linears

    def _names(self, weight: str) -> tuple[str, ...]:
        """Names in the files. Raises CheckpointError for a weight that they do not have."""
        if names := self.keys.all_hf(weight, self.num_layers):
            return names
        raise CheckpointError(f"{weight} is no weight of {self.form.architecture}, so PEFT cannot say it. {_INSTEAD}")

    def _half(self, name: str) -> CheckpointError:
        lacking = " and ".join(place.name for place in self.keys.places(name))
        return CheckpointError(
            f"{name} is one weight in {self.form.architecture}, of {lacking} here, of which the adapter holds a part; "
            f"PEFT adapts it as a whole. {_INSTEAD}"
        )

    def _matrices(
        self, name: str, module: str, blocks: Sequence[tuple[Tensor, Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        a, b = joined([(a, b) for a, b, _ in blocks])
        lengths = [own for _, _, own in blocks if own is not None]
        if self.keys.place(name).packed:
            b = self.keys.hf_value(name, b)
        found = {f"{_PREFIX}{module}.lora_A.weight": a, f"{_PREFIX}{module}.lora_B.weight": b}
        if lengths:
            whole = torch.cat(lengths)
            packed = self.keys.place(name).packed
            found[f"{_PREFIX}{module}.lora_magnitude_vector"] = self.keys.hf_value(name, whole) if packed else whole
        return found

    def _in_full(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that were trained in full, by their names in Hugging Face's files."""
        found = {}
        for name in {name: None for weight in weights for name in self._names(weight)}:
            parts = [weights.get(place.name) for place in self.keys.places(name)]
            if any(part is None for part in parts):
                raise self._half(name)
            if not name.endswith((".weight", ".bias")):
                raise CheckpointError(
                    f"{name} is no module of its own in {self.form.architecture}, and PEFT keeps modules, so it cannot "
                    f"say it. {_INSTEAD}"
                )
            found[name] = self.keys.hf_value(name, *parts)
        return found


def _check_apart(targets: Sequence[str], saved: Sequence[str]) -> None:
    """Raises CheckpointError for a module that lies in another one which PEFT wraps, or is both adapted and kept."""
    wrapped = {*targets, *saved}
    for module in wrapped:
        parents = module.split(".")
        around = [".".join(parents[:depth]) for depth in range(1, len(parents))]
        if outer := next((name for name in around if name in wrapped), None):
            raise CheckpointError(f"PEFT cannot adapt {module}, which lies inside of {outer}. {_INSTEAD}")
    if both := sorted({*targets} & {*saved}):
        raise CheckpointError(f"{both[0]} has LoRA beside what was trained in full, which PEFT has not. {_INSTEAD}")


def _settings(
    lora: LoRASettings, targets: Sequence[str], saved: Sequence[str], ranks: Mapping[str, int], *, task: str | None
) -> dict[str, Any]:
    """The content of `adapter_config.json`, without the base."""
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": task,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_dora": lora.use_dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": list(targets),
        "modules_to_save": list(saved) or None,
        "rank_pattern": dict(ranks),
        "alpha_pattern": {module: alpha * (rank // lora.rank) for module, rank in ranks.items()},
    }


def _write_for_diffusers(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], file: Path) -> None:
    """The same for the pipelines of diffusers that load LoRA: names without PEFT's prefix, the config in the header."""
    named = {f"{TRANSFORMER_FOLDER}.{name.removeprefix(_PREFIX)}": value.clone() for name, value in tensors.items()}
    told = {f"{TRANSFORMER_FOLDER}.{name}": value for name, value in settings.items()}
    write_tensors(named, file, {"format": "pt", "lora_adapter_metadata": json.dumps(told)})


def _card(name: str, base: str, settings: Mapping[str, Any], form: HFForm) -> str:
    theirs = f"diffusers' {form.architecture}" if form.layout == "diffusers" else "transformers'"
    return f"""---
library_name: peft
base_model: {base}
---
# {name}

TODO: what this adapter is for, what it was trained on, and its licence.

LoRA of rank {settings["r"]}, alpha {settings["lora_alpha"]}, on {len(settings["target_modules"])} linears of {base}.

With PEFT: `PeftModel.from_pretrained(model, "{name}")`, where `model` is {theirs} of that base. With the zoo of
SAT models: `load_pretrained("{name}")`, which loads the base and merges it.
"""
