"""CogVideo: CogView2's image model and a second attention over frames (github.com/THUDM/CogVideo, 5f914b7).

Frames are shifted: each begins with `<start_of_image>` in place of the last code of the frame before.

Legend: B batch, S tokens, T text tokens, A tokens of frames, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.dual_channel import DualChannelMixin
from mixins.extra_positions import ExtraPositionMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogvideo.config import CogVideoConfig
from sat_models.models.common.image_tokens import ImageTokenModel, bias_of

TEXT_WEIGHT = 1.4
"""Of the released sampler where it makes frames without guidance."""


class CogVideoModel(ImageTokenModel):
    """Both stages; the config says which."""

    config_class = CogVideoConfig

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
        **kwargs: Any,
    ) -> list[Any]:
        """Logits of the codes that follow, as the first element of a list: [B, S, V], fp32.

        The original has two ways that differ: a whole forward, as in training, and the loop that generates. The loop
        adds the text's weight in the second attention of what it makes, too, and its shifted windows end at the border
        of a frame, where those of the whole forward go on at the other side.

        Args:
            input_ids: [B, S], text first.
            position_ids: [1, S]: 0, 1, … in the text; 512 + 400 n, … in frame n, in any order of frames.
            text_weight: added to the scores towards the text; None: 0 in stage 1, `TEXT_WEIGHT` in stage 2.
            second: False switches the second attention off, as for the first frame of a film.
            given: of the loop: tokens, text included, that were there before it began. None: the whole forward.
        """
        config, size = self.config, input_ids.shape[1]
        if text_weight is None:
            text_weight = TEXT_WEIGHT if config.cogvideo_stage == 2 else 0.0
        text = int((position_ids[0] < config.frame_start).sum())
        place = torch.arange(size, device=input_ids.device)
        frame = torch.where(place < text, -1, (place - text) // config.frame_size)
        before = place.unsqueeze(0) <= place.unsqueeze(1)
        began = size if given is None else given
        whole = place < began  # what sees all of its frame, in stage 2
        whole &= (frame >= 0) & (config.cogvideo_stage == 2)
        of_text = place < text
        may_look = ((frame.unsqueeze(0) == frame.unsqueeze(1)) & (before | whole.unsqueeze(1))) | of_text
        may_look[:text] = of_text
        dtype = self.transformer.position_embeddings.weight.dtype
        biases: tuple[Tensor, ...] = ()
        if second:
            seen = before | (whole.unsqueeze(0) & whole.unsqueeze(1))
            made = place >= began
            biases = tuple(
                self._second_bias(seen & same, text, text_weight * made.to(dtype))
                for same in self._windows(place - text, given is not None)
            )
        bias = bias_of(may_look, dtype, text=text, text_weight=text_weight)[None, None]
        return self._run(input_ids, position_ids, bias, second_biases=biases, **kwargs)

    def _second_bias(self, may_look: Tensor, text: int, weights: Tensor) -> Tensor:
        """[1, 1, A, S] from [S, S]; each token has its own weight [S] towards the text, which all frames see."""
        may_look = may_look[text:].clone()
        may_look[:, :text] = True
        bias = bias_of(may_look, weights.dtype)
        bias[:, :text] += weights[text:, None]
        return bias[None, None]

    def _windows(self, place: Tensor, ends_at_border: bool) -> list[Tensor]:
        """Which tokens [S, S] share a window, in layers with and without a shift; one for all where there are none."""
        size, side = self.config.window_size, self.config.frame_side
        if size < 0:
            return [torch.ones(len(place), len(place), dtype=torch.bool, device=place.device)]
        cell = place % self.config.frame_size
        row, column = cell // side, cell % side
        shared = []
        for shift in (0, size // 2):
            window = ((row - shift) % side // size) * side + (column - shift) % side // size
            if ends_at_border:
                window = window * 4 + (row < shift) * 2 + (column < shift)
            shared.append(window.unsqueeze(0) == window.unsqueeze(1))
        return shared
