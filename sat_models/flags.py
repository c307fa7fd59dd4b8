"""What scripts with several modes do about flags of another mode."""

from __future__ import annotations

import argparse
from collections.abc import Collection

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
