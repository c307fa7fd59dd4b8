"""Language models under InternVL: their names beside SAT's, and their sizes, in either layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import Row
from sat_models.models.common.internlm2_keys import internlm2_rows, internlm2_sizes, internlm2_sizes_to_hf
from sat_models.models.common.llama_keys import llama_rows, llama_sizes, llama_sizes_to_hf


@dataclass(frozen=True)
class Language:
    """One kind of language model.

    Attributes:
        architecture: its class, as `llm_config` of InternVL's own layout names it.
        rows: start of its names and name of its head -> rows of a key table.
        to_sat: its config -> sizes under SAT's names.
        to_hf: the inverse.
        in_transformers: as which of these transformers' layout has it.
    """

    architecture: str
    rows: Callable[[str, str], dict[str, Row]]
    to_sat: Callable[[Mapping[str, Any]], dict[str, Any]]
    to_hf: Callable[[LLaMAConfig], dict[str, Any]]
    in_transformers: str


def _qwen2_rows(model: str, head: str) -> dict[str, Row]:
    return llama_rows(model, head, qkv_bias=True)


def _qwen2_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ConfigError for a sliding window."""
    if data.get("use_sliding_window", False):
        raise ConfigError("use_sliding_window = true is not supported in the language model's config; false is")
    return {**llama_sizes(data), "qkv_bias": True}


def _qwen2_to_hf(config: LLaMAConfig) -> dict[str, Any]:
    return {**llama_sizes_to_hf(config, qkv_bias=True), "model_type": "qwen2", "use_sliding_window": False}


LANGUAGES: dict[str, Language] = {
    "llama": Language("LlamaForCausalLM", llama_rows, llama_sizes, llama_sizes_to_hf, "llama"),
    "internlm2": Language("InternLM2ForCausalLM", internlm2_rows, internlm2_sizes, internlm2_sizes_to_hf, "llama"),
    "qwen2": Language("Qwen2ForCausalLM", _qwen2_rows, _qwen2_to_sat, _qwen2_to_hf, "qwen2"),
}
"""By `InternVLConfig.language`, which is their `model_type`."""


def language_of(data: Mapping[str, Any]) -> str:
    """Which one an `llm_config` or `text_config` is of.

    Raises:
        ConfigError: of one that the zoo does not have under InternVL, by its name.
    """
    kind, classes = data.get("model_type"), data.get("architectures") or []
    for name, language in LANGUAGES.items():
        if language.architecture in classes or (not classes and kind == name):
            return name
    known = ", ".join(language.architecture for language in LANGUAGES.values())
    raise ConfigError(
        f"this InternVL has a language model of class {classes[0] if classes else kind!r}, which the zoo cannot read "
        f"yet; those that it reads: {known}"
    )
