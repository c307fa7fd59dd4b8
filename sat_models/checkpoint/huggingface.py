"""Hugging Face folders as a source of weights: `config.json`, safetensors shards and their index; no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sat_models.checkpoint.layout import HF_CONFIG_FILE, SATCheckpoint
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models import cogagent_keys, cogvlm_keys
from sat_models.models.build import model_class
from sat_models.models.hf_family import HFFamily

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FAMILIES: dict[str, HFFamily] = {family.architecture: family for family in (cogvlm_keys.FAMILY, cogagent_keys.FAMILY)}
"""By the name in `architectures` of a `config.json`."""

_AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class HFCheckpoint(SATCheckpoint):
    """A Hugging Face folder, seen as a SAT checkpoint of one part.

    Attributes:
        files: the shards.
        config: content of `config.json` as that of a `model_config.json`.
        family: names of its weights.
        index: shard of each weight, as the index file says; empty where there is none.
    """

    family: HFFamily
    index: Mapping[str, str]

    @property
    def config_file(self) -> Path:
        """See `SATCheckpoint`."""
        return self.folder / HF_CONFIG_FILE

    def stored_name(self, name: str) -> str:
        """See `SATCheckpoint`."""
        try:
            return self.family.keys.to_hf(name)
        except CheckpointError:
            return name

    def read(self) -> list[dict[str, Tensor]]:
        """See `SATCheckpoint`. Unknown names are kept, marked as such, so that the list of misfits has them."""
        found: dict[str, Tensor] = {}
        for file in self.files:
            shard = read_safetensors(file)
            if lost := sorted(name for name, where in self.index.items() if where == file.name and name not in shard):
                raise CheckpointError(f"{INDEX_FILE} says that {file} holds {lost[0]}, which it does not. {_AGAIN}")
            if twice := sorted(found.keys() & shard.keys()):
                raise CheckpointError(f"{twice[0]} stands in two shards of {self.folder}. {_AGAIN}")
            found |= shard
        weights: dict[str, Tensor] = {}
        for name, value in found.items():
            key = self._sat_name(name)
            if key in weights and not weights[key].equal(value):
                raise CheckpointError(f"{self.folder}: {name} differs from the same table in another layer")
            weights.setdefault(key, value)
        return [weights]

    def _sat_name(self, name: str) -> str:
        try:
            return self.family.keys.to_sat(name)
        except CheckpointError:
            return f"{name} (no weight of {self.family.architecture})"


def open_hf(folder: Path) -> HFCheckpoint:
    """Locate the parts of a Hugging Face folder.

    Raises:
        ConfigError: a `config.json` of another model, or one without its sizes.
        CheckpointError: shards that are not there, by name.
    """
    data = read_json(folder / HF_CONFIG_FILE)
    family = _family_of(folder, data)
    index = _read_index(folder / INDEX_FILE)
    names = sorted(set(index.values())) or [SINGLE_FILE]
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} is incomplete: {', '.join(absent)} missing. A Hugging Face folder holds {HF_CONFIG_FILE} and "
            f"{SINGLE_FILE}, or shards with {INDEX_FILE}; other forms of weights (.bin) are not read."
        )
    return HFCheckpoint(folder, tuple(folder / name for name in names), family.config_to_sat(data), family, index)


def _family_of(folder: Path, data: Mapping[str, Any]) -> HFFamily:
    given = data.get("architectures")
    names = [name for name in given if name in FAMILIES] if isinstance(given, list) else []
    if not names:
        raise ConfigError(
            f"{folder} is a Hugging Face folder of another model: {HF_CONFIG_FILE} has architectures {given!r:.80}; "
            f"known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[names[0]]


def family_of_class(name: str) -> HFFamily:
    """The Hugging Face form of a `model_class`, or of one that it extends (the fine-tuning names).

    Raises:
        ConfigError: it has none.
    """
    for base in model_class(name).__mro__:
        for family in FAMILIES.values():
            if family.model_class == base.__name__:
                return family
    known = ", ".join(family.model_class for family in FAMILIES.values())
    raise ConfigError(f"{name} has no Hugging Face form; those that have: {known}")


def _read_index(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{path} has no weight_map from names to files. {_AGAIN}")
    if odd := [file for file in table.values() if Path(file).name != file or "\\" in file]:
        raise CheckpointError(f"{path} was refused: '{odd[0]}' is not the name of a file beside it")
    return table


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, memory-mapped on the CPU.

    Raises:
        CheckpointError: damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            if file.read(23) == b"version https://git-lfs":
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository."
                )
        with safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}). {_AGAIN}") from error
