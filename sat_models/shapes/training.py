"""Trains the embedded model `cogvlm-tiny` by its recipe, on DeepSpeed's engine, CPU or GPU; resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mixins.packed_attention import PackedLanesMixin
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.shapes.milestones import share_right
from sat_models.shapes.objective import TinyObjective, parameter_groups, prepare_for_training
from sat_models.shapes.recipe import TinyRecipe, batch_of_step
from sat_models.shapes.runs import make_engine, train_by, write_about
from sat_models.shapes.samples import TextTokenizer


def start_engine(config: CogVLMConfig, recipe: TinyRecipe, device: torch.device) -> Any:
    """A DeepSpeed engine around freshly initialised weights."""
    torch.manual_seed(recipe.seed)  # of what `prepare_for_training` leaves as the modules make it
    model = CogVLMModel(config)
    prepare_for_training(model, recipe.seed)
    model.add_mixin("packed", PackedLanesMixin())
    objective = TinyObjective(model, recipe).to(device)
    return make_engine(objective, parameter_groups(objective), recipe.batch, device)


def train_tiny(
    config: CogVLMConfig,
    tokenizer: TextTokenizer,
    recipe: TinyRecipe,
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
    log_every: int = 10,
) -> Any:
    """Train to `recipe.steps`, going on from the newest state in `folder` if there is one; see `train_by`. A milestone
    is the share of right answers by kind of question.

    Returns:
        The DeepSpeed engine; `engine.module.model` is the trained model.

    Raises:
        ConfigError: the state in `folder` was made by another recipe (its steps may differ, until the rate falls).
    """
    folder.mkdir(parents=True, exist_ok=True)
    engine = start_engine(config, recipe, device)
    train_by(
        recipe, engine, folder,
        batch_of=lambda step: batch_of_step(recipe, tokenizer, step).to(device),
        milestone=lambda: share_right(engine.module.model, tokenizer),
        save_every=save_every, log_every=log_every,
    )  # fmt: skip
    return engine


def export_tiny(engine: Any, config: CogVLMConfig, tokenizer_file: Path, run: Path) -> Path:
    """Write what a finished run made to `cogvlm-tiny` in its folder and return that: the weights in SAT layout, fp16,
    without what served training only, and `training.json` with recipe, seconds, machine and the last milestone."""
    folder, objective = run / "cogvlm-tiny", engine.module
    objective.model.del_mixin("packed")
    save_checkpoint(objective.model, folder, config, step=1, dtype=torch.float16, tokenizer_file=tokenizer_file)
    write_about(folder, objective.recipe, run)
    return folder
