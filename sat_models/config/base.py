"""Checks and dictionaries that all typed configs share."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from sat_models.errors import ConfigError


def require_positive(owner: Any, *names: str) -> None:
    """Raise ConfigError unless these attributes are positive integers."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{type(owner).__name__}.{name} must be a positive integer, got {value!r}")


def require_number_above(owner: Any, least: float, *names: str) -> None:
    """Raise ConfigError unless these attributes are finite numbers above `least`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < math.inf:
            raise ConfigError(f"{type(owner).__name__}.{name} must be a number above {least}, got {value!r}")


def require_bool(owner: Any, *names: str) -> None:
    """Raise ConfigError unless these attributes are true or false."""
    for name in names:
        if not isinstance(value := getattr(owner, name), bool):
            raise ConfigError(f"{type(owner).__name__}.{name} must be true or false, got {value!r}")


def require_divides(what: str, whole: int, parts: int, why: str) -> None:
    """Raise ConfigError unless `parts` divides `whole`."""
    if whole % parts:
        raise ConfigError(f"{what} = {whole} is not divisible by {parts} ({why})")


def require_flags(name: str, given: Any, num_layers: int) -> bool | tuple[bool, ...]:
    """One flag for all layers, or one for each, at least one of them true. Raises ConfigError."""
    flags = (given,) * num_layers if isinstance(given, bool) else given
    if not isinstance(flags, (list, tuple)) or not all(isinstance(flag, bool) for flag in flags):
        raise ConfigError(f"{name} must be true or a list of true and false, got {given!r:.80}")
    if len(flags) != num_layers or not any(flags):
        raise ConfigError(
            f"{name} must say for each of the {num_layers} layers whether it has cross-attention, and for at least one "
            f"that it has; got {given!r:.80}"
        )
    return given if isinstance(given, bool) else tuple(given)


def take_known(cls: type, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of `data` that is fields of `cls`, and the rest."""
    names = {f.name for f in dataclasses.fields(cls) if f.init and f.name != "extra"}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}


def build(cls: type, known: dict[str, Any]) -> Any:
    """`cls(**known)`. Raises ConfigError with the fields that are missing."""
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in known
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} lacks the key(s) {', '.join(missing)}; a model config must carry its sizes")
    return cls(**known)


def fields_to_dict(config: Any) -> dict[str, Any]:
    """The fields that are not None, and `extra`, in one level; lists as JSON has them."""
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "extra"}
    return {**config.extra, **{k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if v is not None}}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError with the path and the place of the fault."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data
