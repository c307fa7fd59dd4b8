"""CogVideo: CogView2's image model and a second attention over frames (github.com/THUDM/CogVideo, 5f914b7).

Frames are shifted: each begins with `<start_of_image>` in place of the last code of the frame before.

Legend: B batch, S tokens, T text tokens, A tokens of frames, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.dual_channel import DualChannelMixin, FrameMemory
from mixins.extra_positions import ExtraPositionMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogvideo.config import CogVideoConfig
from sat_models.models.common.image_tokens import ImageTokenModel, bias_of

TEXT_WEIGHT = 1.4
"""Of the released sampler where it makes frames without guidance."""


class CogVideoModel(ImageTokenModel):
    """Both stages; the config says which."""

    config_class = CogVideoConfig
    does = "film"

    def __init__(self, config: CogVideoConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        first = config.frame_start + config.frame_size  # the first frame keeps the positions that an image has
        positions = ExtraPositionMixin(config.additional_seqlen, config.hidden_size, first)
        self.add_mixin("extra_position_embedding", positions)
        attention = DualChannelMixin(config.num_layers, config.hidden_size, config.num_attention_heads)
        self.add_mixin("attention_plus", attention)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *,
        text_weight: float | None = None,
        second: bool = True,
        given: int | None = None,
        memory: FrameMemory | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Logits of the codes that follow, as the first element of a list: [B, S, V], fp32.

        The original has two ways that differ: a whole forward, as in training, and the loop that generates. The loop
        adds the text's weight in the second attention of what it makes, too, and its shifted windows end at the border
        of a frame, where those of the whole forward go on at the other side. What was given to the loop is read by the
        whole forward. The released demo runs the loop.

        Args:
            input_ids: [B, S], text first; with a memory that has begun, one token.
            position_ids: [1, S]: 0, 1, … in the text; 512 + 400 n, … in frame n, in any order of frames.
            text_weight: added to the scores towards the text; None: 0 in stage 1, `TEXT_WEIGHT` in stage 2.
            second: False switches the second attention off, as for the first frame of a film.
            given: of the loop: tokens, text included, that were there before it began. None: the whole forward.
            memory: the loop, token by token: first what is given (`given` is None), then each token that is made.
        """
        if text_weight is None:
            text_weight = TEXT_WEIGHT if self.config.cogvideo_stage == 2 else 0.0
        if memory is not None and memory.length:
            biases = self._step_biases(memory, text_weight, second, input_ids.device)
        else:
            biases = self._whole_biases(position_ids, text_weight, second, given)
        bias, second_biases = biases
        return self._run(input_ids, position_ids, bias, second_biases=second_biases, memory=memory, **kwargs)

    def _whole_biases(
        self, position_ids: Tensor, text_weight: float, second: bool, given: int | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What is added to the scores of both attentions, over a whole sequence."""
        config, size = self.config, position_ids.shape[1]
        text = int((position_ids[0] < config.frame_start).sum())
        place = torch.arange(size, device=position_ids.device)
        frame = torch.where(place < text, -1, (place - text) // config.frame_size)
        before = place.unsqueeze(0) <= place.unsqueeze(1)
        made = place >= (size if given is None else given)
        whole = ~made & (frame >= 0) & (config.cogvideo_stage == 2)  # what sees all of its frame
        of_text = place < text
        may_look = ((frame.unsqueeze(0) == frame.unsqueeze(1)) & (before | whole.unsqueeze(1))) | of_text
        may_look[:text] = of_text
        bias = bias_of(may_look, self._dtype, text=text, text_weight=text_weight)[None, None]
        if not second:
            return bias, ()
        seen = before | (whole.unsqueeze(0) & whole.unsqueeze(1))
        weights = text_weight * made.to(self._dtype)
        over, ending = (self._windows(place - text, ends_at_border=ends) for ends in (False, True))
        same = [
            torch.where(
                made.unsqueeze(1), last.unsqueeze(0) == last.unsqueeze(1), all_.unsqueeze(0) == all_.unsqueeze(1)
            )
            for all_, last in zip(over, ending, strict=True)
        ]
        return bias, tuple(self._second_bias(seen & shared, text, weights) for shared in same)

    def _step_biases(
        self, memory: FrameMemory, text_weight: float, second: bool, device: torch.device
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same for one token behind what a memory holds."""
        bias = torch.zeros(1, 1, 1, memory.own_length + 1, dtype=self._dtype, device=device)
        bias[..., : memory.text] += text_weight
        if not second:
            return bias, ()
        place = torch.arange(memory.length - memory.text + 1, device=device)
        biases = []
        for window in self._windows(place, ends_at_border=True):
            may_look = torch.cat((place.new_ones(memory.text, dtype=torch.bool), window == window[-1]))
            row = bias_of(may_look, self._dtype)
            row[: memory.text] += text_weight
            biases.append(row[None, None, None])
        return bias, tuple(biases)

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.position_embeddings.weight.dtype

    def _second_bias(self, may_look: Tensor, text: int, weights: Tensor) -> Tensor:
        """[1, 1, A, S] from [S, S]; each token has its own weight [S] towards the text, which all frames see."""
        may_look = may_look[text:].clone()
        may_look[:, :text] = True
        bias = bias_of(may_look, weights.dtype)
        bias[:, :text] += weights[text:, None]
        return bias[None, None]

    def _windows(self, place: Tensor, *, ends_at_border: bool) -> list[Tensor]:
        """The window [S] of each place in the frames, in layers with and without a shift; one for all where there are
        none."""
        size, side = self.config.window_size, self.config.frame_side
        if size < 0 or self.config.cogvideo_stage == 1:
            return [torch.zeros_like(place)]
        cell = place % self.config.frame_size
        row, column = cell // side, cell % side
        windows = []
        for shift in (0, size // 2):
            window = ((row - shift) % side // size) * side + (column - shift) % side // size
            windows.append(window * 4 + (row < shift) * 2 + (column < shift) if ends_at_border else window)
        return windows
