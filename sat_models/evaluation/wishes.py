"""What the prompt of an image asks for, in a form that can be checked: things, their number, colours, sizes, places.

The form on disk is that of GenEval's prompts (arXiv 2310.11513, github.com/djghosh13/geneval, `prompts/
evaluation_metadata.jsonl`): one JSON object a line with `prompt`, `tag` and `include`, a list of things with `class`,
`count`, `color` and `position` (`["left of", 0]`: of the first thing of the list).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.files import numbered_lines

PLACES = ("left", "right", "above", "below")
"""Where a thing may stand, seen from another."""
_OPPOSITE = dict(zip(PLACES, ("right", "left", "below", "above"), strict=True))
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_PLURALS = {"person": "people", "knife": "knives", "mouse": "mice"} | {n: n for n in ("sheep", "skis", "scissors")}


@dataclass(frozen=True)
class Wanted:
    """Things of one kind.

    Attributes:
        noun: `circle`, `dog`; in the world of shapes also `shape`, which is any of them.
        color, size: adjectives; None where the prompt leaves them open.
        count: how many there must be.
        places: each one of `PLACES` and the number of the thing that it is seen from.
    """

    noun: str
    color: str | None = None
    size: str | None = None
    count: int = 1
    places: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """`red circle`; without its size."""
        return f"{self.color} {self.noun}" if self.color else self.noun


@dataclass(frozen=True)
class Wish:
    """A prompt and what it asks for.

    Attributes:
        prompt: as the painter reads it.
        kind: of prompts that are scored together.
        things: in the prompt's order.
        only: nothing else may be there.
        background: the colour of it, where the prompt names one.
    """

    prompt: str
    kind: str
    things: tuple[Wanted, ...]
    only: bool = False
    background: str | None = None

    @property
    def total(self) -> int:
        """Of all things."""
        return sum(thing.count for thing in self.things)

    def record(self) -> dict[str, Any]:
        """As a line of a file that `read_wishes` reads."""
        include = []
        for thing in self.things:
            known = {"class": thing.noun, "count": thing.count, "color": thing.color, "size": thing.size}
            if thing.places:
                known["position"] = [list(place) for place in thing.places]
            include.append({name: value for name, value in known.items() if value is not None})
        rest = {"only": True} if self.only else {}
        rest |= {"background": self.background} if self.background else {}
        return {"tag": self.kind, "include": include, "prompt": self.prompt, **rest}


def article(name: str) -> str:
    """The name with its indefinite article: `an orange circle`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """Of a name whose last word is its noun: `red circles`, `benches`, `people`."""
    first, _, noun = name.rpartition(" ")
    usual = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{first} {_PLURALS.get(noun, usual)}".strip()


def opposite(place: str) -> str:
    """`right` of `left`, `above` of `below`."""
    return _OPPOSITE[place]


def read_wishes(path: Path) -> list[Wish]:
    """The prompts of a file.

    Raises:
        InputError: it cannot be read, holds none, or a line says something else; the message names the line.
    """
    wishes = []
    for number, line in numbered_lines(path):
        try:
            wishes.append(_wish(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: {error!r:.160}. A line is "
                '{"prompt": "…", "tag": "position", "include": [{"class": "dog", "count": 1}, '
                '{"class": "cat", "count": 1, "position": ["left of", 0]}]}'
            ) from error
    if not wishes:
        raise InputError(f"{path} holds no prompt")
    return wishes


def _wish(record: Mapping[str, Any]) -> Wish:
    things = tuple(_wanted(each, len(record["include"])) for each in record["include"])
    prompt = record["prompt"]
    if not (isinstance(prompt, str) and prompt.strip() and things):
        raise ValueError("it needs a prompt and things to include")
    return Wish(prompt, str(record.get("tag", "")), things, bool(record.get("only")), record.get("background"))


def _wanted(each: Mapping[str, Any], things: int) -> Wanted:
    count, noun = each.get("count", 1), each["class"]
    if not (isinstance(noun, str) and noun.strip()) or not (isinstance(count, int) and 1 <= count < len(NUMBERS)):
        raise ValueError(f"class is {noun!r} and count {count!r}; a name, and a number from 1 to {len(NUMBERS) - 1}")
    given = each.get("position") or []
    pairs = [given] if given and isinstance(given[0], str) else given
    places = tuple((_place(str(word)), int(of)) for word, of in pairs)
    if bad := [of for _, of in places if not 0 <= of < things]:
        raise ValueError(f"position names thing {bad[0]} of {things}; they are counted from 0")
    return Wanted(noun, each.get("color"), each.get("size"), count, places)


def _place(words: str) -> str:
    """`left` of `left of`."""
    first = words.split()[0] if words.strip() else ""
    place = {"under": "below", "over": "above"}.get(first, first)
    if place not in PLACES:
        raise ValueError(f"position is {words!r}; allowed: {', '.join(f'{p} of' for p in PLACES[:2])}, above, below")
    return place
