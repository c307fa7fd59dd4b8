"""How a model wants its sequence: what stands around an image's tokens, how positions count, who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sat_models.config.images import ImagePlan


@dataclass(frozen=True, kw_only=True)
class SequenceForm:
    """The form of one model's token sequence; `processing.layout` builds it.

    Attributes:
        begin: the sequence starts with the tokenizer's begin token, if it has one.
        markers: learned vectors around an image's tokens, which take a place each: 2 (begin and end of image) or 0.
        experts: tokens are routed by `vision_expert_mask`.
        shared_position: the tokens of one image share a position.
        slot_id: token id that stands where an image's embeddings go.
        marker_ids: token ids that stand where the two markers go; None: `slot_id`.
        suffix: ids between prompt and answer (the mask and start tokens of a GLM).
        prefix_attention: all before the last of `suffix` see each other, and positions have two rows (GLM).
        several_images: the released weights have seen several images in a prompt.
        boxes: how the family writes boxes: a name of `processing.box_forms.BOX_FORMS`.
        penalises_text_prompts: a repetition penalty counts the tokens of a prompt without images, too.
    """

    begin: bool = True
    markers: int = 2
    experts: bool = True
    shared_position: bool = True
    slot_id: int = 0
    marker_ids: tuple[int, int] | None = None
    suffix: tuple[int, ...] = ()
    prefix_attention: bool = False
    several_images: bool = False
    boxes: str = "thousand"
    penalises_text_prompts: bool = False

    def with_slot(self, slot_id: int) -> SequenceForm:
        """This form with another id in the slots."""
        return replace(self, slot_id=slot_id)

    def image_tokens(self, plan: ImagePlan) -> int:
        """Places that an image takes in the sequence."""
        return plan.length + self.markers + len(plan.before) + len(plan.after)

    def fixed_tokens(self, images: Sequence[ImagePlan]) -> int:
        """Tokens of a prompt besides its text."""
        return int(self.begin) + sum(map(self.image_tokens, images)) + len(self.suffix)


COGVLM_FORM = SequenceForm()
"""`BOS, (BOI image EOI) per image, text`, the tokens of an image at one position."""

PLAIN_FORM = SequenceForm(markers=0, experts=False, shared_position=False)
"""`BOS, text, image, text`, counted through: a plain language model that reads image features as tokens."""
