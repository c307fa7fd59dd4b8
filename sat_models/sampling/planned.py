"""A plan and the codes of an image, one token after the other.

Legend: B images, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mixins.kv_cache import kv_cache
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.processing.plans import allowed_tokens


@torch.inference_mode()
def write_planned(
    model: ImageTokenModel, text: Tensor, *, generators: Sequence[torch.Generator], temperature: float = 0.8
) -> Iterator[Tensor]:
    """The tokens of B images, [B] each; who stops listening stops.

    A plan is drawn, with the generator of its image; of codes, which follow from it, the likeliest is taken. So an
    image does not depend on those beside it.

    Args:
        model: its config is a `PlannedConfig`.
        text: [B, T], ids of prompts.
        generators: B of them, on the CPU, so that a seed means the same on every device.
        temperature: of the plan.
    """
    config = model.config
    allowed = allowed_tokens(config).to(text.device)
    ids = torch.cat((text, text.new_full((len(text), 1), config.start)), dim=1)
    positions = torch.arange(ids.shape[1], device=text.device)
    told = text.shape[1]
    with kv_cache(model, ids.shape[1] + config.steps) as cache:
        for number in range(config.steps):
            logits = model(input_ids=ids, position_ids=positions.unsqueeze(0), text=told)[0][:, -1]
            cache.advance(ids.shape[1])
            logits = logits.float().masked_fill(~allowed[number], float("-inf"))
            if number < config.plan_length and temperature > 0:
                weights = (logits / temperature).softmax(-1).cpu()
                drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(weights, generators, strict=True)]
                tokens = torch.cat(drawn).to(text.device)
            else:
                tokens = logits.argmax(-1)
            yield tokens
            ids, positions = tokens.unsqueeze(1), positions[-1:] + 1
