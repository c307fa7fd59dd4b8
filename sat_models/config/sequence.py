"""How a model wants its sequence: what stands around a picture's tokens, how positions count, who sees whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SequenceForm:
    """The form of one model's token sequence; `processing.layout` builds it.

    Attributes:
        begin: the sequence starts with the tokenizer's begin token.
        markers: learned vectors around a picture's tokens, which take a place each: 2 (begin and end of image) or 0.
        experts: tokens are routed by `vision_expert_mask`.
        shared_position: the tokens of one picture share a position.
        slot_id: token id that stands where a picture's embeddings go.
        around: ids right before and right after each picture.
        suffix: ids between prompt and answer (the mask and start tokens of a GLM).
        prefix_attention: all before the last of `suffix` see each other, and positions have two rows (GLM).
        fit: how a picture becomes a square: "stretch" it, "pad" it with the mean colour, or "crop" its middle.
    """

    begin: bool = True
    markers: int = 2
    experts: bool = True
    shared_position: bool = True
    slot_id: int = 0
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    suffix: tuple[int, ...] = ()
    prefix_attention: bool = False
    fit: Literal["stretch", "pad", "crop"] = "stretch"

    def picture_tokens(self, image_length: int) -> int:
        """Places that a picture of `image_length` tokens takes in the sequence."""
        return image_length + self.markers + len(self.around[0]) + len(self.around[1])

    def fixed_tokens(self, image_length: int, num_images: int) -> int:
        """Tokens of a prompt besides its text."""
        return int(self.begin) + num_images * self.picture_tokens(image_length) + len(self.suffix)


COGVLM_FORM = SequenceForm()
"""`BOS, (BOI image EOI) per picture, text`, the tokens of a picture at one position."""

PLAIN_FORM = SequenceForm(markers=0, experts=False, shared_position=False)
"""`BOS, text, image, text`, counted through: a plain language model that reads image features as tokens."""
