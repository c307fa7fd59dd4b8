"""What the Hugging Face form of a model is: a two-way table of weight names and a translation of its config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sat_models.config import CogVLMConfig
from sat_models.errors import CheckpointError, ConfigError

SAT_KEY = "sat_model_config"
"""Where `config.json` keeps what Hugging Face's keys cannot say, so that nothing of a SAT config is lost."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PLACE = re.compile(r"\{[ij]\}")


class KeyTable:
    """Weight names of SAT and of Hugging Face, one to one.

    Args:
        rows: SAT name -> Hugging Face name; `{i}` stands for a layer of the language model, `{j}` for one of a tower.
        per_layer: the same for weights that SAT holds once and Hugging Face once per layer.
    """

    def __init__(self, rows: Mapping[str, str], per_layer: Mapping[str, str] | None = None) -> None:
        self.rows, self.per_layer = dict(rows), dict(per_layer or {})
        pairs = [(_PLACE.sub("{}", sat), _PLACE.sub("{}", hf)) for sat, hf in [*rows.items(), *self.per_layer.items()]]
        self._to_hf, self._to_sat = dict(pairs), {hf: sat for sat, hf in pairs}
        if not len(self._to_hf) == len(self._to_sat) == len(pairs):
            raise ValueError("a name stands in the key table twice")

    def extended(self, rows: Mapping[str, str]) -> KeyTable:
        """This table with more rows."""
        return KeyTable({**self.rows, **rows}, self.per_layer)

    def to_sat(self, name: str) -> str:
        """The SAT name of a Hugging Face name. Raises CheckpointError for an unknown one."""
        return _look_up(self._to_sat, name, "Hugging Face")

    def to_hf(self, name: str) -> str:
        """The Hugging Face name of a SAT name (layer 0's, where every layer has one). Raises as `to_sat`."""
        return self.all_hf(name, 1)[0]

    def all_hf(self, name: str, num_layers: int) -> tuple[str, ...]:
        """As `to_hf`, with one name per layer for a weight of which each layer has a copy."""
        if name in self.per_layer:
            return tuple(self.per_layer[name].format(i=layer) for layer in range(num_layers))
        return (_look_up(self._to_hf, name, "SAT"),)


def _look_up(table: Mapping[str, str], name: str, kind: str) -> str:
    template = _NUMBER.sub("{}", name)
    if "{" in name or template not in table:
        raise CheckpointError(f"'{name}' is not in the table of {kind} weight names of this model")
    return table[template].format(*_NUMBER.findall(name))


@dataclass(frozen=True, kw_only=True)
class HFFamily:
    """The Hugging Face form of one model class.

    Attributes:
        architecture: as `config.json` names it.
        model_class: as `model_config.json` names it.
        config_class: typed config of `model_class`.
        keys: weight names.
        versions: `template_version` of Hugging Face -> prompt version of SAT.
        sizes_to_sat: content of `config.json` -> sizes under SAT's names; a KeyError is an absent key.
        sizes_to_hf: typed config -> `config.json` without architecture and template.
    """

    architecture: str
    model_class: str
    config_class: type[CogVLMConfig]
    keys: KeyTable
    versions: Mapping[str, str]
    sizes_to_sat: Callable[[Mapping[str, Any]], dict[str, Any]]
    sizes_to_hf: Callable[[Any], dict[str, Any]]

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
        hf = {"architectures": [self.architecture], **self.sizes_to_hf(config)}
        template = next((hf for hf, sat in self.versions.items() if sat == config.text_processor_version), None)
        if template is not None:
            hf["template_version"] = template
        back, wanted = self.config_to_sat(hf), config.to_dict()
        left = {key: value for key, value in wanted.items() if key not in back or back[key] != value}
        return {**hf, SAT_KEY: left} if left else hf
