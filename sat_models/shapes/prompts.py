"""Prompts of the world for a painter: what they ask for, how they are worded, and a scene that is what they ask for.

A prompt is made first and the scene for it, so an image of the training set is right by construction. A scene says all
that its image depends on in small whole numbers (`GRID`, `BACKGROUNDS`), which is what a painter can write down.

Prompts of two and three named objects are divided once for all: those whose names fall into one share of
`HELD_OUT` are asked in tests only, whatever their wording.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from sat_models.evaluation.wishes import NUMBERS, PLACES, Wanted, Wish, article
from sat_models.shapes.questions import MIN_SEPARATION
from sat_models.shapes.scenes import COLOR_ANCHORS, COLORS, FORMS, RGB, SIZES, Background, Scene, ShapeObject

CANVAS = 96
"""Pixels on either side."""
GRID = 2
"""Boxes lie on multiples of so many pixels."""
MOST = 3
"""Objects in an image."""
WIDTHS = {"small": (18, 24), "large": (34, 42)}
"""Of an object in pixels, first and last; of `CANVAS` as in `scenes.SIZE_RANGES`."""
HEIGHT_OF_TRIANGLE = 0.92
"""Of its width."""
_GAP = 4  # pixels between two boxes and to the border
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (150, 150, 150),
    "pink": (255, 214, 226),
    "beige": (240, 232, 208),
    "navy": (16, 20, 56),
}
KINDS = ("one", "two", "three", "places", "count")
HELD_OUT = 8
"""One of so many sets of names is for tests."""

_FRAMES = (
    "{}.", "{}", "Draw {}.", "Paint {}.", "An image of {}.", "A picture of {}.", "A picture with {}.", "Show me {}.",
    "An image with {}.", "Please draw {}.", "A photo of {}.", "A drawing of {}.", "An image showing {}.",
)  # fmt: skip
_THERE = ("There is {}.", "There are {}.")
_GROUNDS = (" on a {} background", " on {}", " in front of a {} background")
_WORDS_OF_PLACE = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
_WORDS_OF_SIZE = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
ANY_SHAPE = ("shape", "object")
"""Nouns for any of the forms."""


def sample_wish(rng: random.Random, *, kind: str | None = None, test: bool = False) -> Wish:
    """A prompt of the world.

    Args:
        rng: source of all randomness.
        kind: one of `KINDS`; None: any.
        test: of names that are held out from training, or else of the others.
    """
    kind = kind or rng.choice(KINDS)
    while True:
        things = _things(kind, rng)
        if kind in ("one", "count") or held_out(things) == test:
            break
    background = rng.choice(sorted(BACKGROUNDS)) if rng.random() < 0.15 else None
    return Wish(_worded(things, background, rng), kind, things, only=True, background=background)


def unseen_wishes(count: int, seed: int) -> list[Wish]:
    """So many prompts that no training run has had, each kind as often as the others."""
    return [
        sample_wish(random.Random(f"test/painter/{seed}/{number}"), kind=KINDS[number % len(KINDS)], test=True)
        for number in range(count)
    ]


def held_out(things: Sequence[Wanted]) -> bool:
    """Whether objects of these names together are for tests only."""
    names = "/".join(sorted(thing.name for thing in things))
    return zlib.crc32(names.encode()) % HELD_OUT == 0


def sample_scene_of(wish: Wish, rng: random.Random) -> Scene:
    """A square scene of `CANVAS` pixels that is what the prompt asks for; its objects stand in the prompt's order."""
    while True:
        looks = _looks(wish, rng)
        ground = BACKGROUNDS[wish.background] if wish.background else rng.choice(list(BACKGROUNDS.values()))
        boxes = [_box(form, size, rng) for _, form, size in looks]
        if len({(color, form) for color, form, _ in looks}) == len(looks) and _stand(wish, boxes):
            objects = (
                ShapeObject(color, form, size, box, COLOR_ANCHORS[color][0])
                for (color, form, size), box in zip(looks, boxes, strict=True)
            )
            return Scene(CANVAS, CANVAS, Background("solid", (ground,)), tuple(objects))


def _things(kind: str, rng: random.Random) -> tuple[Wanted, ...]:
    names = [(color, form) for color in COLORS for form in FORMS]
    if kind == "count":
        return _counted(rng)
    count = {"one": 1, "three": 3}.get(kind, 2)
    things = []
    for color, form in rng.sample(names, count):
        size = rng.choice(SIZES) if rng.random() < 0.2 else None
        if kind == "one" and rng.random() < 0.15:
            color, form = (None, form) if rng.random() < 0.5 else (color, rng.choice(ANY_SHAPE))
        places = ((rng.choice(PLACES), 1),) if kind == "places" and not things else ()
        things.append(Wanted(form, color, size, places=places))
    return tuple(things)


def _counted(rng: random.Random) -> tuple[Wanted, ...]:
    """Two or three of a form, of a colour, or of anything; two with a third that is named."""
    count, what = rng.choice((2, 3)), rng.random()
    if what < 0.4:
        many = Wanted(rng.choice(FORMS), count=count)
    elif what < 0.7:
        many = Wanted(rng.choice(ANY_SHAPE), rng.choice(COLORS), count=count)
    else:
        many = Wanted(rng.choice(ANY_SHAPE), count=count)
    if count == 2 and rng.random() < 0.35 and what < 0.7:
        colors, forms = [c for c in COLORS if c != many.color], [f for f in FORMS if f != many.noun]
        return many, Wanted(rng.choice(forms), rng.choice(colors))
    return (many,)


def _worded(things: Sequence[Wanted], background: str | None, rng: random.Random) -> str:
    phrases = [_phrase(thing, rng) for thing in things]
    if places := [thing.places[0][0] for thing in things if thing.places]:
        between = rng.choice(_WORDS_OF_PLACE[places[0]])
        text = f"{phrases[0]}{rng.choice((' ', ' ', ' is '))}{between} {phrases[1]}"
    elif len(phrases) == 2 and rng.random() < 0.15:
        text = " with ".join(phrases)
    else:
        text = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    if background:
        text += rng.choice(_GROUNDS).format(rng.choice(("gray", "grey")) if background == "gray" else background)
    if " is " in text:
        frame = rng.choice(_FRAMES[:2])
    elif rng.random() < 0.1:
        frame = _THERE[sum(thing.count for thing in things) > 1]
    else:
        frame = rng.choice(_FRAMES[:2]) if rng.random() < 0.5 else rng.choice(_FRAMES)
    text = frame.format(text)
    return text[0].upper() + text[1:] if rng.random() < 0.8 else text


def _phrase(thing: Wanted, rng: random.Random) -> str:
    size = rng.choice(_WORDS_OF_SIZE[thing.size]) if thing.size else None
    name = " ".join(filter(None, (size, thing.color, thing.noun)))
    if thing.count > 1:
        return f"{NUMBERS[thing.count]} {name}s"
    return f"one {name}" if rng.random() < 0.08 else article(name)


def _looks(wish: Wish, rng: random.Random) -> list[tuple[str, str, str]]:
    """Colour, form and size of each object, what the prompt leaves open chosen."""
    return [
        (
            thing.color or rng.choice(COLORS),
            rng.choice(FORMS) if thing.noun in ANY_SHAPE else thing.noun,
            thing.size or rng.choice(SIZES),
        )
        for thing in wish.things
        for _ in range(thing.count)
    ]


def _box(form: str, size: str, rng: random.Random) -> tuple[int, int, int, int]:
    least, most = WIDTHS[size]
    width = rng.randrange(least, most + 1, GRID)
    height = round(width * HEIGHT_OF_TRIANGLE) if form == "triangle" else width
    x0, y0 = (rng.randrange(_GAP, CANVAS - width - _GAP + 1, GRID) for _ in range(2))
    return x0, y0, x0 + width, y0 + height


def _stand(wish: Wish, boxes: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether no two touch, and each stands where the prompt says."""
    apart = all(
        a[0] >= b[2] + _GAP or b[0] >= a[2] + _GAP or a[1] >= b[3] + _GAP or b[1] >= a[3] + _GAP
        for number, a in enumerate(boxes)
        for b in boxes[:number]
    )
    return apart and all(
        _plainly(boxes[number], place, boxes[of])
        for number, thing in enumerate(wish.things)
        for place, of in thing.places
    )


def _plainly(box: Sequence[float], place: str, other: Sequence[float]) -> bool:
    """As `stands`, and further that way than to either hand."""
    forward, aside = _forward(box, place, other)
    return stands(box, place, other, CANVAS) and forward > aside


def stands(box: Sequence[float], place: str, other: Sequence[float], side: int) -> bool:
    """Whether a box stands on that side of another: its centre does, by `MIN_SEPARATION` of the image's `side`."""
    return _forward(box, place, other)[0] > MIN_SEPARATION * side


def _forward(box: Sequence[float], place: str, other: Sequence[float]) -> tuple[float, float]:
    """How far a box's centre is from another's that way, and how far to either hand."""
    across, down = ((box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1))
    along, aside = (across, down) if place in ("left", "right") else (down, across)
    return along if place in ("right", "below") else -along, abs(aside)


def vocabulary() -> tuple[str, ...]:
    """All words and marks of the prompts, sorted."""
    texts = [*_FRAMES, *_THERE, *_GROUNDS, *(word for words in _WORDS_OF_PLACE.values() for word in words)]
    words = set(" ".join(texts).lower().replace("{}", " ").replace(".", " . ").split())
    words |= {*COLORS, *BACKGROUNDS, "grey", *(word for words in _WORDS_OF_SIZE.values() for word in words)}
    words |= {*NUMBERS[1 : MOST + 1], "a", "an", "and", "with", "is", ",", "."}
    return tuple(sorted(words | {noun + end for noun in (*FORMS, *ANY_SHAPE) for end in ("", "s")}))
