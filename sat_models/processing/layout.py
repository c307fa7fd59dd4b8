"""Token ids -> sequence layout: image slots, masks, positions, labels. Training and inference share this one place.

One sample is `BOS, (BOI, image x L, EOI) per image, text`. Legend: B batch, S tokens, N pictures in the batch
(row by row, left to right), L image tokens per picture.

    position in sequence   BOS  BOI  image x L  EOI  text
    image_embed_mask        0    1       1       1    0     embedding comes from the picture
    vision_expert_mask      0    1       1       0    0     routed to the visual expert
    image_rope_mask         0    0       1       0    0     all share one position
    position_ids            0    1     2 (all)   3    4, 5, ...

Source: CogVLM (arXiv 2311.03079) section 2.1 and the repository at f7283b2, pinned by the golden data. We differ in
padding a batch to its longest sample (the originals pad to `max_length`), in training every answer of a dialogue, and
in allowing several pictures or none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

logger = logging.getLogger(__name__)

IGNORE = -100
"""Label of a position that is not trained."""
SLOT_ID = 0
"""Token id that stands in BOI, image and EOI positions; its embedding is overwritten."""
MIN_ANSWER_ROOM = 10
"""A training prompt longer than `max_length` minus this is rejected."""
TAIL_ROOM = 4
"""Prompt and answer are cut to `max_length` minus this before EOS is put behind (where the originals cut)."""


@dataclass
class TokenLayout:
    """One sample, every field a long tensor [S]; `labels` (unshifted, -100 = not trained) only in training."""

    input_ids: Tensor
    position_ids: Tensor
    image_embed_mask: Tensor
    vision_expert_mask: Tensor
    image_rope_mask: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass
class VLMInputs:
    """What a model of the zoo reads, with its batch dimension.

    Attributes:
        input_ids, position_ids: [B, S] long.
        image_embed_mask, vision_expert_mask: [B, S] long, 0 or 1 (see the table at the top of this file).
        vision_image: [N, 3, H, W] normalised pixels, N pictures in the order of their spans; None without pictures.
        cross_image: [N, 3, H2, W2] for the high-resolution branch of CogAgent, else None.
        attention_mask: [B or 1, 1, S, S] with 1 = may look; None is causal.
        labels: [B, S] long for training, unshifted, -100 where not trained; not part of `model_kwargs`.
    """

    input_ids: Tensor
    position_ids: Tensor
    image_embed_mask: Tensor
    vision_expert_mask: Tensor
    vision_image: Tensor | None = None
    cross_image: Tensor | None = None
    attention_mask: Tensor | None = None
    labels: Tensor | None = None

    @classmethod
    def from_layout(
        cls, layout: TokenLayout, *, vision_image: Tensor | None = None, cross_image: Tensor | None = None
    ) -> VLMInputs:
        """A batch of one."""
        return cls(
            input_ids=layout.input_ids[None],
            position_ids=layout.position_ids[None],
            image_embed_mask=layout.image_embed_mask[None],
            vision_expert_mask=layout.vision_expert_mask[None],
            vision_image=vision_image,
            cross_image=cross_image,
            labels=None if layout.labels is None else layout.labels[None],
        )

    @property
    def length(self) -> int:
        """S, padding included."""
        return int(self.input_ids.shape[1])

    @property
    def batch_size(self) -> int:
        """B."""
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VLMInputs:
        """A copy on `device`; `dtype` is for the pixels alone."""
        moved = {name: t.to(device) if t is not None else None for name, t in vars(self).items()}
        for name in ("vision_image", "cross_image"):
            if moved[name] is not None and dtype is not None:
                moved[name] = moved[name].to(dtype)
        return replace(self, **moved)

    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `model(**kwargs)`; pictures that are not there are left out, labels always."""
        kwargs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "vision_expert_mask": self.vision_expert_mask,
            "image_embed_mask": self.image_embed_mask,
        }
        for name in ("vision_image", "cross_image"):
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        return kwargs


def layout_prompt(
    text_ids: Sequence[int], image_length: int, *, num_images: int = 1, bos_id: int, slot_id: int = SLOT_ID
) -> TokenLayout:
    """Layout of a prompt: BOS, one span per picture, text.

    Args:
        text_ids: ids of the text after the pictures, no special tokens.
        image_length: L, image tokens per picture (`(size / patch) ** 2`), BOI and EOI not counted.
        num_images: 0 is text only; more than one is allowed with a warning.
    """
    if num_images > 1:
        _warn_several_images(num_images)
    span = image_length + 2
    head = [0] * (1 + num_images * span)
    embed, expert, rope = list(head), list(head), list(head)
    for start in range(1, len(head), span):
        embed[start : start + span] = [1] * span
        expert[start : start + span - 1] = [1] * (span - 1)
        rope[start + 1 : start + span - 1] = [1] * image_length
    text = [0] * len(text_ids)
    rope_mask = torch.tensor(rope + text)
    return TokenLayout(
        input_ids=torch.tensor([bos_id] + [slot_id] * (num_images * span) + list(text_ids)),
        position_ids=positions_of(rope_mask),
        image_embed_mask=torch.tensor(embed + text),
        vision_expert_mask=torch.tensor(expert + text),
        image_rope_mask=rope_mask,
    )


def positions_of(image_rope_mask: Tensor) -> Tensor:
    """Position ids [S] of a rope mask [S]: counted up from 0, image tokens of one picture sharing one position."""
    repeats = torch.zeros_like(image_rope_mask)
    repeats[1:] = image_rope_mask[1:] * image_rope_mask[:-1]
    return torch.cumsum(1 - repeats, 0) - 1


def prompt_length(num_text: int, image_length: int, num_images: int) -> int:
    """Tokens of a prompt with `num_text` text tokens: BOS, spans, text."""
    return 1 + num_images * (image_length + 2) + num_text


def layout_training(
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    image_length: int,
    *,
    bos_id: int,
    eos_id: int,
    max_length: int,
    num_images: int = 1,
    past_answers: Sequence[tuple[int, int]] = (),
    slot_id: int = SLOT_ID,
) -> TokenLayout:
    """Layout of a training sample, not padded: prompt, answer, EOS, and the labels.

    The last answer and its EOS are trained. So is each earlier answer in the prompt; at its end the *target* is EOS
    while the input goes on with the next turn's text, which is what the model reads in a conversation.

    Args:
        prompt_ids: text of the prompt, history included, no special tokens.
        answer_ids: the last answer; cut so that prompt, answer and EOS take at most `max_length - 3` tokens.
        past_answers: (start, end) index ranges of earlier answers within `prompt_ids`.

    Raises:
        InputError: the prompt takes more than `max_length - 10` tokens.
    """
    context = prompt_length(len(prompt_ids), image_length, num_images)
    if context > max_length - MIN_ANSWER_ROOM:
        raise InputError(
            f"The prompt takes {context} tokens ({num_images} picture(s), {len(prompt_ids)} of text) but max_length "
            f"{max_length} allows {max_length - MIN_ANSWER_ROOM} so that an answer fits. Raise max_length to "
            f"{context + MIN_ANSWER_ROOM} or more, or shorten the prompt."
        )
    answer = [*answer_ids[: max_length - TAIL_ROOM - context], eos_id]
    layout = layout_prompt([*prompt_ids, *answer], image_length, num_images=num_images, bos_id=bos_id, slot_id=slot_id)
    labels = torch.full_like(layout.input_ids, IGNORE)
    labels[context:] = layout.input_ids[context:]
    offset = context - len(prompt_ids)
    for start, end in past_answers:
        labels[offset + start : offset + end] = layout.input_ids[offset + start : offset + end]
        labels[offset + end] = eos_id
    return replace(layout, labels=labels)


def collate(samples: Sequence[VLMInputs], pad_id: int, pad_to: int | None = None, *, side: str = "right") -> VLMInputs:
    """One batch of several, padded to the longest (or to `pad_to`).

    Padding has token `pad_id`, masks 0 and label -100. On the right its positions count on and the mask stays
    causal, so no real token sees it. On the left (for generating in step) its positions are 0 and an explicit mask
    hides it.

    Args:
        samples: of any batch size; pictures are joined in order, so N may differ from B.
        side: "right" or "left".

    Raises:
        InputError: no samples, one longer than `pad_to`, or labels in some only.
    """
    if not samples:
        raise InputError("A batch needs at least one sample; got none.")
    longest = max(sample.length for sample in samples)
    length = longest if pad_to is None else pad_to
    if longest > length:
        raise InputError(f"A sample has {longest} tokens, more than pad_to={length}. Raise pad_to or cut the sample.")
    if side not in ("right", "left"):
        raise ValueError(f"side is '{side}'; it must be 'right' or 'left'.")
    if len({sample.labels is None for sample in samples}) > 1:
        raise InputError("Samples with and without labels cannot share a batch; collate them apart.")
    padded = [_pad(sample, length, pad_id, left=side == "left") for sample in samples]
    first = padded[0]
    merged: dict[str, Any] = {name: _join([getattr(p, name) for p in padded]) for name in vars(first)}
    return VLMInputs(**merged)


def _pad(sample: VLMInputs, length: int, pad_id: int, *, left: bool) -> VLMInputs:
    """`sample` with S = `length`; on the left always with an attention mask, so that a batch agrees."""
    extra = length - sample.length
    if sample.attention_mask is not None:
        raise InputError("collate builds its own attention mask; give it samples without one.")

    def fill(t: Tensor | None, value: int) -> Tensor | None:
        return None if t is None else torch.nn.functional.pad(t, (extra, 0) if left else (0, extra), value=value)

    positions = fill(sample.position_ids, 0)
    if extra and not left:
        positions[:, -extra:] = sample.position_ids[:, -1:] + torch.arange(1, extra + 1, device=positions.device)
    mask = None
    if left:
        mask = torch.ones(length, length, dtype=torch.long).tril()
        mask[:, :extra] = 0
        mask.fill_diagonal_(1)  # a padding row looks at itself: an empty row would be NaN
        mask = mask.expand(sample.batch_size, 1, length, length)
    return replace(
        sample,
        input_ids=fill(sample.input_ids, pad_id),
        position_ids=positions,
        image_embed_mask=fill(sample.image_embed_mask, 0),
        vision_expert_mask=fill(sample.vision_expert_mask, 0),
        labels=fill(sample.labels, IGNORE),
        attention_mask=mask,
    )


def _join(tensors: list[Tensor | None]) -> Tensor | None:
    """Concatenated along the first dimension, samples without one skipped."""
    present = [t for t in tensors if t is not None]
    return torch.cat(present) if present else None


@functools.cache
def _warn_several_images(count: int) -> None:
    """Says once per count what to expect of several pictures."""
    logger.warning(
        "%d pictures in one prompt: the released weights were trained with one, so answers may mix the pictures up or "
        "ignore some. Fine-tune on such prompts, or ask about one picture at a time.",
        count,
    )
