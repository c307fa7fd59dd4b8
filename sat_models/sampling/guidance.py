"""Classifier-free guidance (arXiv 2207.12598): away from what the model paints without a text.

Legend: B batch, C channels, h and w of the latents, T text tokens, E text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sat_models.sampling.samplers import Predict

Guidance = float | Callable[[float], float]
"""How far, or how far at a time."""


def guided(
    model: Callable[..., Tensor],
    text: Tensor,
    guidance: Guidance,
    conditions: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Predict:
    """v with the text, moved on from v without it by `guidance` times their difference; one forward makes both.

    Without a text means zeros in its place, not an empty prompt: so the models were trained. Where tokens that are
    alike stay so in every layer (`one_for_alike`), one stands for all of these: on a CPU two forwards, the one without
    a text that much shorter, are quicker than one over both.

    Args:
        model: latents, timestep, text and conditions -> v.
        text: [B, T, E].
        guidance: 1 is the text alone; or what it is at a time.
        conditions: what else the model takes, by name, [B, …].
        dtype: that the model is given latents in.
    """
    own = {name: value for name, value in (conditions or {}).items() if value is not None}
    if guidance == 1:
        return lambda latents, time: model(
            latents=latents.to(dtype), timestep=latents.new_full((len(latents),), time), text=text, **own
        )
    if getattr(model, "one_for_alike", False) and text.device.type == "cpu":
        return _in_two(model, text, guidance, own, dtype)
    both_texts = torch.cat((torch.zeros_like(text), text))
    both = {name: torch.cat((value, value)) for name, value in own.items()}

    def predict(latents: Tensor, time: float) -> Tensor:
        twice = torch.cat((latents, latents)).to(dtype)
        v = model(latents=twice, timestep=latents.new_full((len(twice),), time), text=both_texts, **both)
        without, told = v.chunk(2)
        return without + _at(guidance, time) * (told - without)

    return predict


def _in_two(
    model: Callable[..., Tensor], text: Tensor, guidance: Guidance, own: Mapping[str, Tensor], dtype: torch.dtype
) -> Predict:
    none, copies = torch.zeros_like(text[:, :1]), text.shape[1]

    def predict(latents: Tensor, time: float) -> Tensor:
        given = {"latents": latents.to(dtype), "timestep": latents.new_full((len(latents),), time), **own}
        without = model(text=none, text_copies=copies, **given)
        return without + _at(guidance, time) * (model(text=text, **given) - without)

    return predict


def _at(guidance: Guidance, time: float) -> float:
    return guidance(time) if callable(guidance) else guidance


def dynamic_guidance(most: float, steps: int) -> Callable[[float], float]:
    """CogVideoX's guidance at each time, between 1 and 1 + `most`.

    The original puts the time, 0 … 999, where the number of the step belongs, so that the guidance goes up and down
    from step to step. Its authors know and keep it, as does diffusers; films look as they do with it.

    Source: github.com/THUDM/CogVideo at v1.0, `sgm/modules/diffusionmodules/guiders.py`.
    """
    return lambda time: 1 + most * (1 - math.cos(math.pi * ((steps - time) / steps) ** 5)) / 2
