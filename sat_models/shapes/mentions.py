"""Which tokens of a question or an answer mean an object of the picture: the last one of `the red circle`, of `the
circle` where there is one, of `the red object`, and of its box.

Training tells the language model at each such token what it means and where that lies (`recipe`). Without it a lookup
is learnt from the answer alone, a bit or two for a whole question, and the lookups that are not learnt first never are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from sat_models.shapes.samples import Mention, TextTokenizer, object_classes
from sat_models.shapes.scenes import COLORS, FORMS, Scene, ShapeObject

BOX_TOLERANCE = 20
"""Of 1000: a box in a question is off by at most 12 and a rounded one by 5; objects stand further apart."""
BOX_TOKENS = 15  # four numbers of three digits and the three commas between them


class _Words(NamedTuple):
    colors: dict[int, str]
    forms: dict[int, str]
    things: frozenset[int]
    digits: dict[int, int]
    box_end: int


def find_mentions(tokenizer: TextTokenizer, ids: Sequence[int], scene: Scene) -> tuple[Mention, ...]:
    """The mentions in a text about the scene, in order. What may mean several objects is none."""
    words, found = _words(tokenizer), []
    for index, token in enumerate(ids):
        color = words.colors.get(ids[index - 1]) if index else None
        if token in words.forms:
            meant = [o for o in scene.objects if o.form == words.forms[token] and color in (None, o.color)]
        elif token in words.things and color:
            meant = [o for o in scene.objects if o.color == color]
        elif token == words.box_end:
            meant = _at_box(words, ids[max(0, index - BOX_TOKENS) : index], scene)
        else:
            continue
        if len(meant) == 1:
            found.append(Mention(index, object_classes(meant[0]), scene.box_999(meant[0])))
        elif not meant and color and token in words.forms:
            found.append(Mention(index, (0, 0, 0, 0), (0, 0, 0, 0)))
    return tuple(found)


def _at_box(words: _Words, ids: Sequence[int], scene: Scene) -> list[ShapeObject]:
    digits = [words.digits[token] for token in ids if token in words.digits]
    if len(digits) != 12:
        return []
    box = [100 * a + 10 * b + c for a, b, c in zip(*[iter(digits)] * 3, strict=True)]
    return [
        obj
        for obj in scene.objects
        if max(abs(value - true) for value, true in zip(box, scene.box_999(obj), strict=True)) <= BOX_TOLERANCE
    ]


@functools.lru_cache(maxsize=8)
def _words(tokenizer: TextTokenizer) -> _Words:
    def piece(word: str) -> int:
        return tokenizer.encode(word)[-1]

    return _Words(
        {piece(color): color for color in COLORS},
        {piece(form): form for form in FORMS},
        frozenset(map(piece, ("object", "shape"))),
        {piece(f"0{digit}"): digit for digit in range(10)},
        piece("[[000,000,000,000]]"),
    )
