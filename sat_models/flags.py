"""What scripts do about numbers that make no sense, and about flags of another mode."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping

from sat_models.errors import ConfigError


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace, used: Collection[str], mode: str) -> None:
    """Flags that `mode` does not read must be as they are by default: what somebody asks for is done, or is an error.

    Args:
        parser: what `args` comes from.
        used: names of what is read.
        mode: as the user asked for it, such as "--task captcha".

    Raises:
        ConfigError: others were given.
    """
    others = [
        action.option_strings[0]
        for action in parser._actions
        if action.dest in vars(args) and action.dest not in used and getattr(args, action.dest) != action.default
    ]
    if others:
        raise ConfigError(f"{mode} does not read {', '.join(others)}; leave {'it' if len(others) == 1 else 'them'} out")


def check_numbers(
    args: argparse.Namespace, at_least: Mapping[str, float] | None = None, *, above: Mapping[str, float] | None = None
) -> None:
    """Sees that numbers make sense, before any work begins; of several values each. Flags that
    were left out (None) are passed over.

    Args:
        at_least: the smallest value that is allowed, by the flag's name.
        above: what a value must be larger than, by the flag's name.

    Raises:
        ConfigError: one does not, or is infinite or no number.
    """
    for bounds, rule in ((at_least or {}, "at least"), (above or {}, "above")):
        for name, bound in bounds.items():
            given = getattr(args, name)
            for value in given if isinstance(given, list | tuple) else [given]:
                fits = value is None or (value >= bound if rule == "at least" else value > bound)
                if not fits or not math.isfinite(value or 0):
                    raise ConfigError(f"--{name} is {value}; it must be {rule} {bound}")
