"""Adapters that Hugging Face's PEFT wrote: `adapter_config.json` beside `adapter_model.safetensors` (or `.bin`).

LoRA, rsLoRA and DoRA on linears, and modules that were trained in full (`modules_to_save`), for the families whose
Hugging Face names the zoo knows. PEFT wraps each of q, k and v by itself where SAT holds them as one: what was not
adapted of the three gets matrices of zeros. Ranks and scales may differ from linear to linear there (`rank_pattern`,
`alpha_pattern`, `use_rslora`); here all get one rank, filled up with zeros, and B carries the scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_models.checkpoint.huggingface import read_shard_file
from sat_models.checkpoint.layout import CONFIG_FILE, HF_CONFIG_FILE
from sat_models.config import LanguageConfig, read_json
from sat_models.errors import CheckpointError
from sat_models.models.common.hf_form import HFForm, KeyTable, Place
from sat_models.models.families import family_of, model_class

PEFT_CONFIG_FILE = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_FILES = ("model.safetensors*", "model-*.safetensors", "pytorch_model*.bin*")
_LLAVA_REST = "non_lora_trainables.bin"
"""The file that LLaVA's own scripts write beside, outside of PEFT's form."""
_PART = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?$")
_READ = ("use_rslora", "use_dora", "eva_config")
_NOT_READ = re.compile(
    r"bias|fan_in_fan_out|lora_bias|layer_replication|trainable_token_indices|target_parameters"
    r"|alora_invocation_tokens|use_\w+|\w+_config"
)
"""Settings by which PEFT computes otherwise, where they say something."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base model as it is."""
_SHOWN = 4


@dataclass(frozen=True)
class PeftSettings:
    """The settings of the matrices in `adapter_config.json`.

    Attributes:
        alpha: numerator of the scale.
        rooted: the scale is alpha / sqrt(rank) (rsLoRA), else alpha / rank.
        dora: the length of each row is learned, too.
        alphas: pattern over the names of linears -> alpha of those that it fits.
    """

    alpha: float
    rooted: bool = False
    dora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """Factor of B A for a linear, by its name in PEFT's model."""
        fitting = (alpha for pattern, alpha in self.alphas.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        return next(fitting, self.alpha) / (rank**0.5 if self.rooted else rank)


def find_peft(path: Path) -> Path | None:
    """The weights file of a folder that PEFT wrote, or of a path to that file; None for anything else."""
    folder = path.parent if path.name in PEFT_WEIGHTS else path
    if not (folder / PEFT_CONFIG_FILE).is_file() or (folder / CONFIG_FILE).is_file():
        return None
    if (folder / HF_CONFIG_FILE).is_file() and any(next(folder.glob(name), None) for name in _MODEL_FILES):
        return None  # a model, from which somebody forgot to remove the adapter
    if path.name in PEFT_WEIGHTS:
        return path if path.is_file() else None
    return next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)


def read_peft(file: Path) -> tuple[dict[str, Tensor], str, PeftSettings]:
    """Tensors by PEFT's names, the base model, and the settings.

    Args:
        file: as `find_peft` gives it.

    Raises:
        CheckpointError: damaged, of a kind that is not LoRA, or settings that are not read here.
    """
    place = file.parent / PEFT_CONFIG_FILE
    data = read_json(place)
    if data.get("peft_type") != "LORA":
        raise CheckpointError(f"{place} has peft_type {data.get('peft_type')!r:.40}; LORA alone is read")
    base = data.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{place} has no base_model_name_or_path; write there what the adapter was trained on")
    if (file.parent / _LLAVA_REST).is_file():
        raise CheckpointError(
            f"{file.parent} holds {_LLAVA_REST}, too: LLaVA's own form of LoRA, on {base:.200}. Merge it with LLaVA's "
            "scripts/merge_lora_weights.py, and give the folder that this writes"
        )
    _refuse_unread(data, place)
    alphas = data.get("alpha_pattern") or {}
    try:
        settings = PeftSettings(
            float(data["lora_alpha"]), bool(data.get("use_rslora")), bool(data.get("use_dora")),
            {str(pattern): float(alpha) for pattern, alpha in alphas.items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{place} is damaged: lora_alpha or alpha_pattern is no number ({error})") from error
    return read_shard_file(file), base, settings


def _refuse_unread(data: Mapping[str, Any], place: Path) -> None:
    for name, value in data.items():
        if name not in _READ and _NOT_READ.fullmatch(name) and value not in (None, False, "none", [], {}):
            raise CheckpointError(
                f"{place} has {name} {value!r:.60}, which is not read here; merge the adapter with PEFT's "
                "merge_and_unload() and give the model that this makes"
            )
    if data.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{place} has init_lora_weights {data['init_lora_weights']!r:.40}, which changed the base model, too; save "
            "it as plain LoRA (PEFT: path_initial_model_for_weight_conversion), or merge it with merge_and_unload()"
        )


@dataclass
class _Linear:
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
        return self.parts.get("lora_magnitude_vector")


def by_sat_names(
    tensors: Mapping[str, Tensor], settings: PeftSettings, config: LanguageConfig, file: Path
) -> tuple[dict[str, Tensor], int]:
    """The tensors of an adapter under the names that `checkpoint.adapter` gives them.

    Args:
        tensors, settings: of `read_peft`.
        config: of the base model.
        file: for messages.

    Returns:
        The tensors, and the rank of all matrices; their scale is 1.

    Raises:
        CheckpointError: names that the base model does not have, or parts that are missing.
    """
    form = _form(config, file)
    keys = form.keys_of(config.to_dict())
    linears, full = _sorted_out(tensors)
    places = _places([*linears, *full], form, keys, file)
    rank = max((len(linear.matrices()[0]) for linear in linears.values()), default=1)
    joined: dict[str, dict[int, _Linear]] = {}
    for name, linear in linears.items():
        joined.setdefault(places[name].name, {})[places[name].part] = linear
    found: dict[str, Tensor] = {}
    for name, parts in joined.items():
        found |= _LowRank(name, parts, keys, settings, rank).tensors()
    for name, value in full.items():
        if places[name].parts > 1:
            raise CheckpointError(f"{file} holds {name} in full, a part of {places[name].name} here; train it by LoRA")
        found[places[name].name] = keys.sat_value(places[name], [value[None] if places[name].lifted else value])
    return found, rank


def _form(config: LanguageConfig, file: Path) -> HFForm:
    """The Hugging Face form of the base model."""
    bases = [base.__name__ for base in model_class(config.model_class).__mro__]
    for form in family_of(config.model_class).forms():
        if form.model_class in bases:
            return form
    raise CheckpointError(f"{file} cannot be read: {config.model_class} has no names in Hugging Face's form")


def _sorted_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Linear], dict[str, Tensor]]:
    """Linears with LoRA by their weight's name, and weights that were trained in full."""
    linears: dict[str, _Linear] = {}
    full: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        if (found := _PART.search(plain)) is None:
            full[plain] = value
        else:
            module = plain[: found.start()]
            linears.setdefault(f"{module}.weight", _Linear(module)).parts[found[1]] = value
    return linears, full


def _places(names: Sequence[str], form: HFForm, keys: KeyTable, file: Path) -> dict[str, Place]:
    """Where each weight belongs. Raises CheckpointError with those that the base model does not have."""
    found, strange = {}, []
    for name in names:
        plain = form.canonical(name)
        try:
            found[name] = keys.place(plain if plain is not None else name)
        except CheckpointError:
            strange.append(name)
    if strange or not names:
        what = ", ".join(strange[:_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{file} is no adapter for {form.architecture}: {len(strange)} of {len(names)} names are none of its "
            f"weights, such as {what}. Check base_model_name_or_path in {PEFT_CONFIG_FILE}."
        )
    return found


@dataclass
class _LowRank:
    """One weight of SAT's, and what PEFT has trained of its parts.

    Attributes:
        name: of the weight.
        parts: number of the part -> its linear.
        rank: of all matrices of the adapter.
    """

    name: str
    parts: Mapping[int, _Linear]
    keys: KeyTable
    settings: PeftSettings
    rank: int

    def tensors(self) -> dict[str, Tensor]:
        """A, B and lengths of each part; zeros where a part was not adapted."""
        names = self.keys.all_hf(self.name, 1)
        module, found = self.name.removesuffix(".weight"), {}
        for part, name in enumerate(names):
            a, b = self._matrices(part, names)
            packed = self.keys.place(name)
            found[f"{module}.matrix_A.{part}"] = a
            found[f"{module}.matrix_B.{part}"] = self.keys.sat_value(packed, [b]) if packed.packed else b
            lengths = self._lengths(part)
            if lengths is not None:
                found[f"{module}.magnitude.{part}"] = (
                    self.keys.sat_value(packed, [lengths]) if packed.packed else lengths
                )
        return found

    def _matrices(self, part: int, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        linear = self.parts.get(part)
        if linear is None:
            given, other = next(iter(self.parts.items()))
            a, b = other.matrices()
            rows = len(b) // self.keys.share(names[given])[0] * self.keys.share(names[part])[0]
            return torch.zeros(self.rank, a.shape[1]), torch.zeros(rows, self.rank)
        a, b = (matrix.float() for matrix in linear.matrices())
        more = self.rank - len(a)
        b = b * self.settings.scale(linear.name, len(a))
        return F.pad(a, (0, 0, 0, more)), F.pad(b, (0, more))

    def _lengths(self, part: int) -> Tensor | None:
        if not any(linear.lengths is not None for linear in self.parts.values()):
            return None
        linear = self.parts.get(part)
        if linear is None or linear.lengths is None:
            given = ", ".join(one.name for one in self.parts.values())
            raise CheckpointError(
                f"DoRA was trained on a part of {self.name} alone: {given}; "
                "merge the adapter with PEFT's merge_and_unload() and give the model that this makes"
            )
        return linear.lengths.flatten()
