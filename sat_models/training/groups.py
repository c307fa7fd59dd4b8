"""Named groups of a model's parameters, as shell patterns over their names; every parameter belongs to exactly one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mixins.lora_settings import matching, near_patterns
from mixins.ptuning import PTUNING_NAME
from sat_models.errors import ConfigError, UnknownNameError
from sat_models.models import families
from sat_models.models.common.groups import ParameterGroup


def named_groups() -> dict[str, ParameterGroup]:
    """Every group by name: those of the families, and the prefix that training can add."""
    return {**families.named_groups(), "prefix": ParameterGroup((f"mixins.{PTUNING_NAME}.*",), adapted=False)}


def vision_groups() -> tuple[str, ...]:
    """Groups to which a batch without pictures gives no gradient."""
    return tuple(name for name, group in named_groups().items() if group.vision)


def group_of(name: str) -> str:
    """The group of a parameter, by its name.

    Raises:
        KeyError: none or several; a model with new parts needs a group in its family's entry.
    """
    plain = name.replace(".original.", ".")
    groups = named_groups().items()
    found = [name for name, group in groups if any(matching(p, (plain,)) for p in group.patterns)]
    if len(found) != 1:
        raise KeyError(f"parameter '{name}' belongs to {len(found)} groups {found}; see `groups` of its family's entry")
    return found[0]


def select_parameters(names: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Those of `names` that are meant by groups or shell patterns, in the order of `names`.

    Raises:
        ConfigError: a group that this model does not have, or a pattern that fits nothing, with near matches.
    """
    chosen: set[str] = set()
    for pattern in wanted:
        fits = [n for n in names if group_of(n) == pattern] if pattern in named_groups() else matching(pattern, names)
        if not fits:
            raise ConfigError(no_match(pattern, names))
        chosen.update(fits)
    return [name for name in names if name in chosen]


def no_match(pattern: str, names: Sequence[str]) -> str:
    """The message about a group or pattern that fits none of `names`."""
    present = ", ".join(dict.fromkeys(group_of(name) for name in names))
    if pattern in named_groups():
        return f"this model has no parameters of the group '{pattern}'; it has: {present}"
    near = near_patterns(pattern, [*names, *named_groups()])
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"'{pattern}' fits no parameter of this model. {hint}Groups: {present}; or a shell pattern over their names."


def check_rate_scales(rate_scales: Mapping[str, float]) -> None:
    """Raise for a group that does not exist (UnknownNameError) or a factor that is not positive (ConfigError)."""
    for group, scale in rate_scales.items():
        if group not in named_groups():
            raise UnknownNameError("parameter group", str(group), named_groups())
        if not isinstance(scale, int | float) or not scale > 0:
            raise ConfigError(
                f"the learning-rate scale of '{group}' must be positive, got {scale!r}; 0 means freezing it"
            )
