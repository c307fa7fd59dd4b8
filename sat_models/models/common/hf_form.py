"""The Hugging Face form of a model: a two-way table of weight names and a translation of its config."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from mixins.heads import HeadLayout
from sat_models.config import LanguageConfig
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.common.hf_processor import HFProcessor
from sat_models.models.common.key_rows import (
    Interleaved,
    Joined,
    Lifted,
    Lowered,
    Packed,
    Place,
    Positions,
    Row,
    Stacked,
    Swapped,
    interleaved,
    part_of_interleaved,
    swapped,
)
from sat_models.models.common.telling import class_names

SAT_KEY = "sat_model_config"
"""Where `config.json` keeps what Hugging Face's keys cannot say, so that nothing of a SAT config is lost."""
ADDED_TOKENS = "added_tokens"
"""Where a form that reads them finds ids of special tokens, beside the keys of `config.json`."""
WEIGHT_SHAPES = "weight_shapes"
"""The same for the shapes of its weights, by name."""
LEFT_OUT = "left_out"
"""The same for the shapes of what lies beside them in a file of our own."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PLACE = re.compile(r"\{[ij]\}")
_Found = TypeVar("_Found")


class KeyTable:
    """Weight names of SAT and of Hugging Face.

    Args:
        rows: SAT name -> Hugging Face name, or names; `{i}` stands for a layer of the language model, `{j}` for one of
            a tower.
        per_layer: the same for weights that SAT holds once and Hugging Face once per layer.
        left_out: SAT names of tables that Hugging Face's files do not have; they follow from the sizes.
        heads: of the language model; needed where weights are cut or ordered by them.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        per_layer: Mapping[str, str] | None = None,
        left_out: Collection[str] = (),
        *,
        heads: HeadLayout | None = None,
    ) -> None:
        self.rows, self.per_layer, self.left_out = dict(rows), dict(per_layer or {}), frozenset(left_out)
        self.heads = heads
        self._to_hf: dict[str, tuple[str, ...]] = {}
        self._to_sat: dict[str, tuple[Place, ...]] = {}
        for sat, hf in [*rows.items(), *self.per_layer.items()]:
            names = hf.names if isinstance(hf, Joined | Interleaved) else (hf if isinstance(hf, str) else hf.name,)
            self._add(_PLACE.sub("{}", sat), hf, tuple(_PLACE.sub("{}", name) for name in names))

    def _add(self, sat: str, row: Row, names: tuple[str, ...]) -> None:
        for part, name in enumerate(names):
            place, there = _place(row, sat, part, len(names)), self._to_sat.get(name, ())
            shared = all(other.slots == place.slots > 1 and other.slot != place.slot for other in there)
            if sat in self._to_hf or not shared:
                raise ValueError(f"a name stands in the key table twice: {sat} or {', '.join(names)}")
            self._to_sat[name] = tuple(sorted((*there, place), key=lambda place: place.slot))
        self._to_hf[sat] = names

    def extended(self, rows: Mapping[str, Row]) -> KeyTable:
        """This table with more rows."""
        return KeyTable({**self.rows, **rows}, self.per_layer, self.left_out, heads=self.heads)

    def of_heads(self, heads: HeadLayout) -> KeyTable:
        """This table for a model with such heads."""
        return KeyTable(self.rows, self.per_layer, self.left_out, heads=heads)

    def places(self, name: str) -> tuple[Place, ...]:
        """Where the slots of a Hugging Face weight belong, mostly one. Raises CheckpointError for an unknown name."""
        found, numbers = _look_up(self._to_sat, name, "Hugging Face")
        return tuple(replace(place, name=place.name.format(*numbers)) for place in found)

    def place(self, name: str) -> Place:
        """The first of `places`."""
        return self.places(name)[0]

    def to_sat(self, name: str) -> str:
        """The SAT name of a Hugging Face name, or of its first slot. Raises as `places`."""
        return self.place(name).name

    def to_hf(self, name: str) -> str:
        """The first Hugging Face name of a SAT name. Raises CheckpointError for one without."""
        if name in self.left_out:
            raise CheckpointError(f"'{name}' has no counterpart among Hugging Face's weights")
        return self.all_hf(name, 1)[0]

    def all_hf(self, name: str, num_layers: int) -> tuple[str, ...]:
        """Every Hugging Face name of a SAT name: of its parts, or one per layer where each layer has a copy."""
        if name in self.left_out:
            return ()
        if name in self.per_layer:
            return tuple(self.per_layer[name].format(i=layer) for layer in range(num_layers))
        found, numbers = _look_up(self._to_hf, name, "SAT")
        return tuple(template.format(*numbers) for template in found)

    def hf_value(self, name: str, *values: Tensor) -> Tensor:
        """The value under the Hugging Face name `name`, out of the SAT weights of its `places`."""
        place, value = self.place(name), values[0]
        if place.slots > 1:
            return torch.cat(values)
        if place.lifted or place.lowered:
            return value[0] if place.lifted else value[None]
        if place.packed:
            return value[self._packed_rows(len(value))]
        if place.swapped:
            return swapped(value)
        if place.parts == 1:
            return value
        if place.pieces > 1:
            return part_of_interleaved(value, place.part, place.parts, place.pieces)
        first, rows = self._part(place, len(value))
        return value.narrow(0, first, rows).clone()

    def sat_value(self, place: Place, parts: Sequence[Tensor]) -> Tensor:
        """SAT's value of a weight, out of the values of its parts."""
        if place.pieces > 1:
            return interleaved(parts, place.pieces)
        whole = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        return whole[self._packed_rows(len(whole)).argsort()] if place.packed else whole

    def share(self, name: str) -> tuple[int, int]:
        """How much of the SAT weight that holds it a Hugging Face name has: so many of so many equal pieces."""
        place = self.place(name)
        sizes = self._sizes(place)
        return sizes[place.part], sum(sizes)

    def _part(self, place: Place, rows: int) -> tuple[int, int]:
        """First row and number of rows of a part."""
        sizes = self._sizes(place)
        unit = rows // sum(sizes)
        return unit * sum(sizes[: place.part]), unit * sizes[place.part]

    def _sizes(self, place: Place) -> tuple[int, ...]:
        return self._known_heads().parts if place.by_heads else (1,) * place.parts

    def _packed_rows(self, rows: int) -> Tensor:
        """Of the rows as SAT has them, those of the files in their order."""
        heads = self._known_heads()
        queries, keys, values = torch.arange(rows).view(heads.row_heads, -1).split(heads.parts)
        groups = queries.unflatten(0, (heads.num_kv_heads, heads.group))
        return torch.cat((groups, keys[:, None], values[:, None]), dim=1).flatten()

    def _known_heads(self) -> HeadLayout:
        if self.heads is None:
            raise ValueError("this table cuts weights by heads: `of_heads` makes it one of a model")
        return self.heads


def _place(row: Row, sat: str, part: int, parts: int) -> Place:
    """A row's word on its part."""
    slot, slots = (row.slot, row.slots) if isinstance(row, Stacked) else (0, 1)
    kinds = (("lifted", Lifted), ("lowered", Lowered), ("packed", Packed), ("swapped", Swapped))
    found = {name: isinstance(row, kind) for name, kind in kinds}
    found |= {"by_heads": isinstance(row, Joined) and row.by_heads}
    patches = row.patches if isinstance(row, Positions) else 0
    pieces = row.pieces if isinstance(row, Interleaved) else 1
    return Place(sat, part, parts, slot=slot, slots=slots, patches=patches, pieces=pieces, **found)


def _look_up(table: Mapping[str, _Found], name: str, kind: str) -> tuple[_Found, list[str]]:
    """The table's entry for a name, and the numbers in it: of layers, or a part of the name as it stands."""
    if name in table and "{" not in name:
        return table[name], []
    numbers = _NUMBER.findall(name)
    for count in (len(numbers), 1):  # all are of layers, or the first is and the others are part of the name
        template = _NUMBER.sub("{}", name, count=count)
        if "{" not in name and template in table:
            return table[template], numbers[:count]
    raise CheckpointError(f"'{name}' is not in the table of {kind} weight names of this model")


def _unchanged(name: str) -> str:
    return name


@dataclass(frozen=True)
class Apart:
    """Weights that a release keeps in a folder of their own.

    Attributes:
        key: of `config.json`, which names that folder.
        section: of `config.json`, where the config of that folder belongs.
        prefix: of names in the files where the release holds these weights itself after all.
        what: in words, for messages.
    """

    key: str
    section: str
    prefix: str
    what: str


@dataclass(frozen=True, kw_only=True)
class HFForm:
    """The Hugging Face form of one model class.

    Attributes:
        architecture: as `config.json` names it.
        also_named: other classes that mean the same there.
        model_class: as `model_config.json` names it.
        config_class: typed config of `model_class`.
        keys: weight names; or what gives them for a config, where models of the class differ in them.
        versions: `template_version` of Hugging Face -> prompt version of SAT.
        sizes_to_sat: content of `config.json` -> sizes under SAT's names; a KeyError is an absent key.
        sizes_to_hf: typed config -> `config.json` without architecture and template; None for a form that is only read.
        canonical: a name in the files -> that in `keys`; None for what is no weight (tables of positions).
        in_memory: a name in `keys` -> that of the parameter in the class's model, by which adapters call it.
        telling: whether a `config.json` that names `architecture` is of this form, where others name it, too.
        apart: weights that lie elsewhere.
        layout: whose names it has: transformers' own class, the release's original code, or diffusers' class, whose
            folders are named otherwise.
        reads_tokens: `sizes_to_sat` finds ids of special tokens by name under `ADDED_TOKENS`, out of the tokenizer's
            files, because `config.json` does not say them.
        reads_weights: the same of the weights' shapes, under `WEIGHT_SHAPES`.
        processor: typed config and number of the tokenizer's tokens -> the processor of transformers' class; a
            ConfigError where that would see other images. None: transformers has no such class.
        pipeline: of diffusers' forms, typed config -> the content of `scheduler_config.json` and the name of the
            pipeline's class.
        part: of diffusers' forms, the folder of the network in a pipeline.
        of_left_out: sizes that the file beside the weights tells (`LEFT_OUT`: its shapes by name), and no config.
    """

    architecture: str
    model_class: str
    config_class: type[LanguageConfig]
    keys: KeyTable | Callable[[Any], KeyTable]
    versions: Mapping[str, str]
    sizes_to_sat: Callable[[Mapping[str, Any]], dict[str, Any]]
    sizes_to_hf: Callable[[Any], dict[str, Any]] | None = None
    canonical: Callable[[str], str | None] = _unchanged
    in_memory: Callable[[str], str] = _unchanged
    telling: Callable[[Mapping[str, Any]], bool] | None = None
    apart: Apart | None = None
    also_named: tuple[str, ...] = ()
    layout: Literal["original", "transformers", "diffusers"] = "original"
    reads_tokens: bool = False
    reads_weights: bool = False
    processor: Callable[[Any, int], HFProcessor] | None = None
    pipeline: Callable[[Any], tuple[dict[str, Any], str]] | None = None
    part: str = "transformer"
    of_left_out: Collection[str] = ()

    def fits(self, data: Mapping[str, Any]) -> bool:
        """True if the content of a `config.json` is of this form."""
        named = not class_names(data).isdisjoint((self.architecture, *self.also_named))
        return named and (self.telling is None or self.telling(data))

    def keys_of(self, config: Mapping[str, Any]) -> KeyTable:
        """The table for a model, from the content of its `model_config.json`."""
        typed = self.config_class.from_dict(dict(config))
        keys = self.keys if isinstance(self.keys, KeyTable) else self.keys(typed)
        return keys.of_heads(typed.heads)

    def config_to_sat(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `model_config.json` from that of `config.json`.

        Raises:
            ConfigError: absent keys, sizes that contradict each other, or an unknown template.
        """
        try:
            sat = {"model_class": self.model_class, **self.sizes_to_sat(data)}
        except KeyError as error:
            raise ConfigError(f"config.json lacks the key {error.args[0]}; {self.architecture} needs it") from error
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"config.json of {self.architecture} holds a value of a wrong type: {error}") from error
        if (template := data.get("template_version")) is not None:
            if template not in self.versions:
                raise ConfigError(f"template_version {template!r} is unknown; allowed: {', '.join(self.versions)}")
            sat["text_processor_version"] = self.versions[template]
        return self.config_class.from_dict({**sat, **data.get(SAT_KEY, {})}).to_dict()

    def config_to_hf(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `config.json` from that of `model_config.json`; `config_to_sat` gives all of it back."""
        config = self.config_class.from_dict(dict(data))
        named = (
            {"_class_name": self.architecture} if self.layout == "diffusers" else {"architectures": [self.architecture]}
        )
        hf = {**named, **self.sizes_to_hf(config)}
        template = next((hf for hf, sat in self.versions.items() if sat == config.text_processor_version), None)
        if template is not None:
            hf["template_version"] = template
        back, wanted = self.config_to_sat(hf), config.to_dict()
        left = {k: v for k, v in wanted.items() if (k not in back or back[k] != v) and k not in self.of_left_out}
        return {**hf, SAT_KEY: left} if left else hf
