"""Token ids -> sequence layout: image slots, masks, positions, labels. Training and inference share this one place.

What stands where is the `SequenceForm` of the model's config and the `ImagePlan` of each image. One sample of CogVLM is
`BOS, (BOI, image x L, EOI) per image, text`. Legend: B batch, S tokens, N images in the batch (row by row, left to
right), L tokens of an image.

    position in sequence   BOS  BOI  image x L  EOI  text
    image_embed_mask        0    1       1       1    0     embedding comes from the picture
    vision_expert_mask      0    1       1       0    0     routed to the visual expert
    image_rope_mask         0    0       1       0    0     all share one position
    position_ids            0    1     2 (all)   3    4, 5, ...

Other models have no BOI, EOI and experts, count positions through, and may have text before a picture. A GLM's
positions are [2, S]: places in the context, places in the answer; its context sees itself (see `block_positions`).

Source: CogVLM (arXiv 2311.03079) section 2.1 and the repository at f7283b2, pinned by the golden data. We differ in
padding a batch to its longest sample (the originals pad to `max_length`), in training every answer of a dialogue, and
in allowing several pictures or none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sat_models.config import COGVLM_FORM, ImagePlan, SequenceForm
from sat_models.errors import InputError
from sat_models.processing.inputs import TokenLayout, VLMInputs

logger = logging.getLogger(__name__)

IGNORE = -100
"""Label of a position that is not trained."""
MIN_ANSWER_ROOM = 10
"""A training prompt longer than `max_length` minus this is rejected."""
TAIL_ROOM = 4
"""Prompt and answer are cut to `max_length` minus this before EOS is put behind (where the originals cut)."""


Piece = Sequence[int] | ImagePlan
"""A part of a prompt: ids of text, or an image."""


def layout_prompt(
    pieces: Sequence[Piece],
    *,
    bos_id: int | None,
    answer_ids: Sequence[int] = (),
    form: SequenceForm = COGVLM_FORM,
) -> TokenLayout:
    """Layout of a prompt; for CogVLM: BOS, one span per image, text.

    Args:
        pieces: the prompt in order; text without the ids that `form` and the images' plans say stand around it.
        bos_id: the tokenizer's begin token; None without.
        answer_ids: what follows the prompt, in training.
        form: of the model.
    """
    if (num_images := len(images_of(pieces))) > 1 and not form.several_images:
        _warn_several_images(num_images)
    begin = (bos_id,) if form.begin and bos_id is not None else ()
    prompt = [_image(piece, form) if isinstance(piece, ImagePlan) else _text(piece) for piece in pieces]
    tokens = torch.cat([_text(begin), *prompt, _text(form.suffix), _text(answer_ids)])
    context = len(tokens) - len(answer_ids)
    ids, embed, expert, rope = (column.contiguous() for column in tokens.unbind(1))
    if not form.shared_position:
        rope = torch.zeros_like(rope)
    layout = TokenLayout(ids, positions_of(rope), embed, expert if form.experts else None, rope, num_images=num_images)
    if not form.prefix_attention:
        return layout
    positions, mask = block_positions(context - 1, len(tokens), mask_position=context - len(form.suffix))
    return replace(layout, position_ids=positions, attention_mask=mask)


def images_of(pieces: Sequence[Piece]) -> list[ImagePlan]:
    """The images of a prompt, in order."""
    return [piece for piece in pieces if isinstance(piece, ImagePlan)]


def _image(plan: ImagePlan, form: SequenceForm) -> Tensor:
    """(id, embedded, expert, shared position) of each place that an image takes, [places, 4]."""
    boi_id, eoi_id = form.marker_ids or (form.slot_id, form.slot_id)
    slots = torch.tensor([(form.slot_id, 1, 1, 1)]).expand(plan.length, 4)
    if form.markers:
        slots = torch.cat((torch.tensor([(boi_id, 1, 1, 0)]), slots, torch.tensor([(eoi_id, 1, 0, 0)])))
    return torch.cat((_text(plan.before), slots, _text(plan.after)))


def _text(ids: Sequence[int]) -> Tensor:
    """The same of text."""
    return torch.nn.functional.pad(torch.tensor(tuple(ids), dtype=torch.long).unsqueeze(1), (0, 3))


def block_positions(context: int, length: int, *, mask_position: int) -> tuple[Tensor, Tensor]:
    """Positions [2, S] and mask [S, S] (1 = may look) of a GLM.

    Args:
        context: tokens before `<sop>`, which see each other and are seen by all.
        length: S.
        mask_position: where `[gMASK]` stands; the first row stays there in the answer.
    """
    tokens = torch.arange(length)
    answer = (tokens - context + 1).clamp(min=0)
    mask = torch.ones(length, length, dtype=torch.long).tril()
    mask[:, :context] = 1
    return torch.stack((torch.where(answer > 0, mask_position, tokens), answer)), mask


def positions_of(image_rope_mask: Tensor) -> Tensor:
    """Position ids [S] of a rope mask [S]: counted up from 0, image tokens of one picture sharing one position."""
    repeats = torch.zeros_like(image_rope_mask)
    repeats[1:] = image_rope_mask[1:] * image_rope_mask[:-1]
    return torch.cumsum(1 - repeats, 0) - 1


def prompt_length(pieces: Sequence[Piece], form: SequenceForm = COGVLM_FORM) -> int:
    """Tokens of a prompt, a begin token included."""
    return form.fixed_tokens(images_of(pieces)) + text_length(pieces)


def text_length(pieces: Sequence[Piece]) -> int:
    """Tokens of a prompt's text."""
    return sum(len(piece) for piece in pieces if not isinstance(piece, ImagePlan))


def layout_training(
    pieces: Sequence[Piece],
    answer_ids: Sequence[int],
    *,
    bos_id: int | None,
    eos_id: int,
    max_length: int,
    past_answers: Sequence[tuple[int, int, int]] = (),
    ending: Sequence[int] = (),
    form: SequenceForm = COGVLM_FORM,
) -> TokenLayout:
    """Layout of a training sample, not padded: prompt, answer, EOS, and the labels.

    The last answer and its EOS are trained. So is each earlier answer in the prompt; at its end the *target* is EOS
    while the input goes on with the next turn's text, which is what the model reads in a conversation.

    Args:
        pieces: the prompt as in `layout_prompt`, history included.
        answer_ids: the last answer; cut so that prompt, answer, EOS and ending take at most `max_length - 3` tokens.
        past_answers: where earlier answers are: number of the piece, start and end in it.
        ending: ids behind the last EOS, trained as it is.
        bos_id, form: as `layout_prompt`.

    Raises:
        InputError: the prompt takes more than `max_length - 10` tokens.
    """
    context = prompt_length(pieces, form)
    if context > max_length - MIN_ANSWER_ROOM:
        raise InputError(
            f"The prompt takes {context} tokens ({len(images_of(pieces))} picture(s), {text_length(pieces)} of text) "
            f"but max_length {max_length} allows {max_length - MIN_ANSWER_ROOM} so that an answer fits. Raise "
            f"max_length to {context + MIN_ANSWER_ROOM} or more, or shorten the prompt."
        )
    answer = [*answer_ids[: max(0, max_length - TAIL_ROOM - context - len(ending))], eos_id, *ending]
    layout = layout_prompt(pieces, bos_id=bos_id, answer_ids=answer, form=form)
    context = len(layout) - len(answer)
    labels = torch.full_like(layout.input_ids, IGNORE)
    labels[context:] = layout.input_ids[context:]
    for number, start, end in past_answers:
        offset = context - len(form.suffix) - _places(pieces[number:], form)
        labels[offset + start : offset + end] = layout.input_ids[offset + start : offset + end]
        labels[offset + end] = eos_id
    return replace(layout, labels=labels)


def _places(pieces: Sequence[Piece], form: SequenceForm) -> int:
    """Tokens of some pieces."""
    return text_length(pieces) + sum(map(form.image_tokens, images_of(pieces)))


def collate(samples: Sequence[VLMInputs], pad_id: int, pad_to: int | None = None, *, side: str = "right") -> VLMInputs:
    """One batch of several, padded to the longest (or to `pad_to`).

    Padding has token `pad_id`, masks 0 and label -100. On the right its positions count on and a causal mask stays
    causal, so no real token sees it. On the left (for generating in step) its positions are 0 and an explicit mask
    hides it, as it does on either side for samples that have a mask of their own.

    Args:
        samples: of any batch size; pictures are joined in order, so N may differ from B.
        side: "right" or "left".

    Raises:
        InputError: no samples, one longer than `pad_to`, or labels or masks in some only.
        ValueError: another side, or lanes padded on the left.
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
    if len({sample.attention_mask is None for sample in samples}) > 1:
        raise InputError("Samples with and without an attention mask cannot share a batch; collate them apart.")
    padded = [_pad(sample, length, pad_id, left=side == "left") for sample in _in_step(samples, length, side)]
    first = padded[0]
    merged: dict[str, Any] = {name: _join([getattr(p, name) for p in padded]) for name in vars(first)}
    return VLMInputs(**merged)


def _in_step(samples: Sequence[VLMInputs], length: int, side: str) -> Sequence[VLMInputs]:
    """Samples whose lane masks, where there are any, begin at one place and reach to `length`.

    A sample without one, the places between that one and its own lanes, and padding are causal.
    """
    if all(sample.lane_mask is None for sample in samples):
        return samples
    if side == "left":
        raise ValueError("lanes are padded on the right alone")
    starts = [s.length if s.lane_mask is None else s.length - s.lane_mask.shape[-2] for s in samples]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[min(starts) :]
    made = []
    for sample, start in zip(samples, starts, strict=True):
        mask = causal.expand(sample.batch_size, 1, -1, -1).clone()
        if sample.lane_mask is not None:
            mask[:, :, start - min(starts) : sample.length - min(starts), : sample.length] = sample.lane_mask
        made.append(replace(sample, lane_mask=mask))
    return made


def _pad(sample: VLMInputs, length: int, pad_id: int, *, left: bool) -> VLMInputs:
    """`sample` with S = `length`; on the left always with an attention mask, so that a batch agrees."""
    extra = length - sample.length

    def fill(t: Tensor | None, value: int) -> Tensor | None:
        return None if t is None else torch.nn.functional.pad(t, (extra, 0) if left else (0, extra), value=value)

    positions = fill(sample.position_ids, 0)
    if extra and not left:
        further = torch.arange(1, extra + 1, device=positions.device)
        positions[..., -extra:] = sample.position_ids[..., -1:] + further
    mask = sample.attention_mask
    if mask is None and left:
        mask = torch.ones(sample.length, sample.length, dtype=torch.long).tril()[None, None]
    if mask is not None:
        mask = torch.nn.functional.pad(mask, (extra, 0, extra, 0) if left else (0, extra, 0, extra))
        mask = mask.expand(sample.batch_size, 1, length, length).clone()
        pads = slice(0, extra) if left else slice(sample.length, length)
        mask[:, 0, pads, pads] = torch.eye(extra, dtype=mask.dtype)  # an empty row would be NaN
    return replace(
        sample,
        input_ids=fill(sample.input_ids, pad_id),
        position_ids=positions,
        image_embed_mask=fill(sample.image_embed_mask, 0),
        vision_expert_mask=fill(sample.vision_expert_mask, 0),
        labels=fill(sample.labels, IGNORE),
        attention_mask=mask,
    )


def _join(tensors: list[Tensor | list[Tensor] | None]) -> Tensor | list[Tensor] | None:
    """Concatenated along the first dimension, samples without one skipped; a list where pixels have several sizes."""
    present = [t for given in tensors if given is not None for t in (given if isinstance(given, list) else [given])]
    if len({t.shape[1:] for t in present}) > 1:
        return present
    return torch.cat(present) if present else None


@functools.cache
def _warn_several_images(count: int) -> None:
    """Says once per count what to expect of several pictures."""
    logger.warning(
        "%d pictures in one prompt: the released weights were trained with one, so answers may mix the pictures up or "
        "ignore some. Fine-tune on such prompts, or ask about one picture at a time.",
        count,
    )
