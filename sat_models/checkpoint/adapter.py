"""Adapter files: what a fine-tuning run trained and nothing else, megabytes instead of the whole model.

A safetensors file with whole tensors under the model's own names, whatever the number of model-parallel ranks, and in
its header, under "adapter", a JSON object: format, base_model, lora (rank, alpha, targets, …; null without), and extra.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import LoRALinear, LoRASettings, lora_layers
from mixins.ptuning import PTUNING_NAME, PTuningMixin, add_ptuning
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.layout import LATEST_FILE
from sat_models.checkpoint.peft import PEFT_CONFIG_FILE, PEFT_WEIGHTS, PeftSettings, find_peft, read_peft
from sat_models.checkpoint.peft_names import by_sat_names
from sat_models.checkpoint.reshard import SplitRule, merge, slice_for_rank, split_rules
from sat_models.checkpoint.staging import write_tensors
from sat_models.config import LanguageConfig
from sat_models.errors import CheckpointError

ADAPTER_FILE = "adapter.safetensors"
PREFIX_START = f"mixins.{PTUNING_NAME}.prefix."
_FORMAT = "sat-adapter-1"
_HEADER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The content of an adapter file.

    Attributes:
        tensors: whole tensors by name; LoRA matrices, prefixes, and weights that were trained in full.
        base_model: name or path of the model it was trained on, as `load_pretrained` takes it.
        lora: None where no LoRA was trained.
        extra: what the writer added (step, data, …).
        file: where it was read; None for one made in memory.
        peft: of an adapter of Hugging Face's PEFT, whose tensors have its names until `on` is asked.
    """

    tensors: dict[str, Tensor]
    base_model: str
    lora: LoRASettings | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    peft: PeftSettings | None = None

    def on(self, config: LanguageConfig) -> Adapter:
        """The same adapter, its tensors under the names of the base model.

        Args:
            config: of the base model.

        Raises:
            CheckpointError: PEFT's names are not those of that model.
        """
        if self.peft is None or self.file is None:
            return self
        tensors, rank, alpha = by_sat_names(self.tensors, self.peft, config, self.file)
        lora = LoRASettings(targets=("*",), rank=rank, alpha=alpha, use_dora=self.peft.dora)
        return replace(self, tensors=tensors, lora=lora, peft=None)

    @property
    def prefix_length(self) -> int:
        """Tokens of the p-tuning prefix; 0 without one."""
        return next((value.shape[2] for name, value in self.tensors.items() if name.startswith(PREFIX_START)), 0)


def adapter_path(path: str | os.PathLike[str]) -> Path:
    """The adapter file that a path means: itself, the one in a folder, or in the step folder its `latest` names."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    latest = path / LATEST_FILE
    if not (path / ADAPTER_FILE).is_file() and latest.is_file():
        newest = path / Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name / ADAPTER_FILE
        return newest if newest.is_file() else path / ADAPTER_FILE
    return path / ADAPTER_FILE


def find_adapter(path: str | os.PathLike[str]) -> Path | None:
    """The adapter file that a path means, if there is one: a `.safetensors` file, a folder as in `adapter_path`, or
    what PEFT wrote."""
    file = adapter_path(path)
    if file.name not in PEFT_WEIGHTS and file.suffix == ".safetensors" and file.is_file():
        return file
    return find_peft(Path(path).expanduser())


def adapter_files(path: str | os.PathLike[str]) -> list[Path]:
    """All files of the adapter that a path means; none where it means something else."""
    file = find_adapter(path)
    if file is None:
        return []
    return [file, file.with_name(PEFT_CONFIG_FILE)] if file.name in PEFT_WEIGHTS else [file]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters in an adapter of `model`: LoRA matrices, prefixes, and every other one that requires a gradient."""
    wrappers = [(f"{n}.", m) for n, m in model.named_modules() if isinstance(m, LoRALinear | PTuningMixin)]
    added = {
        start + key
        for start, module in wrappers
        for key, _ in (module.own_parameters() if isinstance(module, LoRALinear) else module.named_parameters())
    }
    return {name: p for name, p in model.named_parameters() if p.requires_grad or name in added}


def save_adapter(
    model: nn.Module, path: str | os.PathLike[str], *, base_model: str, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write what is trained in `model`; call it on every rank. Under ZeRO-3, inside `GatheredParameters`.

    Args:
        path: a folder (made if absent), or a file that ends in `.safetensors`.
        base_model: what `load_pretrained` was given; written into the header.
        extra: JSON values to keep with it.

    Returns:
        The file.

    Raises:
        CheckpointError: on all ranks; nothing is trained, or the file cannot be written.
    """
    path = Path(path).expanduser()
    file = path if path.suffix == ".safetensors" else path / ADAPTER_FILE
    rules, trained = split_rules(model), trained_parameters(model)
    if not trained:
        raise CheckpointError("there is nothing to save: no parameter of the model is trained")
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        whole = _whole(parameter.detach(), rules[name])
        if runtime.rank() == 0:
            tensors[name] = whole
    settings = {layer.settings for layer in lora_layers(model).values()}
    if len(settings) > 1:
        raise CheckpointError("the LoRA layers have different settings; an adapter file holds one rank, alpha, …")
    header = {
        "format": _FORMAT,
        "base_model": base_model,
        "lora": next((s.to_dict() for s in settings), None),
        "extra": dict(extra or {}),
    }
    runtime.in_step(lambda: _write(tensors, header, file) if runtime.rank() == 0 else None)
    return file


def _whole(local: Tensor, rule: SplitRule) -> Tensor:
    """The whole tensor on the CPU, from the parts of this model-parallel group."""
    size = mpu.get_model_parallel_world_size()
    if rule.dim is None or size == 1:
        return local.to("cpu", copy=True).contiguous()
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, local.contiguous(), group=mpu.get_model_parallel_group())
    return merge([part.cpu() for part in parts], rule)


def _write(tensors: Mapping[str, Tensor], header: Mapping[str, Any], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, file, {"format": "pt", _HEADER: json.dumps(header)})
    except OSError as error:
        raise CheckpointError(
            f"the adapter was not saved: cannot write {error.filename or file}: {error.strerror or error}. "
            "Free space or choose another folder."
        ) from error


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter file, or the one in a folder.

    Raises:
        CheckpointError: it is not there, damaged, no adapter, or one of PEFT's that is not read here.
    """
    from safetensors import SafetensorError, safe_open

    if (file := find_peft(Path(path).expanduser())) is not None:
        tensors, base, settings = read_peft(file)
        return Adapter(tensors=tensors, base_model=base, extra=dict(settings.extra), file=file, peft=settings)
    file = adapter_path(path)
    if not file.is_file():
        raise CheckpointError(f"there is no adapter at {file}; give an {ADAPTER_FILE} or the folder that holds it")
    try:
        with safe_open(file, framework="pt") as content:
            header = json.loads((content.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
        if header is None or header.get("format") != _FORMAT:
            raise CheckpointError(f"{file} is no adapter of this project: its header lacks '{_HEADER}' ({_FORMAT})")
        lora = LoRASettings.from_dict(header["lora"]) if header["lora"] else None
        return Adapter(
            tensors=tensors, base_model=header["base_model"], lora=lora, extra=header.get("extra", {}), file=file
        )
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({str(error)[:200]}). Copy it again.") from error


@torch.no_grad()
def load_prefix(model: ZooModel, adapter: Adapter) -> None:
    """Give a model the p-tuning prefix of an adapter, which cannot be merged. Call it on every rank.

    Raises:
        CheckpointError: the prefix fits another model.
    """
    found = {name: value for name, value in adapter.tensors.items() if name.startswith(PREFIX_START)}
    add_ptuning(model, adapter.prefix_length)
    rules, rank, size = split_rules(model), mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    parameters = {name: value for name, value in model.named_parameters() if name.startswith(PREFIX_START)}
    wanted = {name: rules[name].full_shape(value.shape, size) for name, value in parameters.items()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if wrong := sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name)):
        raise CheckpointError(
            f"the p-tuning prefix in {adapter.file or 'this adapter'} does not fit this {type(model).__name__} "
            f"({len(wrong)} names or shapes, such as {', '.join(wrong[:4])}); it was trained on {adapter.base_model}"
        )
    for name, value in found.items():
        parameters[name].copy_(slice_for_rank(value, rules[name], rank, size))
