"""Trains the bundled painter `cogview-tiny` by its recipe, on DeepSpeed's engine, CPU or GPU; resumed exactly.

Legend: B images, S tokens that are told and written, V rows of the head.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.cogview_tiny.config import CogViewTinyConfig
from sat_models.models.cogview_tiny.model import CogViewTinyModel
from sat_models.processing.image_codec import to_images
from sat_models.processing.plans import read_prompt
from sat_models.sampling.planned import write_planned
from sat_models.shapes.looking import scores_of
from sat_models.shapes.painter_recipe import PainterBatch, PainterRecipe, batch_of_step
from sat_models.shapes.prompts import KINDS, sample_wish
from sat_models.shapes.runs import make_engine, train_by, write_about

NAME = "cogview-tiny"
_EMBEDDING = 0.3
_OUTPUT_NORM = 0.3
_WAVES = 32
"""Numbers that say a place: sines and cosines of so many halves of wavelengths."""


def prepare_for_training(model: CogViewTinyModel, seed: int) -> None:
    """Initial weights for learning from nothing.

    Norms behind the blocks at gain 1 would drown the residual stream. Places in the image, as words of a plan and as
    positions of codes, begin as sines and cosines of where they are, so that near ones are alike from the start.
    """
    torch.manual_seed(seed)
    config, transformer = model.config, model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            if name.endswith(("third_layernorm.weight", "fourth_layernorm.weight", "final_layernorm.weight")):
                parameter.fill_(_OUTPUT_NORM)
        words, positions = transformer.word_embeddings.weight, transformer.position_embeddings.weight
        nn.init.normal_(words, std=_EMBEDDING)
        nn.init.normal_(positions, std=_EMBEDDING)
        across, down, along = (
            torch.randn(_WAVES, config.hidden_size) * _EMBEDDING / math.sqrt(_WAVES) for _ in range(3)
        )
        steps, cells = config.steps_of_place, _waves(torch.arange(config.grid) + 0.5, config.grid)
        places = _waves(torch.arange(steps), steps) @ along
        words[config.image_codes - steps : config.image_codes] = places + 0.1 * torch.randn_like(places)
        grid = ((cells @ down)[:, None] + (cells @ across)[None]).flatten(0, 1)
        positions[-config.cells :] = grid + 0.1 * torch.randn_like(grid)


def _waves(places: Tensor, whole: int) -> Tensor:
    """[K] places of `whole` -> [K, _WAVES]."""
    turns = (places.float() / whole)[:, None] * 0.5 * math.pi * 1.35 ** torch.arange(_WAVES // 2)
    return torch.cat((turns.sin(), turns.cos()), dim=1)


class PainterObjective(nn.Module):
    """The model and its losses as the one module that DeepSpeed trains."""

    def __init__(self, model: CogViewTinyModel, recipe: PainterRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: PainterBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """-> loss and its named parts (detached)."""
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return self._codec(batch) if stage == "codec" else self._codes(batch)

    def _codec(self, batch: PainterBatch) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.model.get_mixin("codec").reconstruct(batch.pixels).float() - batch.pixels
        square = error.square().mean()
        return error.abs().mean() + square, {"psnr": -10 * (square.detach() / 4).log10()}

    def _codes(self, batch: PainterBatch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.model.config
        with torch.no_grad():
            codes = self.model.get_mixin("codec").encode(batch.pixels).flatten(1)
        tokens = torch.cat((batch.told, codes), dim=1)
        text, plan = config.image_start, config.plan_length
        positions = torch.arange(tokens.shape[1] - 1, device=tokens.device).unsqueeze(0)
        logits = self.model(input_ids=tokens[:, :-1], position_ids=positions, text=text)[0][:, text:].float()
        targets = tokens[:, text + 1 :]
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        of_plan, of_codes = each[:, :plan], each[:, plan:]
        total = self.recipe.plan_weight * of_plan.sum() + of_codes.sum()
        count = len(each) * (self.recipe.plan_weight * plan + config.cells)
        return total / count, self._parts(of_plan.detach(), of_codes.detach(), logits.detach(), codes)

    def _parts(self, of_plan: Tensor, of_codes: Tensor, logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Names of a plan follow from the prompt mostly, its places are chance; codes are told with and without those
        of the background, which is most."""
        plan = of_plan[:, 1:].unflatten(1, (-1, 5))
        shown = codes != codes.mode(dim=1, keepdim=True).values
        right = logits[:, -codes.shape[1] :].argmax(-1) == codes
        return {
            "plan_names": plan[..., :2].mean(), "plan_places": plan[..., 2:].mean(), "codes": of_codes.mean(),
            "shape_codes": of_codes[shown].mean(), "shape_codes_right": right[shown].float().mean(),
        }  # fmt: skip


def parameter_groups(objective: PainterObjective) -> list[dict[str, Any]]:
    """Codec and transformer, each of which learns in its own stage alone; and of each the hidden matrices, which Muon
    moves and weight decay bounds, apart from all else."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        parameter.model_parallel = getattr(parameter, "model_parallel", False)
        outer = any(part in name for part in ("embeddings", "codec.exit", "codec.entry", "encoder.6"))
        stage = "codec" if ".codec." in name else "codes"
        groups.setdefault((stage, parameter.ndim == 2 and not outer), []).append(parameter)
    decay = objective.recipe.muon_weight_decay
    return [
        {"params": params, "stage": stage, "muon": muon, "weight_decay": decay * muon}
        for (stage, muon), params in groups.items()
    ]


def share_right(model: CogViewTinyModel, *, count: int = 25, seed: int = 0) -> dict[str, float]:
    """By kind of prompt and over all: the share of images in which the rule on pixels finds all of the prompt.

    Args:
        count: prompts, of names that training has, too; the held-out ones are kept for the end.
    """
    wishes = [
        sample_wish(random.Random(f"milestone/painter/{seed}/{n}"), kind=KINDS[n % len(KINDS)]) for n in range(count)
    ]
    device = next(model.parameters()).device
    text = torch.tensor([read_prompt(model.config, wish.prompt).ids for wish in wishes], device=device)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    tokens = torch.stack(list(write_planned(model, text, generators=generators)), dim=1)
    right = defaultdict(list)
    for wish, image in zip(wishes, images_of(model, tokens[:, model.config.plan_length :]), strict=True):
        for kind in (wish.kind, "all"):
            right[kind].append(scores_of(wish, image)["right"])
    return {kind: round(sum(found) / len(found), 3) for kind, found in right.items()}


@torch.no_grad()
def images_of(model: CogViewTinyModel, codes: Tensor) -> list[Image.Image]:
    """[B, cells] -> B images."""
    grid = model.config.grid
    return to_images(model.get_mixin("codec").decode(codes.view(-1, grid, grid)).float())


def train_painter(
    config: CogViewTinyConfig,
    recipe: PainterRecipe,
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
    log_every: int = 10,
) -> Any:
    """Train to `recipe.steps`, going on from the newest state in `folder` if there is one; see `train_by`. A milestone
    is `share_right`.

    Returns:
        The DeepSpeed engine; `engine.module.model` is the trained model.

    Raises:
        ConfigError: the state in `folder` was made by another recipe (its steps may differ, until the rate falls).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)  # of what `prepare_for_training` leaves as the modules make it
    model = CogViewTinyModel(config)
    prepare_for_training(model, recipe.seed)
    objective = PainterObjective(model, recipe).to(device)
    engine = make_engine(objective, parameter_groups(objective), recipe.batch, device)
    train_by(
        recipe, engine, folder,
        batch_of=lambda step: batch_of_step(recipe, config, step).to(device),
        milestone=lambda: share_right(model),
        save_every=save_every, log_every=log_every,
    )  # fmt: skip
    return engine


def export_painter(engine: Any, config: CogViewTinyConfig, run: Path) -> Path:
    """Write what a finished run made to `cogview-tiny` in its folder and return that: the weights in SAT layout, fp16,
    and `training.json` with recipe, seconds, machine and the last milestone."""
    folder = run / NAME
    save_checkpoint(engine.module.model, folder, config, step=1, dtype=torch.float16)
    write_about(folder, engine.module.recipe, run)
    return folder
