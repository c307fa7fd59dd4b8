"""What a model that plans images reads and writes besides codes: prompts as ids, and plans.

A plan says the background, then of each object colour, form, left, top and right side, in the order of the prompt.
With it the codes of the image are no matter of chance any more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_models.config.planned import PER_OBJECT, PlannedConfig
from sat_models.errors import InputError

_TOKENS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class PlannedObject:
    """One object of a plan; left, top and right in pixels."""

    color: str
    form: str
    left: int
    top: int
    right: int


@dataclass(frozen=True)
class Reading:
    """A prompt as the model reads it.

    Attributes:
        ids: of its words, padded.
        unknown: words that the model does not know, in order.
        cut: what is too much, as text.
    """

    ids: tuple[int, ...]
    unknown: tuple[str, ...]
    cut: str


def read_prompt(config: PlannedConfig, prompt: str) -> Reading:
    """A prompt's words as ids.

    Raises:
        InputError: the model knows none of its words.
    """
    places = {word: config.first_word + number for number, word in enumerate(config.words)}
    found = list(_TOKENS.finditer(prompt.lower()))
    known = [match for match in found if match[0] in places]
    unknown = tuple(match[0] for match in found if match[0] not in places and match[0].isalnum())
    if not any(match[0].isalpha() for match in known):
        raise InputError(
            f"the model knows no word of the prompt '{prompt:.60}'; it draws circles, squares and triangles: its words "
            f"are {', '.join(word for word in config.words if word.isalpha())}"
        )
    length = config.image_start
    cut = prompt[known[length].start() :] if len(known) > length else ""
    ids = [places[match[0]] for match in known[:length]]
    return Reading((*ids, *[config.padding] * (length - len(ids))), unknown, cut)


def plan_ids(config: PlannedConfig, background: str, objects: Sequence[PlannedObject]) -> list[int]:
    """A plan as ids."""
    first = _firsts(config)
    ids = [first["background"] + config.backgrounds.index(background)]
    for thing in objects:
        ids += [first["color"] + config.colors.index(thing.color), first["form"] + config.forms.index(thing.form)]
        ids += [first["place"] + side // _step(config) for side in (thing.left, thing.top, thing.right)]
    return ids + [first["none"]] * (config.plan_length - len(ids))


def read_plan(config: PlannedConfig, ids: Sequence[int]) -> tuple[str, list[PlannedObject]]:
    """Background and objects of a plan; an object that is not whole is none."""
    first, step, objects = _firsts(config), _step(config), []
    for at in range(1, config.plan_length, PER_OBJECT):
        color, form, *sides = ids[at : at + PER_OBJECT]
        if first["none"] in (color, form, *sides):
            continue
        name, kind = config.colors[color - first["color"]], config.forms[form - first["form"]]
        objects.append(PlannedObject(name, kind, *((side - first["place"]) * step for side in sides)))
    return config.backgrounds[ids[0] - first["background"]], objects


def allowed_tokens(config: PlannedConfig) -> Tensor:
    """Which tokens may stand where: [steps, image_codes], bool."""
    first = _firsts(config)
    ends = {
        "background": len(config.backgrounds), "color": len(config.colors), "form": len(config.forms),
        "place": config.steps_of_place,
    }  # fmt: skip
    allowed = torch.zeros(config.steps, config.image_codes, dtype=torch.bool)
    kinds = ["background", *["color", "form", "place", "place", "place"] * config.most_objects]
    for position, kind in enumerate(kinds):
        allowed[position, first[kind] : first[kind] + ends[kind]] = True
        allowed[position, first["none"]] = kind != "background"
    allowed[config.plan_length :, : config.codes] = True
    return allowed


def _firsts(config: PlannedConfig) -> dict[str, int]:
    """Id of the first word of each kind of a plan's."""
    first, at = {}, config.codes
    for kind, count in (
        ("background", len(config.backgrounds)), ("color", len(config.colors)), ("form", len(config.forms)),
        ("none", 1), ("place", config.steps_of_place),
    ):  # fmt: skip
        first[kind] = at
        at += count
    return first


def _step(config: PlannedConfig) -> int:
    """Pixels of a step of place."""
    return config.grid * config.patch // config.steps_of_place
