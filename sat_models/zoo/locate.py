"""From a name or a path to where the weights lie: SAT_HOME, the package, the hub's cache, the hub."""

from __future__ import annotations

import os
from pathlib import Path

from sat_models import registry
from sat_models.checkpoint.hub import fetch
from sat_models.checkpoint.layout import CONFIG_FILE, LATEST_FILE, rank_file
from sat_models.config import TASKS
from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from sat_models.files import check_path
from sat_models.model_spec import ModelSpec


def list_models(*, available_only: bool = False, task: str | None = None) -> list[str]:
    """Names of the zoo. `python -m sat_models.zoo` prints them as a table; `registry.resolve(name)` tells more.

    Args:
        available_only: without those whose code is still to come.
        task: those for this only, one of `config.TASKS`.

    Raises:
        UnknownNameError: no such task.
    """
    if task is not None and task not in TASKS:
        raise UnknownNameError("task", str(task), TASKS)
    kept = (spec for spec in registry.specs() if spec.available or not available_only)
    return [spec.name for spec in kept if task in (None, spec.task)]


def sat_home() -> Path:
    """Where models lie that are named without a path: SAT_HOME, else `~/.sat_models`."""
    return Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()


def check_name(name_or_path: object) -> None:
    """Raises InputError for what can name no model."""
    if not isinstance(name_or_path, str | os.PathLike) or not os.fspath(name_or_path):
        raise InputError(
            f"A model was given as {name_or_path!r:.80}. Give a name of the zoo, such as cogvlm-tiny (list_models() "
            "knows them all), or the path of a checkpoint."
        )
    check_path(name_or_path)


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Where the weights of a name or path lie, without reading them; raises as `load_pretrained`."""
    return locate_with_spec(name_or_path)[0]


def locate_with_spec(name_or_path: str | os.PathLike[str]) -> tuple[Path, ModelSpec | None]:
    """As `locate`, with the model's spec if its name is known."""
    given = Path(name_or_path).expanduser()
    if given.exists() or (given.suffix == ".zip" and given.with_suffix("").is_dir()):
        path, spec = given, spec_of_path(given)
    else:
        path, spec = None, spec_of_name(os.fspath(name_or_path), given)
    if spec is not None and not spec.available:
        raise _not_yet(spec)
    return path or find_named(spec, os.fspath(name_or_path)), spec


def spec_of_path(path: Path) -> ModelSpec | None:
    """By the folder's name: a path `…/cogvlm-chat/1` is most likely that model."""
    folder = path.resolve()
    names = (folder.name.removesuffix(".zip"), folder.parent.name, folder.parent.parent.name)
    return next((spec for spec in map(registry.find_spec, names) if spec), None)


def spec_of_name(name: str, path: Path) -> ModelSpec:
    """The spec that a name means; `path` is the same as a path that does not exist."""
    looks_like_path = (
        path.is_absolute() or name.startswith(".") or path.suffix in (".pt", ".zip") or name.count("/") > 1
    )
    if looks_like_path and registry.find_spec(name) is None:
        raise CheckpointError(
            f"{path} does not exist. Give a SAT folder ({CONFIG_FILE}, '{LATEST_FILE}', <step>/{rank_file(0)}), a step "
            f"folder, a .pt or .zip file, a Hugging Face folder, or a name: {', '.join(list_models())}."
        )
    return registry.resolve(name)


def find_named(spec: ModelSpec, asked: str = "") -> Path:
    """In either form under SAT_HOME; for one `asked` for by a Hugging Face id, then in the hub's cache or the hub."""
    home = sat_home()
    for name in filter(None, (*spec.folder_names, spec.hf_name)):
        for place in (home / name, home / f"{name}.zip"):
            if place.exists():
                return place
    if spec.bundled:
        return registry.bundled_folder(spec.name)
    if not spec.available:
        raise _not_yet(spec)
    if "/" in asked and (repository := spec.repository(asked)):
        return fetch(repository, further=("pytorch_model*",) if asked in spec.originals else ())
    wanted = home / spec.name
    raise CheckpointError(
        f"the weights of {spec.name} are not in {home} (SAT_HOME). Download {spec.name} from {spec.source}, and put "
        f"{spec.name}.zip into {home}, or unpack it to {wanted / CONFIG_FILE}, {wanted / LATEST_FILE} and "
        f"{wanted}/<step>/{rank_file(0)}. Licence: {spec.licence}."
    )


def _not_yet(spec: ModelSpec) -> ConfigError:
    ready = ", ".join(list_models(available_only=True))
    return ConfigError(f"{spec.name} is known, but the zoo cannot run it yet. Ready: {ready}.")
