"""Between SAT folders and Hugging Face folders, weight by weight on the CPU; and the proof that nothing was lost."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.huggingface import INDEX_FILE, family_of_class
from sat_models.checkpoint.io import check_fit, load_weights, write_parts
from sat_models.checkpoint.layout import HF_CONFIG_FILE, SATCheckpoint, find_checkpoint
from sat_models.checkpoint.reshard import SplitRule, read_shard, split_rules
from sat_models.config import CogAgentConfig, CogVLMConfig, LLaMAConfig
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import build_model, computable_buffers, compute_buffer, make_config

logger = logging.getLogger(__name__)

FORMS = ("sat", "hf")
SHARD_BYTES = 5 * 10**9
_SPARE_BYTES = 64 * 2**20  # left free on the disk
_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class _Weights:
    """What is to be written: stored parts by SAT's names, how they are divided, and the content of their config."""

    parts: Sequence[Mapping[str, Tensor]]
    rules: Mapping[str, SplitRule]
    config: Mapping[str, Any]
    tokenizer_file: Path | None

    def take(self, name: str, dtype: torch.dtype | None, rank: int = 0, size: int = 1) -> Tensor:
        """A weight, or the part of it that belongs to `rank` of `size`, on the CPU in memory of its own."""
        kind = _kind(self.parts[0][name], dtype)
        return read_shard([part[name] for part in self.parts], self.rules[name], rank, size, dtype=kind, device="cpu")

    def bytes_of(self, name: str, dtype: torch.dtype | None) -> int:
        """Bytes of the whole weight on disk."""
        first = self.parts[0][name]
        copies = 1 if self.rules[name].dim is None else len(self.parts)
        return first.numel() * _kind(first, dtype).itemsize * copies


def _kind(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def convert(
    source: str | os.PathLike[str],
    to: str,
    folder: str | os.PathLike[str],
    *,
    size: int = 1,
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> Path:
    """Write the weights at `source` in another form, size or dtype. The work of one process.

    Args:
        source: whatever `find_checkpoint` takes.
        to: "sat" or "hf".
        folder: what is written; a Hugging Face folder must not exist yet, a SAT folder gains a step.
        size: model-parallel parts of a SAT folder.
        dtype: of floating-point weights; None keeps the stored ones.
        verify: load both and compare their logits for a small made input, which must be equal bit for bit.

    Returns:
        The step folder ("sat") or the folder ("hf").

    Raises:
        CheckpointError: names or shapes that do not fit, no room, a write that failed, or logits that differ.
        ConfigError: a model without a Hugging Face form, or a size that does not divide it.
    """
    if to not in FORMS:
        raise ConfigError(f"'{to}' is no form of a checkpoint; allowed: {', '.join(FORMS)}")
    if to == "hf" and size != 1:
        raise ConfigError("a Hugging Face folder is not divided over ranks; leave --mp out (loading divides it)")
    if runtime.world_size() > 1:
        raise ConfigError("converting is the work of one process: start it without torchrun")
    checkpoint = find_checkpoint(source)
    if to == "hf":
        written = save_hf(checkpoint, folder, dtype=dtype)
    else:
        written = _save_sat(checkpoint, Path(folder).expanduser(), size, dtype)
    if verify:
        _verify(checkpoint, find_checkpoint(written))
    return written


def save_hf(
    source: nn.Module | SATCheckpoint | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    config: LLaMAConfig | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a Hugging Face folder: config, safetensors shards with their index, tokenizer, a model card to fill in.

    One shard is held in memory at a time. The folder appears under its name when it is complete.

    Args:
        source: a model with all its weights in this process, a checkpoint, or its path.
        folder: must not exist, or be empty.
        config: of `source`, if that is a model.
        dtype: of floating-point weights; None keeps them.
        tokenizer_file: None takes the one beside a checkpoint.
        shard_bytes: most bytes in one shard, unless a single weight has more.

    Raises:
        CheckpointError, ConfigError: as `convert`.
    """
    if isinstance(source, nn.Module):
        if config is None:
            raise ConfigError("to save a model, save_hf needs its config")
        weights = _of_model(source, config, tokenizer_file)
    else:
        weights = _of_checkpoint(source if isinstance(source, SATCheckpoint) else find_checkpoint(source))
    family = family_of_class(weights.config["model_class"])
    data = family.config_to_hf(weights.config)
    layers = data["num_hidden_layers"]
    names = {hf: sat for sat in weights.parts[0] for hf in family.keys.all_hf(sat, layers)}
    shards = list(_shards({hf: weights.bytes_of(sat, dtype) for hf, sat in names.items()}, shard_bytes))
    total = sum(sum(shard.values()) for shard in shards)
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; name a new folder")
    _check_room(folder, total)
    staging = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        staging.mkdir(parents=True)
        index = _write_shards(weights, names, shards, staging, dtype)
        kind = _kind(weights.parts[0]["transformer.word_embeddings.weight"], dtype)
        data["torch_dtype"] = str(kind).removeprefix("torch.")
        _write_json(staging / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(staging / HF_CONFIG_FILE, data)
        (staging / "README.md").write_text(_card(folder.name, data), encoding="utf-8")
        if file := tokenizer_file or weights.tokenizer_file:
            shutil.copyfile(file, staging / _TOKENIZER)
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} was not written: {error}. Free space or choose another folder.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info("wrote %s: %d weights in %d shard(s)", folder, len(names), len(shards))
    return folder


def _of_model(model: nn.Module, config: LLaMAConfig, tokenizer_file: Path | None) -> _Weights:
    if mpu.get_model_parallel_world_size() > 1:
        raise ConfigError("this process holds a part of the model only; convert what save_checkpoint writes")
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return _Weights([weights], split_rules(model), config.to_dict(), tokenizer_file)


def _of_checkpoint(checkpoint: SATCheckpoint, *, complete: bool = False) -> _Weights:
    """The weights of a checkpoint, held against the model that its config describes.

    Args:
        complete: whether tables that the files leave out are computed (SAT's files have them).
    """
    runtime.init_model_parallel(1)
    model = build_model(make_config(checkpoint.config))
    parts, rules = checkpoint.read(), split_rules(model)
    computed = {key: (module, name) for key, module, name in computable_buffers(model)}
    check_fit(checkpoint, parts, model.state_dict(), rules, 1, optional=set(computed))
    if complete:
        dtype = parts[0]["transformer.word_embeddings.weight"].dtype
        for key, (module, name) in computed.items():
            if key in rules and key not in parts[0]:
                value = compute_buffer(module, name, device="cpu", dtype=dtype)
                for part in parts:
                    part[key] = value
    places = (place / _TOKENIZER for place in (checkpoint.step_folder, checkpoint.folder))
    return _Weights(parts, rules, checkpoint.config, next((file for file in places if file.is_file()), None))


def _shards(sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
    """Names with their bytes, in their order, a shard at a time."""
    shard: dict[str, int] = {}
    for name, size in sizes.items():
        if shard and sum(shard.values()) + size > most:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _write_shards(
    weights: _Weights,
    names: Mapping[str, str],
    shards: Sequence[Mapping[str, int]],
    staging: Path,
    dtype: torch.dtype | None,
) -> dict[str, str]:
    """Write the shards; gives the file of each weight."""
    index: dict[str, str] = {}
    with tqdm(total=len(names), unit="weight", desc="writing", disable=None) as progress:
        for number, shard in enumerate(shards, start=1):
            file = staging / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name in shard:
                tensors[name] = weights.take(names[name], dtype)
                index[name] = file.name
                progress.update()
            save_file(tensors, file, metadata={"format": "pt"})
            del tensors
            with file.open("rb") as written:
                os.fsync(written.fileno())
    return index


def _save_sat(checkpoint: SATCheckpoint, folder: Path, size: int, dtype: torch.dtype | None) -> Path:
    name = checkpoint.step_folder.name
    step = name if re.fullmatch(r"\d+|release", name) else "1"
    if (folder / step).resolve() == checkpoint.step_folder.resolve():
        raise ConfigError(f"{folder / step} is what is read; name another folder to write to")
    make_config(checkpoint.config).check_model_parallel(size)
    weights = _of_checkpoint(checkpoint, complete=True)
    names = list(weights.parts[0])
    copies = {name: 1 if weights.rules[name].dim is not None else size for name in names}
    _check_room(folder, sum(weights.bytes_of(name, dtype) * copies[name] for name in names))
    return write_parts(
        _ranks(weights, size, dtype),
        folder,
        {**weights.config, "model_parallel_size": size},
        step=step,
        tokenizer_file=weights.tokenizer_file,
    )


def _ranks(weights: _Weights, size: int, dtype: torch.dtype | None) -> Iterator[dict[str, Tensor]]:
    names = list(weights.parts[0])
    with tqdm(total=size * len(names), unit="weight", desc="writing", disable=None) as progress:
        for rank in range(size):
            part = {}
            for name in names:
                part[name] = weights.take(name, dtype, rank, size)
                progress.update()
            yield part
            del part


def _check_room(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of `folder`, which need not exist yet, has no room for `needed` bytes."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{folder} needs {needed / 2**30:.2f} GiB, but {place} has {free / 2**30:.2f} GiB free. "
            "Make room or choose another folder."
        )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _card(name: str, config: Mapping[str, Any]) -> str:
    return f"""---
tags: [vision-language]
---
# {name}

TODO: what this model is for, what it was trained on, and the licence of its weights (that of the weights it was made
from applies).

- Architecture: {config["architectures"][0]}, {config["num_hidden_layers"]} layers, width {config["hidden_size"]}
- Pictures: {config["vision_config"]["image_size"]} px; weights: {config["torch_dtype"]}

Load it with the zoo of SAT models; no remote code is needed:

```python
from sat_models.zoo import load_pretrained

vlm = load_pretrained("{name}")
print(vlm.generate("picture.png", "What is in the picture?").text)
```
"""


def _verify(first: SATCheckpoint, second: SATCheckpoint) -> None:
    """Raise CheckpointError unless both give the same logits, computed in the dtype of the second."""
    dtype = second.read()[0]["transformer.word_embeddings.weight"].dtype
    wanted, given = (_logits(checkpoint, dtype) for checkpoint in (first, second))
    if not wanted.isfinite().all():
        raise CheckpointError(f"{first.step_folder} gives logits that are not finite, so nothing can be compared")
    if not wanted.equal(given):
        worst = (wanted.float() - given.float()).abs().max().item()
        raise CheckpointError(
            f"{second.step_folder} was written, but its logits differ from those of {first.step_folder} by up to "
            f"{worst:.3g}: do not use it"
        )
    logger.info("%s: %d logits equal those of the source", second.step_folder, wanted.numel())


def _logits(checkpoint: SATCheckpoint, dtype: torch.dtype) -> Tensor:
    runtime.init_model_parallel(1)
    config = make_config(checkpoint.config)
    model = build_model(config, dtype=dtype)
    load_weights(model, checkpoint, device="cpu")
    with torch.inference_mode():
        return model.eval()(**_made_input(config, dtype))[0]


def _made_input(config: LLaMAConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """A seeded prompt of eight tokens, after a picture of noise where the model takes one."""
    generator = torch.Generator().manual_seed(0)
    slots = config.image_length + 2 if isinstance(config, CogVLMConfig) else 0
    ids = torch.randint(3, config.vocab_size, (1, slots + 8), generator=generator)
    given = {"input_ids": ids, "position_ids": torch.arange(slots + 8)[None]}
    sides: Iterable[tuple[str, int]] = ()
    if isinstance(config, CogVLMConfig):
        mask = torch.zeros_like(ids)
        mask[:, 1 : slots + 1] = 1
        given |= {"image_embed_mask": mask, "vision_expert_mask": mask.roll(-1) * mask}
        sides = [("vision_image", config.image_size)]
    if isinstance(config, CogAgentConfig):
        sides = [*sides, ("cross_image", config.cross_image_pix)]
    for name, side in sides:
        given[name] = torch.randn(1, 3, side, side, generator=generator).to(dtype)
    return given
