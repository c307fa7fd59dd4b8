"""The families of the zoo, and what is looked up over all of them.

Importing it is light: no torch, no model code. A family of your own joins them with `register`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.errors import ConfigError, UnknownNameError
from sat_models.models.cogagent.family import FAMILY as _COGAGENT
from sat_models.models.cogvideo.family import FAMILY as _COGVIDEO
from sat_models.models.cogvideox.family import FAMILY as _COGVIDEOX
from sat_models.models.cogview2.family import FAMILY as _COGVIEW2
from sat_models.models.cogview3.family import FAMILY as _COGVIEW3
from sat_models.models.cogview3_unet.family import FAMILY as _COGVIEW3_UNET
from sat_models.models.cogview4.family import FAMILY as _COGVIEW4
from sat_models.models.cogview_tiny.family import FAMILY as _COGVIEW_TINY
from sat_models.models.cogvlm.family import FAMILY as _COGVLM
from sat_models.models.cogvlm2.family import FAMILY as _COGVLM2
from sat_models.models.common.family import Family
from sat_models.models.common.groups import ParameterGroup
from sat_models.models.glm4v.family import FAMILY as _GLM4V
from sat_models.models.internvl.family import FAMILY as _INTERNVL
from sat_models.models.llama.family import FAMILY as _LLAMA
from sat_models.models.llava.family import FAMILY as _LLAVA
from sat_models.models.minigpt4.family import FAMILY as _MINIGPT4
from sat_models.models.not_yet import NOT_YET
from sat_models.models.visualglm.family import FAMILY as _VISUALGLM
from sat_models.models.xcomposer2.family import FAMILY as _XCOMPOSER2
from sat_models.processing.prompts import PromptStyle, find_style

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm

_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family.

    Raises:
        ValueError: its name, one of its model classes or prompt styles is another's, or it sees one of its groups
            otherwise than another does; the message names both.
    """
    for other in _FAMILIES.values():
        taken = [("the family", name) for name in {family.name} & {other.name}]
        taken += [("the model class", name) for name in family.models if name in other.models]
        taken += [
            ("the prompt style", name)
            for name, style in family.styles.items()
            if other.styles.get(name, style) is not style
        ]
        for what, name in taken:
            raise ValueError(f"{what} '{name}' is registered twice: by {other.name} and by {family.name}")
        for name, group in family.groups.items():
            same = other.groups.get(name, group)
            if (same.vision, same.adapted) != (group.vision, group.adapted):
                raise ValueError(f"{other.name} and {family.name} differ in what the parameter group '{name}' is")
    _FAMILIES[family.name] = family
    named_groups.cache_clear()


def families() -> tuple[Family, ...]:
    """All families, in the order in which they were registered."""
    return tuple(_FAMILIES.values())


def family_of(model_class: str) -> Family:
    """The family that a `model_class` belongs to.

    Raises:
        UnknownNameError: with near matches.
    """
    known = {name: family for family in families() for name in family.models}
    if model_class not in known:
        raise UnknownNameError("model_class", str(model_class), known, hint="It stands in model_config.json.")
    return known[model_class]


def model_names() -> tuple[str, ...]:
    """Every `model_class` that a `model_config.json` may name."""
    return tuple(name for family in families() for name in family.models)


def model_class(name: str) -> type[ZooModel]:
    """The class that a checkpoint's `model_class` names. Raises as `family_of`."""
    return family_of(name).model_class(name)


def prompt_styles() -> dict[str, PromptStyle]:
    """Every prompt style by name: what `--version` takes."""
    return {name: style for family in families() for name, style in family.styles.items()}


def prompt_style(version: str) -> PromptStyle:
    """The prompt style of a name.

    Raises:
        UnknownNameError: no family has it.
    """
    return find_style(prompt_styles(), version)


def version_help() -> str:
    """The help of `--version`."""
    return f"prompt style: {', '.join(prompt_styles())} (default: the model's own)"


@functools.cache
def named_groups() -> dict[str, ParameterGroup]:
    """Every named group of parameters, with the patterns of all families that have it."""
    groups: dict[str, ParameterGroup] = {}
    for family in families():
        for name, own in family.groups.items():
            patterns = dict.fromkeys((*(groups[name].patterns if name in groups else ()), *own.patterns))
            groups[name] = ParameterGroup(tuple(patterns), own.vision, own.adapted)
    return groups


def config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a `model_config.json` for weights without a whole one; None where no family knows them.

    Args:
        shapes: by SAT's names.
        told: what stands in a `model_config.json` beside them.

    Raises:
        ConfigError: known weights, which do not tell all that has to be known.
    """
    return next(filter(None, (family.config_of_weights(shapes, told) for family in families())), None)


def forms() -> tuple[HFForm, ...]:
    """The Hugging Face forms of all families.

    Raises:
        ValueError: two have the same architecture, and nothing tells them apart; the message names both families.
    """
    owned = [(family.name, form) for family in families() for form in family.forms()]
    for number, (owner, form) in enumerate(owned):
        for other, earlier in owned[:number]:
            told = form.telling is not None and earlier.telling is not None and form.telling is not earlier.telling
            if form.architecture == earlier.architecture and not told:
                raise ValueError(f"{form.architecture} is registered twice: by {other} and by {owner}")
    return tuple(form for _, form in owned)


def form_of_config(data: Mapping[str, Any], where: str) -> HFForm:
    """The form of a Hugging Face folder, by the content of its `config.json`.

    Args:
        where: the folder, for messages.

    Raises:
        ConfigError: another model; by its name where it is a known one that the zoo cannot read yet.
    """
    fitting = [form for form in forms() if form.fits(data)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(dict.fromkeys(form.architecture for form in forms()))
    if fitting:
        names = " and ".join(form.architecture for form in fitting)
        raise ConfigError(f"{where} is a Hugging Face folder whose config.json could be of {names}")
    if stranger := next((name for name, fits in NOT_YET if fits(data)), None):
        raise ConfigError(
            f"{where} is a Hugging Face folder of {stranger}, which the zoo cannot read yet; known: {known}"
        )
    raise ConfigError(
        f"{where} is a Hugging Face folder of another model: config.json has architectures "
        f"{data.get('architectures') or data.get('_class_name')!r:.80}; known: {known}"
    )


for _family in (
    _COGVLM,
    _COGVLM2,
    _GLM4V,
    _COGAGENT,
    _VISUALGLM,
    _LLAVA,
    _MINIGPT4,
    _INTERNVL,
    _XCOMPOSER2,
    _LLAMA,
    _COGVIEW3,
    _COGVIEW3_UNET,
    _COGVIEW4,
    _COGVIEW2,
    _COGVIEW_TINY,
    _COGVIDEO,
    _COGVIDEOX,
):
    register(_family)
