"""Whose run a folder holds, and from where it goes on: what must be the same and why, and what may change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sat_models import runtime
from sat_models.checkpoint.adapter import adapter_files, read_adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.digests import digest_of_files
from sat_models.errors import CheckpointError
from sat_models.training.records import Record
from sat_models.training.settings import FinetuneSettings
from sat_models.training.store import MANIFEST_FILE, CheckpointStore
from sat_models.zoo import locate

logger = logging.getLogger(__name__)

_WEIGHTS = frozenset((".safetensors", ".bin", ".pt", ".pth"))

_CUT = "the optimiser state is cut over the processes in another way"
_OTHERS_TRAIN = "other weights train, for which there is no optimiser state"
REASONS = {
    "from_pretrained": "what was trained belongs to that model",
    "weights of the base": "what was trained belongs to the weights that were there",
    "training data": "it would go on with other data",
    "training images": "it would go on with other data: images of the same names and sizes hold something else",
    "version": "the model has seen prompts of another style",
    "mp": _CUT,
    "processes": _CUT,
    "zero": _CUT,
    "precision": "the optimiser state was kept beside weights of another kind",
    "quant": "the frozen weights would be others",
    **dict.fromkeys(
        ("trainable", "lora_rank", "lora_targets", "dora", "layer_range", "train_also", "pre_seq_len"), _OTHERS_TRAIN
    ),
    "lora_alpha": "what was trained would count for more or less",
    "optimizer": "another optimiser keeps another state",
    "seed": "the order of the data hangs on it",
    "objective": "what was learned, and the optimiser's state, belong to another loss",
    "image_size": "images would be cut to other sizes, and the order of the data hangs on these",
    "aspect_buckets": "images would be cut to other sizes, and the order of the data hangs on these",
    "latents": "what was learned belongs to the latents and texts of other encoders",
    "packed to": "the rows would hold other samples, and the order of the data hangs on them",
}
"""The facts that a run and the checkpoint it goes on from must have in common, and why."""
_BEFORE = {"packed to": None, "objective": "sft"}
"""Of those that older checkpoints do not name, what they were there."""
SAID = (
    "batch_size", "accumulate", "learning_rate", "muon_rate", "min_learning_rate", "schedule", "warmup",
    "weight_decay", "adam_betas", "clip", "rate_scales", "lora_dropout", "max_length", "group_by_length",
    "on_bad_sample", "dpo_beta", "dpo_label_smoothing", "train_iters", "valid_data", "valid_share", "best_by",
    "patience", "text_dropout",
)  # fmt: skip
"""Settings that may change on the way and that the result hangs on: a change is said."""


@dataclass
class Progress:
    """How far a run is; kept in every checkpoint.

    Attributes:
        step: optimiser steps done.
        passes: batches taken from the data, skipped ones included; the next batch has this number.
        best: best score so far.
        without_better: evaluations since then.
    """

    step: int = 0
    passes: int = 0
    best: float | None = None
    without_better: int = 0


@dataclass(frozen=True)
class Start:
    """The checkpoint from which a run goes on, and how far it had come."""

    folder: Path
    progress: Progress


def check_no_model(store: CheckpointStore) -> None:
    """See that a run does not write into the folder of a model: its steps would take the place of the weights.

    Raises:
        CheckpointError: the folder holds weights that no fine-tuning run wrote.
    """
    if not store.folder.is_dir():
        return
    named = (store.folder / str(step) for step in ("release", *store.steps()))
    folders = [folder for folder in named if folder.is_dir()]
    others = [] if any((folder / MANIFEST_FILE).is_file() for folder in folders) else folders
    others += [file for file in sorted(store.folder.iterdir()) if file.suffix in _WEIGHTS and file.is_file()]
    if others:
        raise CheckpointError(
            f"{store.folder} holds weights that no fine-tuning run wrote ({others[0].name}), and steps of a run would "
            "take their place. Choose another --save_path."
        )


def find_start(store: CheckpointStore, settings: FinetuneSettings, identity: dict[str, Any]) -> Start | None:
    """The newest checkpoint that verifies; None where there is none. All ranks call it.

    What differs from its settings and may is said. Where the batch size differs, the data go on at the same place.

    Raises:
        CheckpointError: it belongs to a run with another topology, model, plan or other data.
    """
    found = store.newest_good()
    if found is None:
        return None
    folder, manifest = found
    info = manifest["info"]
    check_identity(folder, info["identity"], identity)
    progress, saved = Progress(**info["progress"]), info["settings"]
    if differ := changes(saved, settings):
        logger.warning("settings that differ from those of step %d: %s", progress.step, differ)
    if saved["batch_size"] != settings.batch_size:
        progress.passes = progress.passes * saved["batch_size"] // settings.batch_size
    return Start(folder, progress)


def run_identity(settings: FinetuneSettings, records: Sequence[Record], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each of `REASONS` for a run.

    Args:
        records: of the training data.
        facts: what neither they nor the settings tell, such as the model's name or path, or what was chosen where a
            setting left it open.
    """
    plain = settings.to_dict()
    own = {
        "weights of the base": weights_digest(settings.from_pretrained),
        "training data": data_digest(records),
        "training images": images_digest(records),
        "processes": runtime.world_size(),
        "lora_alpha": 1.0 if settings.lora_alpha is None else settings.lora_alpha,
        **facts,
    }
    return {name: own.get(name, plain.get(name)) for name in REASONS}


def check_identity(folder: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Sees that a run may go on from a checkpoint.

    Raises:
        CheckpointError: it may not; the message says what differs and why that matters.
    """
    for name, reason in REASONS.items():
        before = 1.0 if name == "lora_alpha" and saved.get(name) is None else saved.get(name, _BEFORE.get(name))
        if (name in saved or name in _BEFORE) and before != own[name]:
            raise CheckpointError(
                f"{folder} was written by a run with {name} = {_shown(before)}, but this one has {_shown(own[name])}: "
                f"{reason}. Run with the former value, or start anew in another --save_path (from "
                f"{folder.parent / 'merged'}, if what was learned shall stay)"
            )


def changes(saved: Mapping[str, Any], settings: FinetuneSettings) -> str:
    """The differences from a checkpoint's settings that are allowed, for people; "" where nothing does."""
    plain = json.loads(json.dumps(settings.to_dict()))
    differ = [name for name in SAID if name in saved and saved[name] != plain[name]]
    return ", ".join(f"{name} {saved[name]} -> {plain[name]}" for name in differ)


def data_digest(records: Iterable[Record]) -> str:
    """Of texts and boxes, and of names and sizes of images; what these hold is told apart by `images_digest`."""
    digest = hashlib.sha256()
    for record in records:
        names = [[Path(p).name, p.stat().st_size] if isinstance(p, Path) else str(p) for p in record.images]
        boxes = [] if record.boxes is None else [[astuple(group) for group in record.boxes]]
        pair = [] if record.rejected is None else [record.rejected]
        digest.update(json.dumps([names, record.turns, record.untrained, *boxes, *pair]).encode())
    return digest.hexdigest()


def images_digest(records: Iterable[Record]) -> str:
    """Of the contents of all image files that can be read; those at URLs are not fetched. An epoch reads them, too, and
    decodes them."""
    images = (image for record in records for image in record.images)
    files = [image for image in images if isinstance(image, Path) and os.access(image, os.R_OK)]
    each = set(files)
    if each:
        size = sum(file.stat().st_size for file in each)
        logger.info("taking the fingerprint of %d images (%.2f GB)", len(each), size / 1e9)
    return digest_of_files(files)


def weights_digest(name_or_path: str) -> str:
    """Of the contents of a model's weight files, and of the adapter's on them."""
    return digest_of_files([*adapter_files(name_or_path), *base_of(name_or_path).files])


def base_of(name_or_path: str) -> SATCheckpoint:
    """A model's checkpoint; of an adapter, that of its base."""
    adapter = adapter_files(name_or_path)
    return find_checkpoint(locate(read_adapter(name_or_path).base_model if adapter else name_or_path))


def _shown(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else f"{value}"
