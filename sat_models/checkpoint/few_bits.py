"""A model of transformers in 8 or 4 bits, whose full precision is never in memory: a linear at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sat_models.checkpoint.huggingface import read_shard_file, weight_files
from sat_models.checkpoint.memory import release_freed, release_pages
from sat_models.errors import CheckpointError
from sat_models.models.build import OnMeta
from sat_models.models.common.quantised import quantise_linears

_PREFIX = "model."
"""Of names in the files of a whole language model, of which the inner one is asked for."""


def load_in_few_bits(
    make: Callable[[], nn.Module], folder: Path, *, bits: int, in_8_bits: Sequence[str] = (), dtype: torch.dtype
) -> nn.Module:
    """Build a model without memory, and fill it: linears with what is made of their weights as they are read, the rest
    as it is.

    Args:
        make: builds the model, of transformers.
        folder: its weights, as transformers keeps them; those of other parts are passed over.
        bits, in_8_bits: see `quantise_linears`.
        dtype: of what is not quantised.

    Raises:
        CheckpointError: weights that are missing, or of other shapes.
        MissingPackageError: no bitsandbytes.
    """
    with OnMeta():
        model = make()
        model.tie_weights()
    stored = {name: value for file in weight_files(folder)[0] for name, value in read_shard_file(file).items()}
    named = {name.removeprefix(_PREFIX): value for name, value in stored.items()}
    wanted = {name: value.shape for name, value in model.state_dict(keep_vars=True).items()}
    _check_shapes(_by_shared_weights(model), named, wanted, folder)

    def read(name: str) -> Tensor:
        return named[f"{name}.weight"]

    def done(name: str) -> None:
        release_pages(named[f"{name}.weight"])
        release_freed()

    quantise_linears(model, bits, in_8_bits=in_8_bits, weight_of=read, done=done)
    _fill(model, named, dtype)
    return model


def _by_shared_weights(model: nn.Module) -> list[set[str]]:
    """The names of each parameter: T5 calls its embedding by two, of which files have one or both."""
    names: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), set()).add(name)
    return list(names.values())


def _check_shapes(
    groups: Sequence[set[str]], stored: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], folder: Path
) -> None:
    for names in groups:
        found = sorted(names & stored.keys())
        if not found:
            raise CheckpointError(f"{folder} lacks {min(names)}; copy or download it again")
        if stored[found[0]].shape != wanted[found[0]]:
            shapes = f"{list(stored[found[0]].shape)}, not {list(wanted[found[0]])} as its config.json says"
            raise CheckpointError(f"{folder}: {found[0]} is {shapes}")


def _fill(model: nn.Module, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give what is left on meta its values."""
    for names in _by_shared_weights(model):
        if not model.get_parameter(min(names)).is_meta:
            continue
        value = nn.Parameter(stored[min(names & stored.keys())].to(dtype, copy=True), requires_grad=False)
        for name in names:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, value)
