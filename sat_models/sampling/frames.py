"""CogVideo's loop: frames in codes, one code after the other, behind a text and frames that are there.

Source: github.com/THUDM/CogVideo at 51c42e9 (branch `CogVideo`), `cogvideo_pipeline.py`.
Legend: B films, T text tokens, G frames that are given, F codes of a frame, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mixins.dual_channel import FrameMemory
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.sampling.codes import CodeChoice

IN_BETWEEN = (0, 2, 4, 1, 3)
"""Stage 2: three frames, and then those between them."""


@torch.inference_mode()
def write_frames(
    model: ImageTokenModel,
    text: Tensor,
    given: Tensor,
    *,
    order: Sequence[int],
    start: int,
    choice: CodeChoice,
    generator: torch.Generator,
    text_weight: float,
    guide: Tensor | None = None,
    guidance: float = 1.0,
    second: bool = True,
) -> Iterator[Tensor]:
    """The codes [B, F] of each frame that is made; who stops listening stops.

    Args:
        text: [T], without `<start_of_image>`.
        given: codes [B, G, F] of the first G frames of `order`.
        order: the numbers of the frames, by their places in the film, in the order in which they are read and made.
        start: id of `<start_of_image>`, which stands at the first place of each frame.
        text_weight: see the model.
        guide: [T'], another text, whose logits are moved away from by `guidance` times the difference.
        second: see the model.
    """
    rows, count, size = given.shape
    texts = [text] if guide is None else [text, guide]
    readers = [_Reader(model, one, given, order, start, text_weight=text_weight, second=second) for one in texts]
    for number in order[count:]:
        first = model.config.frame_start + size * number
        ids, codes = given.new_full((rows, 1), start), []
        for position in range(first, first + size):
            told, *without = (reader.read(ids, position) for reader in readers)
            logits = without[0] + guidance * (told - without[0]) if without else told
            codes.append(choice.draw(logits, generator))
            ids = codes[-1].unsqueeze(1)
        yield torch.stack(codes, dim=1)


class _Reader:
    """A model that has read a text and frames, and reads on. Arguments as in `write_frames`."""

    def __init__(
        self, model: ImageTokenModel, text: Tensor, given: Tensor, order: Sequence[int], start: int, *,
        text_weight: float, second: bool,
    ) -> None:  # fmt: skip
        rows, count, size = given.shape
        self._model = model
        self._how = {"text_weight": text_weight, "second": second}
        layers = len(model.transformer.layers)
        self._memory = FrameMemory(layers, text=len(text), frame=size, frames=len(order))
        begins = given.new_full((rows, count, 1), start)
        frames = torch.cat((begins, given[..., :-1]), dim=2).flatten(1)
        ids = torch.cat((text.expand(rows, -1), frames), dim=1)
        places = [
            torch.arange(number * size, (number + 1) * size) + model.config.frame_start for number in order[:count]
        ]
        positions = torch.cat((torch.arange(len(text)), *places))
        self._forward(ids, positions)

    def read(self, ids: Tensor, position: int) -> Tensor:
        """One token each, [B, 1] -> the logits [B, V] of what follows."""
        return self._forward(ids, torch.tensor([position]))

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        places = positions.unsqueeze(0).to(ids.device)
        logits = self._model(input_ids=ids, position_ids=places, memory=self._memory, **self._how)[0][:, -1]
        self._memory.advance(ids.shape[1])
        return logits
