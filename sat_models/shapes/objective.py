"""The objective of the embedded model: answers, what lies on each patch, what each name means.

Legend: B rows, S tokens, C patches, V a width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.shapes.packing import LaneBatch
from sat_models.shapes.recipe import TinyRecipe
from sat_models.shapes.samples import TASKS
from sat_models.shapes.scenes import COLORS, FORMS, SIZES

CLASS_COUNTS = {"color": len(COLORS) + 1, "form": len(FORMS) + 1, "size": len(SIZES) + 1, "digit": 11}
BOX_DIGITS = 2  # of three: the last one is below a pixel
TASK_WEIGHTS = {"caption": 1.0, "vqa": 3.0, "rec": 1.0, "reg": 3.0, "grounded_caption": 0.7, "chat": 1.0}
"""On top of the weights of `target_weights`: short answers count more, since boxes are many tokens."""


def prepare_for_training(model: CogVLMModel, seed: int) -> None:
    """Initial weights for learning from nothing.

    SAT's defaults suit fine-tuning of released weights. From scratch, output norms at gain 1 drown the residual stream
    of a post-norm tower, and position vectors of 0.02 are too faint to place anything.
    """
    torch.manual_seed(seed)
    eva = model.get_mixin("eva")
    tower = eva.vit_model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                gain = 0.5 if ".vit_model." in name or "lm_head" in name else 1.5 if ".linear_proj." in name else 1.0
                nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))
        for vector in (model.transformer.word_embeddings.weight, eva.boi, eva.eoi):
            nn.init.normal_(vector, std=0.3)
        for vector in (tower.position_embeddings.weight, tower.word_embeddings.weight):
            nn.init.normal_(vector, std=0.5)
        for layer in tower.layers:
            layer.input_layernorm.weight.fill_(0.2)
            layer.post_attention_layernorm.weight.fill_(0.2)


class DenseHead(nn.Module):
    """Auxiliary: from features to the object that they should know: what it is and where. Not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, sum(CLASS_COUNTS.values()))
        self.box = nn.Linear(width, 4 * BOX_DIGITS * 10)
        self.place = nn.Linear(width, 4)

    def forward(self, features: Tensor, classes: Tensor, box: Tensor) -> dict[str, Tensor]:
        """features [..., V], classes and box [..., 4] (`samples.Mention`) -> named scalar losses.

        Boxes are judged where there is an object, by their digits and as `place`: the mean distance of their sides in
        quarters of the picture. That wants directions along which places grow, which is what a comparison needs.
        """
        normed = self.norm(features)
        all_logits = self.classes(normed).float().split(list(CLASS_COUNTS.values()), dim=-1)
        losses = {
            name: F.cross_entropy(logits.flatten(0, -2), target.flatten())
            for name, logits, target in zip(CLASS_COUNTS, all_logits, classes.unbind(-1), strict=True)
        }
        on_object = classes[..., 0] > 0
        digits = torch.stack((box // 100, box // 10 % 10), dim=-1)[on_object]
        logits = self.box(normed[on_object]).float().unflatten(-1, (4, BOX_DIGITS, 10))
        losses["place"] = 4 * (self.place(normed[on_object]).float() - box[on_object] / 1000).abs().mean()
        losses["box"] = F.cross_entropy(logits.flatten(0, -2), digits.flatten())
        return losses


class TinyObjective(nn.Module):
    """Model and auxiliary heads as the one module that DeepSpeed trains."""

    def __init__(self, model: CogVLMModel, recipe: TinyRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.head = DenseHead(model.config.eva_args.hidden_size)
        self.mention_head = DenseHead(model.config.hidden_size)

    def forward(self, batch: LaneBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """-> loss and its named parts (detached); per-task parts are means over that task's target tokens."""
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return self._tower(batch) if stage == "tower" else self._full(batch)

    def _tower(self, batch: LaneBatch) -> tuple[Tensor, dict[str, Tensor]]:
        tower = self.model.get_mixin("eva").vit_model
        dense = self.head(tower(batch.vision_image), batch.patch_classes, batch.patch_box)
        return sum(dense.values()), {k: v.detach() for k, v in dense.items()}

    def _full(self, batch: LaneBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features, hidden = self._run(batch)
        dense = self.head(features, batch.patch_classes, batch.patch_box)
        told = batch.mention_classes[..., 0] >= 0
        mention = self.mention_head(hidden[told], batch.mention_classes[told], batch.mention_box[told])
        trained = batch.labels >= 0
        each = F.cross_entropy(logits.float(), batch.labels[trained], reduction="none")
        parts = {k: v.detach() for k, v in dense.items()}
        parts |= {f"mention_{k}": v.detach() for k, v in mention.items()}
        tasks = batch.task_ids[trained]
        for number, task in enumerate(TASKS):
            if (tasks == number).any():
                parts[task] = each.detach()[tasks == number].mean()
        weights = each.new_tensor([TASK_WEIGHTS[task] for task in TASKS])[tasks] * batch.weights[trained]
        loss = (each * weights).sum() / weights.sum()
        loss = loss + self.recipe.dense_weight * sum(dense.values())
        return loss + self.recipe.mention_weight * sum(mention.values()), parts

    def _run(self, batch: LaneBatch) -> tuple[Tensor, Tensor, Tensor]:
        """-> logits [W, vocab] where labels are, the tower's features, and the language model's states halfway up:
        names are looked up below, so that layers are left above to compare what was found."""
        wanted = (batch.labels >= 0).flatten().nonzero().flatten()
        kept: dict[str, Tensor] = {}
        layers = self.model.transformer.layers
        middle = layers[len(layers) // 2].input_layernorm
        hooks = [
            self.model.get_mixin("eva").vit_model.register_forward_hook(lambda _, __, out: kept.update(features=out)),
            middle.register_forward_pre_hook(lambda _, given: kept.update(hidden=given[0])),
        ]
        try:
            logits = self.model(**batch.model_inputs(), wanted_positions=wanted)[0]
        finally:
            for hook in hooks:
                hook.remove()
        return logits, kept["features"], kept["hidden"]


def parameter_groups(objective: TinyObjective) -> list[dict[str, Any]]:
    """Tower apart from the rest (it learns slower in the full stage); hidden matrices, which Muon moves and weight
    decay bounds, apart from everything else."""
    decay = objective.recipe.muon_weight_decay
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        in_tower = ".vit_model." in name or name.startswith("head.")
        hidden = parameter.ndim == 2 and not any(part in name for part in ("embeddings", "lm_head", "head."))
        parameter.model_parallel = getattr(parameter, "model_parallel", False)
        groups.setdefault((in_tower, hidden), []).append(parameter)
    return [
        {"params": p, "in_tower": in_tower, "muon": hidden, "weight_decay": decay if hidden else 0.0}
        for (in_tower, hidden), p in groups.items()
    ]
