"""CogAgent: a CogVLM whose layers also read the picture at high resolution (arXiv 2312.08914)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixins.cross_image import CrossImageMixin
from mixins.kv_cache import CACHE_NAME, CrossMemory
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogagent.config import CogAgentConfig
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.vision.eva_large import EVALargeEncoder


class CogAgentModel(CogVLMModel):
    """CogVLM + "encoder", in a transformer whose layers have SAT's cross-attention between attention and MLP."""

    config_class = CogAgentConfig
    has_image_positions = True

    def __init__(
        self,
        config: CogAgentConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer, parallel_output, **config.cross_attention_args(), **kwargs)
        tower = EVALargeEncoder(config.cross_vision_args, config.cross_image_pix)
        self.add_mixin("encoder", CrossImageMixin(tower, config.num_cross_patches, config.cross_attn_hidden_size))
        self.disable_untrainable_params()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_expert_mask: Tensor | None = None,
        image_embed_mask: Tensor | None = None,
        vision_image: Tensor | None = None,
        cross_image: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """As `CogVLMModel.forward`, with the same picture twice.

        Args:
            vision_image: pixels [N, 3, H, W] that become image tokens.
            cross_image: the same pictures, [N, 3, H2, W2], for the high-resolution tower. Without pictures both are
                None: the towers are not run, and cross-attention is left out unless the key/value cache holds the
                picture of an earlier forward.

        Raises:
            ValueError: one without the other, or rows with different numbers of pictures.
        """
        _check_images(vision_image, cross_image, image_embed_mask)
        return super().forward(
            input_ids,
            position_ids,
            attention_mask,
            vision_expert_mask,
            image_embed_mask,
            vision_image,
            encoder_outputs=self._cross_memory(cross_image, input_ids.shape[0]),
            cross_attention_mask=None,  # every token sees every patch; SAT asks for the name
            **kwargs,
        )

    def _cross_memory(self, cross_image: Tensor | None, batch: int) -> Tensor | CrossMemory | None:
        """Features [B, T, V] of new pictures, or the keys and values that the cache has made of earlier ones."""
        if cross_image is not None:
            return self.get_mixin("encoder").memory(cross_image, batch)
        return self.mixins[CACHE_NAME].cross_memory if CACHE_NAME in self.mixins else None

    def disable_untrainable_params(self) -> None:
        """SAT's name: freeze what no forward reads (the high-resolution tower's last block, norm and head)."""
        for part in self.get_mixin("encoder").vit.model.never_run:
            part.requires_grad_(False)


def _check_images(vision_image: Tensor | None, cross_image: Tensor | None, image_embed_mask: Tensor | None) -> None:
    vision, cross = (None if image is None else len(image) for image in (vision_image, cross_image))
    if vision != cross:
        raise ValueError(
            f"CogAgent takes each picture in both sizes, but vision_image holds {vision} and cross_image {cross}. "
            "A Processor with cross_image_size makes both."
        )
    if image_embed_mask is None or cross is None or len(image_embed_mask) == 1:
        return
    slots = image_embed_mask.sum(dim=1)
    if bool((slots != slots[0]).any()):
        raise ValueError(
            f"the rows of this batch have different numbers of picture slots ({slots.tolist()}); CogAgent needs the "
            "same number of pictures in each row. Run rows with and without pictures apart."
        )


class FineTuneTrainCogAgentModel(CogAgentModel):
    """The name that checkpoints of the original fine-tuning script carry; the same model."""


class FineTuneTestCogAgentModel(CogAgentModel):
    """The name that checkpoints of the original fine-tuning script carry after merging; the same model."""
