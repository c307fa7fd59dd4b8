"""CogView2's three models: CogLM, direct and iterative super-resolution (github.com/THUDM/CogView2, d92dbad).

Legend: B batch, S tokens, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.extra_positions import ExtraPositionMixin
from mixins.grid_attention import DirectGridMixin, IterativeGridMixin
from mixins.kv_cache import CACHE_NAME
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogview2.config import CogLMConfig, DirectSRConfig, IterativeSRConfig, SuperResolutionConfig
from sat_models.models.common.image_tokens import ImageTokenModel, bias_of


class CogLMModel(ImageTokenModel):
    """Text that sees all of itself, then an image's codes one after the other."""

    config_class = CogLMConfig
    does = "write"

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        text_weight: float = 0.0,
        text: int | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Logits of the codes that follow, as the first element of a list: [B, S, V], fp32.

        Args:
            input_ids: [B, S]; with a cache (`kv_cache`), the new tokens.
            position_ids: [B or 1, S]: 0, 1, … in the text; 512, 513, … from `<start_of_image>` on.
            attention_mask: [B or 1, 1, S, cached + S], true = may look; None: all see the text and what is before them.
            text_weight: added to the scores towards the text (1.4 in the released sampler).
            text: tokens of the text; None: as many as the positions of the first row say.
        """
        cached = self.mixins[CACHE_NAME].length if CACHE_NAME in self.mixins else 0
        if text is None:
            text = int((position_ids[0] < self.config.image_start).sum())
        if attention_mask is None:
            place = torch.arange(cached + position_ids.shape[1], device=position_ids.device)
            attention_mask = ((place <= place[cached:, None]) | (place < text))[None, None]
        dtype = self.transformer.position_embeddings.weight.dtype
        bias = bias_of(attention_mask.bool(), dtype, text=text, text_weight=text_weight)
        return self._run(input_ids, position_ids, bias, **kwargs)


class SuperResolutionModel(ImageTokenModel):
    """The common part of both: text, padded in front, and a large image whose positions have a table of their own."""

    config: SuperResolutionConfig

    def __init__(
        self, config: SuperResolutionConfig, transformer: BaseTransformer | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config, transformer, **kwargs)
        positions = ExtraPositionMixin(config.extra_positions, config.hidden_size, config.max_sequence_length)
        self.add_mixin("extra_position_embedding", positions)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> list[Any]:
        """Logits of all codes, as the first element of a list: [B, S, V], fp32.

        Args:
            input_ids: [B, S]; S is the end of the layout.
            position_ids: [B or 1, S]: 0 in the padding, 0, 1, … in the text; the class says how they go on.
            attention_mask: [B or 1, 1, F, F] of the F tokens before the large image, true = may look; None: what the
                positions say.

        Raises:
            ValueError: a sequence of another length.
        """
        if input_ids.shape[1] != self.config.layout[-1]:
            raise ValueError(f"{input_ids.shape[1]} tokens; a sequence of this model has {self.config.layout[-1]}")
        may_look = self._first_part(position_ids) if attention_mask is None else attention_mask.bool()
        bias = bias_of(may_look, self.transformer.position_embeddings.weight.dtype)
        return self._run(input_ids, position_ids, bias, **kwargs)

    def _padding(self, position_ids: Tensor) -> Tensor:
        """True in the padding, [B or 1, F]: all places with position 0 but the last, which begins the text."""
        text = position_ids[:, : self.config.layout[0]]
        count = (text == 0).sum(dim=1, keepdim=True) - 1
        return torch.arange(self.config.first, device=text.device) < count

    def _first_part(self, position_ids: Tensor) -> Tensor:
        raise NotImplementedError


class DirectSRModel(SuperResolutionModel):
    """[padding, text] to 96, 400 codes of the small image from position 513 on, and 3600 times `<start_of_image>` from
    1024 on, whose logits are the large image's codes."""

    config_class = DirectSRConfig
    does = "enlarge"

    def __init__(self, config: DirectSRConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        attention = DirectGridMixin(
            config.num_layers, config.hidden_size, config.num_attention_heads, first=config.first,
            small=config.small_cells, window=config.window, small_window=config.small_window,
        )  # fmt: skip
        self.add_mixin("attention_plus", attention)

    def _first_part(self, position_ids: Tensor) -> Tensor:
        """Text sees text, the small image sees all; nobody but the padding sees the padding."""
        padding = self._padding(position_ids)
        text = torch.arange(self.config.first, device=padding.device) < self.config.layout[0]
        may_look = (text.unsqueeze(0) | ~text.unsqueeze(1)) & (~padding.unsqueeze(1) | padding.unsqueeze(2))
        return may_look.unsqueeze(1)


class IterativeSRModel(SuperResolutionModel):
    """Text cut or padded to 16, and 3600 codes from position 1024 on, `<start_of_image>` where one is to be made."""

    config_class = IterativeSRConfig
    does = "refine"

    def __init__(self, config: IterativeSRConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        self.add_mixin("grid_attention", IterativeGridMixin(first=config.first, window=config.window))

    def _first_part(self, position_ids: Tensor) -> Tensor:
        """Text sees all of itself, and nobody sees the padding."""
        padding = self._padding(position_ids)
        return (~padding)[:, None, None].expand(-1, 1, self.config.first, -1)
