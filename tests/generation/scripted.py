"""A stand-in for a model: says a fixed sequence and remembers how it was called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sat_models.config import ImagePlan
from sat_models.processing.layout import VLMInputs, layout_prompt

VOCAB, EOS, IMAGE_LENGTH = 16, 2, 4
IMAGE = ImagePlan(length=IMAGE_LENGTH, canvas=(8, 8))


class ScriptedModel(nn.Module):
    """Step k gives `script[k]` the largest logit; a float in the script fills the row, an exception is raised."""

    def __init__(self, script: list[int | float | Exception]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.transformer = nn.Module()
        self.transformer.layers = [None, None]
        self.mixins: dict[str, Any] = {}
        self.script, self.calls = script, []

    def add_mixin(self, name: str, mixin: Any) -> None:
        self.mixins[name] = mixin

    def del_mixin(self, name: str) -> None:
        del self.mixins[name]

    def next_positions(self, position_ids: Tensor) -> Tensor:
        return position_ids[:, -1:] + 1

    def forward(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Any = None, **kw: Any) -> list[Tensor]:
        (cache,) = self.mixins.values()
        said = self.script[len(self.calls)]
        self.calls.append(
            dict(
                kw,
                ids=input_ids.tolist()[0],
                positions=position_ids.tolist()[0],
                mask=attention_mask,
                cached=cache.length,
                room=cache.max_length,
                training=self.dropout.training,
                inference=torch.is_inference_mode_enabled(),
            )
        )
        if isinstance(said, Exception):
            raise said
        logits = torch.ones(1, 1, VOCAB)
        if isinstance(said, float):
            logits.fill_(said)
        else:
            logits[0, 0, said] = 5.0
        return [logits]


def prompt(text: int = 3, *, images: int = 1) -> VLMInputs:
    """A prompt with `text` text tokens and pictures of `IMAGE_LENGTH` tokens."""
    layout = layout_prompt([*[IMAGE] * images, range(4, 4 + text)], bos_id=1)
    pixels = torch.zeros(images, 3, 8, 8) if images else None
    return VLMInputs.from_layout(layout, vision_image=pixels)
