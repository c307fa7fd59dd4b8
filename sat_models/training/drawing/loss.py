"""The loss of models that predict v.

Source: github.com/THUDM/CogView3 at d450a74, `sat/sgm/modules/diffusionmodules/loss.py` (`ZeroSNRDiffusionLoss`) and
`sigma_sampling.py`: times are drawn evenly from all 1000, and the squared error of the clean latents, divided by the
share of the noise squared, is that of v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sat_models.sampling.schedule import shares, stretched
from sat_models.training.drawing.data import LatentInputs
from sat_models.training.losses import Losses


class VPrediction:
    """The mean squared error of v = a · noise − √(1 − a²) · latents, a the share of the image at each row's time.

    Args:
        snr_shift: of the model's schedule.
    """

    names = ()

    def __init__(self, snr_shift: float) -> None:
        self.table = stretched(shares(snr_shift)).float()

    def __call__(self, model: Any, inputs: LatentInputs) -> Losses:
        """Over all rows together; `model` is one of the zoo, or an engine around one."""
        kept = self.table.to(inputs.latents.device)[inputs.timestep.long()]
        kept = kept.view(-1, *[1] * (inputs.latents.dim() - 1))
        noised, wanted = self.mixed(inputs.latents, inputs.noise, kept)
        made = model(latents=noised, timestep=inputs.timestep, text=inputs.text, **inputs.conditions)
        each = (made.float() - wanted).square().flatten(1).mean(dim=1)
        return Losses((each * inputs.weights).sum(), int(inputs.weights.sum()))

    @staticmethod
    def mixed(latents: Tensor, noise: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Latents with noise, and v."""
        rest = (1 - kept**2).sqrt()
        return kept * latents + rest * noise, kept * noise - rest * latents

    def scores(self, means: Mapping[str, float]) -> dict[str, float]:
        """The loss."""
        return dict(means)
