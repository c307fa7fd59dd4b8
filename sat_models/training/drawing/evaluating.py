"""Evaluation of a painter while it trains: the loss on validation images, and images drawn from a few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixins.base import ZooModel
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.files import whole_file, write_jsonl
from sat_models.generation.model import evaluation_mode
from sat_models.training.drawing.data import LatentDataset
from sat_models.training.evaluating import validation_scores
from sat_models.training.losses import Objective
from sat_models.zoo.painter import Painter, noise

SAMPLES_FOLDER = "samples"


@dataclass(frozen=True, kw_only=True)
class DrawingEvaluator:
    """See `Evaluation`. The same noise and times in each evaluation, so that scores and images may be compared.

    Attributes:
        painter: whose transformer is the model that trains.
        dataset: validation images; None: there are none, and no loss.
        batch_size: of these, per rank and pass.
        objective: the loss.
        prompts: what is drawn.
        text: the same, encoded, [N, T, E].
        size: width and height of what is drawn, in pixels.
        steps: of the sampler; None: the model's usual number.
        seed: of the first prompt; each further one has the next.
    """

    painter: Painter
    dataset: LatentDataset | None
    batch_size: int
    objective: Objective
    prompts: Sequence[str]
    text: Tensor
    size: tuple[int, int]
    steps: int | None
    seed: int

    def evaluate(
        self, model: ZooModel, *, device: torch.device, dtype: torch.dtype, in_step: bool = False
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """See `Evaluation`; the images as dicts with "number", "prompt", "seed" and "image"."""
        scores: dict[str, float] = {}
        with evaluation_mode(model), torch.no_grad():
            if self.dataset is not None:
                options = {"batch_size": self.batch_size, "device": device, "dtype": dtype}
                scores = validation_scores(model, self.dataset, self.objective, **options)
            own = runtime.in_step(lambda: self._drawn(in_step))
        merged = {one["number"]: one for made in runtime.gather_objects(own) for one in made}
        return scores, [merged[number] for number in sorted(merged)]

    def _drawn(self, in_step: bool) -> list[dict[str, Any]]:
        """This rank's share of the images; of ranks that share a model, the first decodes."""
        rank, world = (0, 1) if in_step else (mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size())
        shape = self.painter.config.latent_shape(*self.size)
        made = []
        for number in range(rank, len(self.prompts), world):
            start, text = noise(shape, self.seed + number)[None], self.text[number][None]
            for latents in self.painter.denoise(start, text, steps=self.steps):
                last = latents
            if mpu.get_model_parallel_rank() == 0:
                image = self.painter.codec.get().decode(last)[0]
                made.append(
                    {"number": number, "prompt": self.prompts[number], "seed": self.seed + number, "image": image}
                )
        self.painter.codec.release()
        return made

    def keep(self, made: list[dict[str, Any]], folder: Path, step: int) -> None:
        """As `samples/<step>/<number>.png`, with their prompts in `prompts.jsonl`. Raises OSError."""
        place = folder / SAMPLES_FOLDER / str(step)
        place.mkdir(parents=True, exist_ok=True)
        for one in made:
            image: Image.Image = one["image"]
            with whole_file(place / f"{one['number']}.png") as draft:
                image.save(draft, format="PNG")
        write_jsonl(place / "prompts.jsonl", [{k: v for k, v in one.items() if k != "image"} for one in made])
