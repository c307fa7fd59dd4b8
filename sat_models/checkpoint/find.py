"""From a path to the parts of a checkpoint: SAT folders, step folders, single files, released archives, Hugging Face
folders and the other forms of a release."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat_models import registry
from sat_models.checkpoint.archive import unpack_beside
from sat_models.checkpoint.huggingface import open_hf
from sat_models.checkpoint.layout import (
    CONFIG_FILE,
    HF_CONFIG_FILE,
    LATEST_FILE,
    PIPELINE_FILE,
    TRANSFORMER_FOLDER,
    SATCheckpoint,
    rank_file,
    replaced_name,
)
from sat_models.checkpoint.minigpt4 import MINIGPT4_FILE, open_minigpt4
from sat_models.checkpoint.peft import find_peft
from sat_models.checkpoint.pickles import read_weights
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.families import config_of_weights, family_of

logger = logging.getLogger(__name__)

_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_STEP = re.compile(r"\d+|release")


def find_checkpoint(path: str | os.PathLike[str]) -> SATCheckpoint:
    """Locate a checkpoint from a SAT folder, one of its step folders, a weights file, a released `.zip`, or a Hugging
    Face folder.

    An archive is unpacked once, beside itself. A file `mp_rank_…` stands for all parts in its folder.

    Raises:
        CheckpointError: something is missing; the message says which file belongs where.
        ConfigError: `model_config.json` cannot be read, or `config.json` is that of another model.
    """
    path = Path(path).expanduser()
    if find_peft(path) is not None:
        raise CheckpointError(
            f"{path} holds an adapter of PEFT, not a model. --from_pretrained takes it wherever a model is loaded; "
            f"scripts/merge_lora.py --from_pretrained {path} --output FOLDER writes it into its base model"
        )
    if is_hf_folder(path):
        return open_hf(path)
    if path.is_dir() and not (path / LATEST_FILE).is_file() and any(path.glob(MINIGPT4_FILE)):
        return open_minigpt4(path)
    if path.suffix.lower() == ".zip" and (path.is_file() or path.with_suffix("").is_dir()):
        path = unpack_beside(path)
    if path.is_file():
        files = _files_beside(path)
    elif path.is_dir():
        path = transformer_folder(path)
        step = path if _rank_files(path) else _step_folder(path)
        files = _complete(step)
    else:
        raise CheckpointError(f"{path} does not exist; give a SAT folder, a step folder in it, a .pt or .zip file")
    return _with_config(files)


def transformer_folder(path: Path) -> Path:
    """The folder of a diffusion model's transformer in one that holds its other parts, too; else the same."""
    inside = path / TRANSFORMER_FOLDER
    return inside if (inside / LATEST_FILE).is_file() and not (path / LATEST_FILE).is_file() else path


def is_hf_folder(path: Path) -> bool:
    """True if a folder is in Hugging Face's form: `config.json` without SAT's `model_config.json`, or a pipeline of
    diffusers."""
    if (path / CONFIG_FILE).is_file():
        return False
    return (path / HF_CONFIG_FILE).is_file() or (path / PIPELINE_FILE).is_file()


def _with_config(files: tuple[Path, ...]) -> SATCheckpoint:
    """Weights with the config beside them; what it does not say is told by the weights, where their family can."""
    step = files[0].parent
    folder = next((f for f in (step, step.resolve().parent) if (f / CONFIG_FILE).is_file()), None)
    data = {} if folder is None else read_json(folder / CONFIG_FILE)
    if "model_class" not in data:
        shapes = {name: tuple(value.shape) for name, value in read_weights(files[0]).items()}
        data = _told_by_weights(step, shapes, data)
    if not data:
        raise CheckpointError(
            f"no {CONFIG_FILE} in {step} or in {step.resolve().parent}; copy it there: it holds the sizes"
        )
    return SATCheckpoint(folder or step.resolve().parent, files, data)


def _told_by_weights(step: Path, shapes: Mapping[str, tuple[int, ...]], data: dict[str, Any]) -> dict[str, Any]:
    """What shapes tell, with what a file says. Of what neither says, a folder that bears the name of a release has that
    of the release, where the sizes are the same and its family asks for it. Raises ConfigError as `config_of_weights`.
    """
    folder = step.resolve()
    names = (folder.name, folder.parent.name, folder.parent.parent.name)
    spec = next(filter(None, map(registry.find_spec, names)), None)
    released = read_json(registry.config_path(spec.name)) if spec else {}
    kind = released.pop("model_class", None)
    if kind is not None and family_of(kind).told_by_name:
        try:
            found = config_of_weights(shapes, {**released, **data})
        except ConfigError as error:
            logger.debug("%s is not of the sizes of %s: %s", step, spec.name, error)
        else:
            if found and found["model_class"] == kind:
                return found
    return config_of_weights(shapes, data) or data


def _files_beside(path: Path) -> tuple[Path, ...]:
    """All parts of the checkpoint of which `path` is one; a file of another name stands alone."""
    return _complete(path.parent) if _RANK_FILE.fullmatch(path.name) else (path,)


def _rank_files(folder: Path) -> dict[int, Path]:
    matches = ((_RANK_FILE.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return {int(match[1]): entry for match, entry in sorted(matches, key=lambda pair: pair[1].name) if match}


def _complete(step: Path) -> tuple[Path, ...]:
    found = _rank_files(step)
    if not found:
        raise CheckpointError(f"{step} holds no weights; {rank_file(0)} belongs there")
    absent = [rank_file(rank) for rank in range(max(found) + 1) if rank not in found]
    if absent:
        raise CheckpointError(f"{step} is incomplete: {', '.join(absent)} missing beside {rank_file(max(found))}")
    return tuple(found[rank] for rank in range(len(found)))


def _step_folder(folder: Path) -> Path:
    latest = folder / LATEST_FILE
    if latest.is_file():
        step = latest.read_text(encoding="utf-8-sig", errors="replace").strip()
        if not _STEP.fullmatch(step):
            raise CheckpointError(f"{latest} holds {step!r:.40}; it must hold a step number or 'release'")
        if not (folder / step).is_dir():
            if (folder / replaced_name(step)).is_dir():
                logger.warning(
                    "%s/%s was being written again when a process was killed; taking the former one", folder, step
                )
                return folder / replaced_name(step)
            raise CheckpointError(
                f"{latest} says '{step}', but there is no folder {folder / step}{_steps_hint(folder)}"
            )
        return folder / step
    steps = _steps(folder)
    if len(steps) == 1:
        logger.info("%s has no file '%s'; taking its only step folder, %s", folder, LATEST_FILE, steps[0].name)
        return steps[0]
    if steps:
        raise CheckpointError(f"{folder} has no file '{LATEST_FILE}' and several steps{_steps_hint(folder)}")
    raise CheckpointError(
        f"{folder} is no SAT checkpoint: it has neither {rank_file(0)} nor '{LATEST_FILE}'. Wanted: {CONFIG_FILE}, "
        f"'{LATEST_FILE}' (holding a step number or 'release') and <step>/{rank_file(0)}"
    )


def _steps(folder: Path) -> list[Path]:
    return sorted(e for e in folder.iterdir() if _STEP.fullmatch(e.name) and e.is_dir() and _rank_files(e))


def _steps_hint(folder: Path) -> str:
    steps = [step.name for step in _steps(folder)]
    return f"; there is {', '.join(steps)}: write one of them into '{LATEST_FILE}' or name its folder" if steps else ""
