"""The error of a prompt that leaves no room for an answer."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from PIL import Image

from sat_models.config import ImageForm, ImagePlan, SequenceForm
from sat_models.errors import InputError
from sat_models.processing.image import ImageSource


def no_room(
    num_text: int,
    plans: Sequence[ImagePlan],
    sources: Sequence[ImageSource],
    *,
    images: ImageForm,
    form: SequenceForm,
    limit: int,
    at_least: bool = False,
) -> InputError | None:
    """The error of a prompt that does not leave a token of `limit` for its answer; None for one that does.

    Args:
        num_text: tokens of text.
        plans, sources: of its images; sources are open where plans depend on them.
        images, form: of the model.
        at_least: the text has more than `num_text` tokens.
    """
    fixed = form.fixed_tokens(plans)
    if fixed + num_text < limit:
        return None
    tokens = sorted({form.image_tokens(plan) for plan in plans or [images.plan()]})
    remedy = "Shorten the question or the history"
    if plans and images.most_tiles > 1:
        rest = limit - 1 - num_text - fixed + sum(map(form.image_tokens, plans))
        most = _tiles_that_fit(rest, [s.size for s in sources if isinstance(s, Image.Image)], images, form)
        few = f", or cut the image into fewer tiles: max_tiles up to {most} fits" if most else ""
        remedy += few or ", or give fewer images: even one tile of each does not fit"
    return InputError(
        f"The prompt takes {'more than ' if at_least else ''}{fixed + num_text} tokens ({len(plans)} picture(s) of "
        f"{' or '.join(map(str, tokens))}, {num_text} of text) but the context is {limit} with the answer. {remedy}.",
        hint="Or raise max_length.",
    )


def _tiles_that_fit(rest: int, sizes: Sequence[tuple[int, int]], images: ImageForm, form: SequenceForm) -> int:
    """The largest `max_tiles` with which images of these sizes take no more than `rest` tokens; 0: none."""

    def needed(most: int) -> int:
        return sum(form.image_tokens(images.plan(size, max_tiles=most)) for size in sizes)

    return bisect.bisect_right(range(1, max(rest, 0) + 1), rest, key=needed)
