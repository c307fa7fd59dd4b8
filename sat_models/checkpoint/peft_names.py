"""Tensors of PEFT's adapters under the names that `checkpoint.adapter` gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from sat_models.checkpoint.peft import PEFT_CONFIG_FILE, PeftSettings
from sat_models.checkpoint.peft_blocks import split
from sat_models.config import LanguageConfig
from sat_models.errors import CheckpointError
from sat_models.models.common.hf_form import HFForm, KeyTable, Place
from sat_models.models.families import family_of, model_class

_PART = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?$")
_SHOWN = 4


@dataclass
class PeftLinear:
    """The parts that PEFT has trained of one linear of its model.

    Attributes:
        name: in that model.
        parts: tensors by "lora_A", "lora_B", "lora_magnitude_vector".
    """

    name: str
    parts: dict[str, Tensor] = field(default_factory=dict)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [r, inputs] and B [outputs, r].

        Raises:
            CheckpointError: one is missing, or they do not belong together.
        """
        a, b = self.parts.get("lora_A"), self.parts.get("lora_B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            shapes = ", ".join(f"{part} {list(value.shape)}" for part, value in self.parts.items())
            raise CheckpointError(f"the LoRA matrices of {self.name} are no pair: {shapes}")
        return a, b

    @property
    def lengths(self) -> Tensor | None:
        """DoRA's, of all rows."""
        found = self.parts.get("lora_magnitude_vector")
        return None if found is None else found.flatten()


def by_sat_names(
    tensors: Mapping[str, Tensor], settings: PeftSettings, config: LanguageConfig, file: Path
) -> tuple[dict[str, Tensor], int, float]:
    """The tensors of an adapter under the names that `checkpoint.adapter` gives them.

    Args:
        tensors, settings: of `read_peft`.
        config: of the base model.
        file: for messages.

    Returns:
        The tensors, the rank of all matrices, and their alpha.

    Raises:
        CheckpointError: names that the base model does not have, or parts that are missing.
    """
    linears, full = _sorted_out(tensors)
    keys, places = _places([*linears, *full], config, file)
    matrices = LowRankMatrices(keys, settings)
    for name, linear in linears.items():
        matrices.add(linear, places[name])
    made, rank, alpha = matrices.tensors()
    return {**made, **_in_full(full, places, keys, file)}, rank, alpha


def _sorted_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, PeftLinear], dict[str, Tensor]]:
    """Linears with LoRA by their weight's name, and weights that were trained in full."""
    linears: dict[str, PeftLinear] = {}
    full: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        if (found := _PART.search(plain)) is None:
            full[plain] = value
        else:
            module = plain[: found.start()]
            linears.setdefault(f"{module}.weight", PeftLinear(module)).parts[found[1]] = value
    return linears, full


def _places(names: Sequence[str], config: LanguageConfig, file: Path) -> tuple[KeyTable, dict[str, tuple[Place, ...]]]:
    """Where each weight belongs, by the names of that form of the base model which has most of them.

    Raises:
        CheckpointError: the base model has no such form, or does not have some of them.
    """
    bases = [base.__name__ for base in model_class(config.model_class).__mro__]
    forms = [form for form in family_of(config.model_class).forms() if form.model_class in bases]
    if not forms:
        raise CheckpointError(f"{file} cannot be read: {config.model_class} has no names in Hugging Face's form")
    tables = [(form, form.keys_of(config.to_dict())) for form in forms]
    found = [{name: place for name in names if (place := _place(name, *table))} for table in tables]
    best = max(range(len(forms)), key=lambda number: len(found[number]))
    strange = [name for name in names if name not in found[best]]
    if strange or not names:
        what = ", ".join(strange[:_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{file} is no adapter for {forms[best].architecture}: {len(strange)} of {len(names)} names are none of "
            f"its weights, such as {what}. Check base_model_name_or_path in {PEFT_CONFIG_FILE}."
        )
    return tables[best][1], found[best]


def _place(name: str, form: HFForm, keys: KeyTable) -> tuple[Place, ...]:
    """Where a weight belongs; nowhere for one that the model does not have."""
    plain = form.canonical(name)
    try:
        return keys.places(plain if plain is not None else name)
    except CheckpointError:
        return ()


def _in_full(
    full: Mapping[str, Tensor], places: Mapping[str, Sequence[Place]], keys: KeyTable, file: Path
) -> dict[str, Tensor]:
    """Weights that were trained in full, put together. Raises CheckpointError for a part of one."""
    parts: dict[str, dict[int, Tensor]] = {}
    whole: dict[str, Place] = {}
    for name, value in full.items():
        for place in places[name]:
            parts.setdefault(place.name, {})[place.part] = place.taken(value)
            whole[place.name] = place
    for name, found in parts.items():
        if len(found) < whole[name].parts:
            raise CheckpointError(
                f"{file} holds {len(found)} of {whole[name].parts} parts of {name} in full; train them by LoRA, or all"
            )
    return {name: keys.sat_value(whole[name], [found[n] for n in sorted(found)]) for name, found in parts.items()}


@dataclass(frozen=True)
class _Block:
    """What was trained of one block of rows of a SAT weight.

    Attributes:
        linear: for messages.
        lengths: DoRA's; None without.
        scale: factor of B A.
    """

    linear: str
    a: Tensor
    b: Tensor
    lengths: Tensor | None
    scale: float


class LowRankMatrices:
    """LoRA of linears as PEFT has them, made into that of SAT's weights.

    Args:
        keys: of the model's form.
        settings: as `read_peft` gives them.
    """

    def __init__(self, keys: KeyTable, settings: PeftSettings) -> None:
        self._keys, self._settings = keys, settings
        self._blocks: dict[str, dict[int, _Block]] = {}

    def add(self, linear: PeftLinear, places: Sequence[Place]) -> None:
        """Take one, by the places of its weight. Raises CheckpointError for matrices that are no pair."""
        a, b = linear.matrices()
        scale, place = self._settings.scale(linear.name, len(a)), places[0]
        lengths, rows = linear.lengths, self._settings.blocks.get(linear.name)
        if place.packed:
            b = self._keys.sat_value(place, [b])
            lengths = None if lengths is None else self._keys.sat_value(place, [lengths])
        pairs = split(a, b, rows, linear.name) if rows else [(a, part) for part in b.tensor_split(len(places))]
        each = [None] * len(pairs) if lengths is None else lengths.split([len(part) for _, part in pairs])
        blocks = [_Block(linear.name, *pair, own, scale) for pair, own in zip(pairs, each, strict=True)]
        if len(places) > 1:
            for other, block in zip(places, blocks, strict=True):
                self._blocks.setdefault(other.name, {})[0] = block
        else:
            numbered = {place.part + number: block for number, block in enumerate(blocks)}
            self._blocks.setdefault(place.name, {}).update(numbered)

    def tensors(self) -> tuple[dict[str, Tensor], int, float]:
        """A, B and lengths of each block, zeros where one was not adapted; the rank of all of them, and alpha.

        Raises:
            CheckpointError: DoRA on some blocks of a weight alone.
        """
        blocks = [block for own in self._blocks.values() for block in own.values()]
        rank = max((len(block.a) for block in blocks), default=1)
        alpha = self._settings.alpha
        plain = all(len(block.a) == rank and block.scale == alpha / rank for block in blocks)
        found: dict[str, Tensor] = {}
        for name in self._blocks:
            found |= self._of_weight(name, rank, scaled=not plain)
        return found, rank, alpha if plain else float(rank)

    def _of_weight(self, name: str, rank: int, *, scaled: bool) -> dict[str, Tensor]:
        own, names = self._blocks[name], self._keys.all_hf(name, 1)
        module, found = name.removesuffix(".weight"), {}
        dora = any(block.lengths is not None for block in own.values())
        for number in range(max(len(names), len(own))):
            block = own.get(number) or self._zeros(own, names, number, rank)
            a, b = (block.a, block.b) if not scaled else (block.a.float(), block.b.float() * block.scale)
            more = rank - len(a)
            found[f"{module}.matrix_A.{number}"] = F.pad(a, (0, 0, 0, more)) if more else a
            found[f"{module}.matrix_B.{number}"] = F.pad(b, (0, more)) if more else b
            if dora and block.lengths is None:
                given = ", ".join(one.linear for one in own.values())
                raise CheckpointError(
                    f"DoRA was trained on a part of {name} alone: {given}; "
                    "merge the adapter with PEFT's merge_and_unload() and give the model that this makes"
                )
            if block.lengths is not None:
                found[f"{module}.magnitude.{number}"] = block.lengths
        return found

    def _zeros(self, own: Mapping[int, _Block], names: Sequence[str], number: int, rank: int) -> _Block:
        """What stands for a part that was not adapted."""
        given, other = next(iter(own.items()))
        rows = len(other.b) // self._keys.share(names[given])[0] * self._keys.share(names[number])[0]
        zeros = other.a.new_zeros(rank, other.a.shape[1]), other.b.new_zeros(rows, rank)
        return _Block(names[number], *zeros, None, 1.0)
