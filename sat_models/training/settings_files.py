"""Settings of a fine-tuning run from defaults, a preset, files and flags.

Precedence: defaults < `configs/finetune/<model>.yaml` < the files of `--config`, in their order < flags. Every field is
a flag of the same name and a key of those files; a key that is not a field is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sat_models.errors import ConfigError, UnknownNameError
from sat_models.registry import config_file
from sat_models.training.settings import FinetuneSettings, setting_fields

PRESETS = "finetune"
MAPPINGS = {
    "rate_scales": "GROUP=FACTOR, such as vit=0.1",
    "box_tasks": "TASK=SHARE, such as rec=1 reg=0.5",
}
"""Settings that hold numbers by name, and what is typed for them."""


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    """All fields as flags, without defaults, so that what was not typed can come from elsewhere."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", nargs="+", default=[], metavar="YAML", help="files of settings, later ones win")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", default=False, help="print the plan and the memory, and stop"
    )
    for name, given in setting_fields().items():
        options: dict[str, Any] = {"help": f"{given.metadata['help']} ({_shown(given.default)})"}
        if given.metadata["kind"] is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = str if name in MAPPINGS else given.metadata["kind"]
            options["metavar"] = given.metadata["kind"].__name__.upper()
        if "choices" in given.metadata:
            options["choices"] = given.metadata["choices"]
            del options["metavar"]
        if given.metadata.get("many"):
            options["nargs"] = "*"
        dashed = [f"--{name.replace('_', '-')}"] if "_" in name else []
        parser.add_argument(f"--{name}", *dashed, **options)
    return parser


def settings_from(arguments: argparse.Namespace) -> FinetuneSettings:
    """Settings of parsed flags over the files they name, over the model's preset.

    Raises:
        ConfigError: a file that is not there, an unknown key, a value out of range, or a contradiction.
    """
    typed = {name: value for name, value in vars(arguments).items() if name in setting_fields()}
    merged: dict[str, Any] = {}
    files = [Path(file) for file in arguments.config]
    preset = preset_of(typed.get("from_pretrained") or _named_in(files))
    for file in ([preset] if preset else []) + files:
        merged.update(read_settings(file))
    return FinetuneSettings(**{name: _as_declared(name, value) for name, value in {**merged, **typed}.items()})


def preset_of(model: str | None) -> Path | None:
    """The settings file that comes with a model, by its name; None where there is none."""
    if not model:
        return None
    from sat_models import registry

    spec = registry.find_spec(Path(model).name)
    return config_file(f"{PRESETS}/{spec.name}.yaml") if spec else None


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a settings file.

    Raises:
        ConfigError: it is not there, no YAML of names and values, or has an unknown key.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {file} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold lines of 'name: value', but it is a {type(content).__name__}")
    for name in content:
        if name not in setting_fields():
            raise UnknownNameError("setting", str(name), setting_fields(), hint=f"(in {file})")
    return content


def _named_in(files: Sequence[Path]) -> str | None:
    named = [read_settings(file).get("from_pretrained") for file in files]
    return next((name for name in reversed(named) if name), None)


def _as_declared(name: str, value: Any) -> Any:
    """A value as its field declares it: tuples from lists and single values, numbers checked."""
    given = setting_fields()[name]
    kind, many = given.metadata["kind"], given.metadata.get("many")
    if value is None:
        return given.default
    if name in MAPPINGS:
        return _mapping(name, value)
    try:
        if many:
            return tuple(kind(one) for one in (value if isinstance(value, list | tuple) else [value]))
        if kind is bool and not isinstance(value, bool):
            raise ValueError
        if "choices" in given.metadata and value not in given.metadata["choices"]:
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(given.metadata['choices'])}")
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        return kind(value)  # YAML reads 1e-5 as text
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} is {value!r}, but it must be {kind.__name__}: {given.metadata['help']}") from error


def _mapping(name: str, value: Any) -> dict[str, float]:
    """{"vit": 0.1} from itself or from ["vit=0.1"]."""
    try:
        pairs = value.items() if isinstance(value, Mapping) else [str(one).partition("=")[::2] for one in value]
        return {str(key): float(number) for key, number in pairs}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} takes {MAPPINGS[name]}; got {value!r}") from error


def _shown(default: Any) -> str:
    if default in (None, "", ()):
        return "default: none"
    return f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}"
