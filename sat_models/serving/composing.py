"""An article with images, as the composition demo of InternLM-XComposer2 makes it.

In three steps, each a prompt of its own: the article; the lines behind which images belong (shown as `<Seg0>`, …); for
each of these one of the images that are left, by its letter. Facts: `examples/gradio_demo_composition.py` of
InternLM/InternLM-XComposer at 722228a. We differ in placing no more images than there are, and in looking for none.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from sat_models.errors import ConfigError, InputError
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.families import family_of
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

ARTICLE, PLACES, CHOICE = "xcomposer2_article", "xcomposer2_places", "xcomposer2_choice"
"""Prompt styles of the three steps."""
STOP = "[UNUSED_TOKEN_0]"
"""Ends an article besides the usual end tokens (id 92397 of the released tokenizer)."""
MOST_LINES = 60
_SHORT, _LETTER = 200, 10
"""Most tokens of the answers of the second and the third step."""


@dataclass(frozen=True)
class Section:
    """A line of an article, and the number of the image behind it."""

    text: str
    image: int | None = None


def compose(
    vlm: VLM,
    instruction: str,
    images: Sequence[Image.Image],
    *,
    options: SamplingOptions,
    num_images: int | None = None,
) -> list[Section]:
    """Write an article and place images in it; in a run of several processes, all call it.

    Args:
        vlm: an InternLM-XComposer2.
        instruction: what it is about.
        images: to be placed; they are shown in front of the instruction, too.
        options: of the article; the other steps take their sampling.
        num_images: how many to place; None leaves it to the model.

    Raises:
        ConfigError: another family.
        InputError: more images to place than there are, or as `VLM.generate`.
    """
    if ARTICLE not in family_of(vlm.config.model_class).styles:
        raise ConfigError(f"{vlm.config.model_class} writes no articles with images; an InternLM-XComposer2 does")
    if num_images is not None and num_images > len(images):
        raise InputError(f"num_images is {num_images}, but only {len(images)} image(s) were given")
    mark = vlm.processor.style(ARTICLE).mark
    asked = (mark + " ") * len(images)
    text = _ask(vlm, images, asked.strip() + instruction, ARTICLE, options)
    lines = re.sub(r"(\n\s*)+", "\n", text.strip()).split("\n")[:MOST_LINES]
    if not images:
        return [Section(line) for line in lines]
    numbered = "".join(f"<Seg{number}> {line}\n" for number, line in enumerate(lines))
    wanted = f'{asked}给定文章"{numbered}" 根据上述文章，选择适合插入图像的{num_images or ""}行'
    said = _ask(vlm, images, wanted, PLACES, replace(options, max_new_tokens=_SHORT))
    found = {int(number) for number in re.findall(r"<Seg(\d+)>", said)}
    places = sorted(place for place in found if place < len(lines))[: num_images or len(images)]
    if not places:
        logger.warning("the model named no line of the article for an image: %.80r", said)
    chosen = _choose(vlm, lines, places, images, options)
    return [Section(line, chosen.get(number)) for number, line in enumerate(lines)]


def _choose(
    vlm: VLM, lines: Sequence[str], places: Sequence[int], images: Sequence[Image.Image], options: SamplingOptions
) -> dict[int, int]:
    """The number of the image for each place; earlier choices are shown where they stand."""
    mark, chosen, before = vlm.processor.style(CHOICE).mark, dict[int, int](), list[str]()
    start = 0
    for place in places:
        before.append("".join(f"{line}\n" for line in lines[start : place + 1]))
        start = place + 1
        left = [number for number in range(len(images)) if number not in chosen.values()]
        letter = 0
        if len(left) > 1:
            candidates = "\n".join(f"{chr(ord('A') + number)}.{mark}" for number in range(len(left)))
            asked = f"根据给定上下文和候选图像，选择合适的配图：{mark.join(before)}候选图像包括: {candidates}"
            shown = [images[number] for number in (*chosen.values(), *left)]
            said = _ask(vlm, shown, asked, CHOICE, replace(options, max_new_tokens=_LETTER)).lstrip()
            letter = ord(said[0]) - ord("A") if said else 0
        chosen[place] = left[letter if 0 <= letter < len(left) else 0]
    return chosen


def _ask(vlm: VLM, images: Sequence[Image.Image], query: str, version: str, options: SamplingOptions) -> str:
    request = vlm.request(list(images) or None, query, (), version, options)
    engine = vlm.engine()
    with contextlib.suppress(ConfigError):  # a tokenizer of another size may lack it
        engine.end_ids |= {vlm.processor.tokenizer.special_id(STOP)}
    return engine.answer(request).text


def as_markdown(sections: Sequence[tuple[str, str | None]]) -> str:
    """Lines and the files of images behind them, as Markdown."""
    parts = [part for text, image in sections for part in (text, *([f"![]({image})"] if image else []))]
    return "\n\n".join(parts)
