"""Keys of entries and messages of training data beside the texts: which say whether an answer is trained, and which
would change what is learned but are read by nobody here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.training.records import EntryError

TRAINED_KEYS = ("loss", "weight", "train", "train_on_turn")
"""Keys that say if an answer is trained."""
_FILMS = ("video", "videos", "frames", "audio", "audios", "speech")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_CHOICES = ("rejected", "rejected_response", "rejected_messages", "rejected_images", "chosen")
_BOXES = ("bbox", "bboxes", "boxes", "polygons", "segmentation", "keypoints")
_MASKS = ("loss_scale", "loss_mask", "mask", "masked", "train_detail", "sample_weight")
_WORDS = ("reasoning_content", "system_prompt", "system_message", "instruction")
OF_ENTRIES = ("objects",)
"""Keys that are read where they stand in an entry, and not in a message."""
UNREAD = (*_FILMS, *_TOOLS, *_CHOICES, *_BOXES, *_MASKS, *_WORDS)
"""Keys of an entry or a message that change what is learned, and that are not read."""
ANSWER_KEYS = ("text", "label", "answer", "response")
"""Keys of the answer of an entry without a dialogue."""
_LIKED = ("label", "kto_tag", "desirable")
"""Keys that say if people liked the answer."""


def says_nothing(value: Any) -> bool:
    """True for what a key holds that might as well be absent."""
    return value in (None, False, "", "[]", "{}", "null", [], {})


def refuse_unread(fields: Mapping[str, Any], where: str = "") -> None:
    """Keys that nobody reads may be there where they say nothing.

    Args:
        where: of a message, such as "'messages' item 1: "; "" for an entry.

    Raises:
        EntryError: one says something.
    """
    for key in (*UNREAD, *(OF_ENTRIES if where else ())):
        if not says_nothing(fields.get(key)):
            raise EntryError(
                "fields", f"{where}'{key}' is {fields[key]!a:.60}, which is not read here; remove it or the sample"
            )
    for key in _LIKED:
        if fields.get(key) is False:
            raise EntryError("fields", f"{where}'{key}' is false: the answer is one to avoid; remove the sample")


def is_trained(fields: Mapping[str, Any], where: str, *, answer: bool = True) -> bool:
    """True if an answer is trained, as `TRAINED_KEYS` say; without them it is.

    Args:
        answer: whether these are the fields of an answer (or of an entry).

    Raises:
        EntryError: a value that is neither true nor false, or a question that shall be trained.
    """
    trained = True
    for key in TRAINED_KEYS:
        value = fields.get(key)
        if value is None:
            continue
        if value not in (0, 1) or (value == 1 and not answer):
            allowed = "true or false (1 or 0)" if answer else "false or left out, since answers alone are trained"
            raise EntryError("fields", f"{where}'{key}' is {value!a:.40}; it must be {allowed}")
        trained &= bool(value) or not answer
    return trained
