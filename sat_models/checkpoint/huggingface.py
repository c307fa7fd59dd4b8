"""Hugging Face folders as a source of weights: `config.json`, shards and their index; no remote code.

Shards are safetensors, or torch's own files where a model was released so (read as data, see `pickles`).
"""

from __future__ import annotations

import functools
import itertools
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sat_models.checkpoint.hub import fetch
from sat_models.checkpoint.layout import HF_CONFIG_FILE, PIPELINE_FILE, TRANSFORMER_FOLDER, UNET_FOLDER, SATCheckpoint
from sat_models.checkpoint.pickles import load_file
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.common.hf_form import ADDED_TOKENS, LEFT_OUT, WEIGHT_SHAPES, HFForm, KeyTable, Place
from sat_models.models.families import family_of, form_of_config, forms, model_class
from sat_models.processing.byte_tokens import added_tokens

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_TORCH_FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
VAE_FILE = "vae/config.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
LEFT_OUT_FILE = "sat_only.safetensors"
"""Beside them, in folders that were written here: what they have no place for (see `left_out`)."""
_DIFFUSERS_FILES = (f"{DIFFUSERS_STEM}.safetensors.index.json", f"{DIFFUSERS_STEM}.safetensors")

_AGAIN = "Copy or download it again."


class JoinedWeights(Mapping[str, Tensor]):
    """Weights by SAT's names. What is stored in parts, or in another order, is put together when it is asked for, and
    not kept."""

    def __init__(self, keys: KeyTable) -> None:
        self._keys, self._places = keys, dict[str, Place]()
        self._parts: dict[str, list[Tensor | None]] = {}

    def put(self, place: Place, value: Tensor) -> bool:
        """Take what belongs in a place; False if something else is there."""
        self._places[place.name] = place
        parts = self._parts.setdefault(place.name, [None] * place.parts)
        if parts[place.part] is not None:
            return parts[place.part].equal(value)
        parts[place.part] = value
        return True

    def incomplete(self) -> list[str]:
        """Weights of which a part is missing."""
        return [name for name, parts in self._parts.items() if any(part is None for part in parts)]

    def __getitem__(self, name: str) -> Tensor:
        return self._keys.sat_value(self._places[name], self._parts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _nothing_further() -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class HFCheckpoint(SATCheckpoint):
    """A Hugging Face folder, seen as a SAT checkpoint of one part.

    Attributes:
        files: the shards.
        config: content of `config.json` as that of a `model_config.json`.
        form: names of its weights.
        index: shard of each weight, as the index file says; empty where there is none.
        further: gives weights that lie apart from the folder; those of the folder come first.
    """

    form: HFForm
    index: Mapping[str, str]
    further: Callable[[], Mapping[str, Tensor]] = _nothing_further

    @property
    def config_file(self) -> Path:
        """See `SATCheckpoint`."""
        return self.folder / HF_CONFIG_FILE

    def stored_name(self, name: str) -> str:
        """See `SATCheckpoint`."""
        try:
            return self.form.keys_of(self.config).to_hf(name)
        except CheckpointError:
            return name

    def read(self) -> list[Mapping[str, Tensor]]:
        """See `SATCheckpoint`. Unknown names are kept, marked as such, so that the list of misfits has them."""
        found: dict[str, Tensor] = {}
        for file in self.files:
            shard = read_shard_file(file)
            if lost := sorted(name for name, where in self.index.items() if where == file.name and name not in shard):
                raise CheckpointError(f"{INDEX_FILE} says that {file} holds {lost[0]}, which it does not. {_AGAIN}")
            if twice := sorted(found.keys() & shard.keys()):
                raise CheckpointError(f"{twice[0]} stands in two shards of {self.folder}. {_AGAIN}")
            found |= shard
        keys = self.form.keys_of(self.config)
        own = by_sat_names(self.form, keys, found, self.folder)
        further = self.further()
        if (left_out := self.folder / LEFT_OUT_FILE).is_file():
            return [ChainMap(own, read_shard_file(left_out))]
        if not further:
            return [own]
        apart = by_sat_names(self.form, keys, further, self.folder)
        return [ChainMap(own, apart)]


def by_sat_names(form: HFForm, keys: KeyTable, found: Mapping[str, Tensor], folder: Path) -> JoinedWeights:
    """Weights of a Hugging Face form under SAT's names; unknown names are kept, marked as such.

    Args:
        keys: the form's, for a model with its heads.

    Raises:
        CheckpointError: layers that disagree on what they share, or a part that is missing.
    """
    weights = JoinedWeights(keys)
    for name, value in found.items():
        plain = form.canonical(name)
        if plain is None:
            continue
        try:
            places = keys.places(plain)
        except CheckpointError:
            places = (Place(f"{name} (no weight of {form.architecture})"),)
        if not all(weights.put(place, place.taken(value)) for place in places):
            raise CheckpointError(f"{folder}: {name} differs from the same table in another layer")
    if half := weights.incomplete():
        raise CheckpointError(f"{folder}: one of {', '.join(keys.all_hf(half[0], 1))} is missing. {_AGAIN}")
    return weights


def open_hf(folder: Path) -> HFCheckpoint:
    """Locate the parts of a Hugging Face folder.

    Raises:
        ConfigError: a `config.json` of another model, or one without its sizes.
        CheckpointError: shards that are not there, by name.
    """
    folder, data = _config_of_folder(folder)
    form = form_of_config(data, str(folder))
    if form.reads_tokens:
        data = {**data, ADDED_TOKENS: added_tokens(folder)}
    files, index = weight_files(folder)
    if form.reads_weights:
        data = {**data, WEIGHT_SHAPES: {k: tuple(v.shape) for file in files for k, v in read_shard_file(file).items()}}
    if (left_out := folder / LEFT_OUT_FILE).is_file():
        data = {**data, LEFT_OUT: {k: tuple(v.shape) for k, v in read_shard_file(left_out).items()}}
    further = _nothing_further
    apart = form.apart
    if apart is not None and not any(apart.prefix in name for name in _names(files, index)):
        elsewhere = find_apart(folder, data.get(apart.key), apart.what)
        data = {**data, apart.section: _config_apart(elsewhere, apart.section)}
        further = functools.partial(_all_weights, elsewhere)
    return HFCheckpoint(folder, files, form.config_to_sat(data), form, index, further)


def _config_of_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where the weights lie, and the content of `config.json`; beside diffusers' networks those of scheduler and
    autoencoder, under "scheduler" and "vae"."""
    if (folder / PIPELINE_FILE).is_file():
        other = folder / UNET_FOLDER
        folder = other if (other / HF_CONFIG_FILE).is_file() else folder / TRANSFORMER_FOLDER
    data = read_json(folder / HF_CONFIG_FILE)
    beside = {"scheduler": folder.parent / SCHEDULER_FILE, "vae": folder.parent / VAE_FILE}
    if "_class_name" in data:
        data |= {name: read_json(file) for name, file in beside.items() if file.is_file()}
    return folder, data


def _names(files: tuple[Path, ...], index: Mapping[str, str]) -> Iterable[str]:
    return index or itertools.chain.from_iterable(map(read_shard_file, files))


def _config_apart(folder: Path, section: str) -> dict[str, Any]:
    data = read_json(folder / HF_CONFIG_FILE)
    return data.get(section, data)


def _all_weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in weight_files(folder)[0] for name, value in read_shard_file(file).items()}


def find_apart(folder: Path, name: str | None, what: str) -> Path:
    """A folder that a release names, which lies apart from `folder`: as a path, beside it, in it, or on the hub.

    Raises:
        CheckpointError: nowhere; the message says where it may be put.
    """
    if not name:
        raise CheckpointError(f"{folder / HF_CONFIG_FILE} does not name {what}")
    short = Path(name).name
    places = (Path(name).expanduser(), folder / short, folder.parent / short)
    for place in places:
        if (place / HF_CONFIG_FILE).is_file():
            return place
    try:
        return fetch(name, further=_TORCH_FILES[1:])
    except CheckpointError as error:
        raise CheckpointError(f"{what}, {name}, is not in {' or '.join(map(str, places[1:]))}. {error}") from error


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The shards of a Hugging Face folder, and the shard of each weight where an index says it.

    Raises:
        CheckpointError: shards that are not there, by name.
    """
    forms = ((INDEX_FILE, SINGLE_FILE), _TORCH_FILES, _DIFFUSERS_FILES)
    index_name, single = next((form for form in forms if any((folder / name).is_file() for name in form)), forms[0])
    index = _read_index(folder / index_name)
    names = sorted(set(index.values())) or [single]
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} is incomplete: {', '.join(absent)} missing. A Hugging Face folder holds {HF_CONFIG_FILE} and "
            f"{SINGLE_FILE}, or shards with {INDEX_FILE}, or {_TORCH_FILES[1]} in the same two ways."
        )
    return tuple(folder / name for name in names), index


def read_shard_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard by name, memory-mapped on the CPU. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = load_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no weights by name. {_AGAIN}")
    return content


def form_of_class(name: str, layout: str | None = None) -> HFForm:
    """The Hugging Face form of a `model_class`, or of the one of its family that it extends (the fine-tuning names).

    Args:
        layout: "transformers" or "original"; None: the first that the family names.

    Raises:
        ConfigError: it has none, or none of that layout.
    """
    bases = [base.__name__ for base in model_class(name).__mro__]
    written = [f for f in family_of(name).forms() if f.model_class in bases and f.sizes_to_hf is not None]
    if found := next((form for form in written if layout in (None, form.layout)), None):
        return found
    if written:
        allowed = ", ".join(form.layout for form in written)
        raise ConfigError(f"{name} is not written in the layout '{layout}'; allowed: {allowed}")
    known = ", ".join(form.model_class for form in forms() if form.sizes_to_hf is not None)
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
