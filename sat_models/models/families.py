"""The families of the zoo, and what is looked up over all of them. Importing it is light: no torch."""

from __future__ import annotations

from sat_models.errors import UnknownNameError
from sat_models.models.cogagent.family import FAMILY as _COGAGENT
from sat_models.models.cogvlm.family import FAMILY as _COGVLM
from sat_models.models.common.family import Family
from sat_models.models.llama.family import FAMILY as _LLAMA
from sat_models.models.llava.family import FAMILY as _LLAVA
from sat_models.models.minigpt4.family import FAMILY as _MINIGPT4
from sat_models.models.visualglm.family import FAMILY as _VISUALGLM
from sat_models.processing.prompts import PromptStyle, find_style

FAMILIES: tuple[Family, ...] = (_COGVLM, _COGAGENT, _VISUALGLM, _LLAVA, _MINIGPT4, _LLAMA)


def family_of(model_class: str) -> Family:
    """The family that a `model_class` belongs to.

    Raises:
        UnknownNameError: with near matches.
    """
    known = {name: family for family in FAMILIES for name in family.models}
    if model_class not in known:
        raise UnknownNameError("model_class", str(model_class), known, hint="It stands in model_config.json.")
    return known[model_class]


def prompt_styles() -> dict[str, PromptStyle]:
    """Every prompt style by name: what `--version` takes."""
    return {name: style for family in FAMILIES for name, style in family.styles.items()}


def version_help() -> str:
    """What `--help` says of `--version`."""
    return f"prompt style: {', '.join(prompt_styles())} (default: the model's own)"


def prompt_style(version: str) -> PromptStyle:
    """The prompt style of a name.

    Raises:
        UnknownNameError: no family has it.
    """
    return find_style(prompt_styles(), version)
