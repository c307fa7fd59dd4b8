"""Short answers as the VQA challenge compares them.

The normalisation is that of the official evaluation (github.com/GT-Vision-Lab/VQA, `vqaEval.py` at c4e6a0e):
punctuation, then number words and articles, then apostrophes. It is applied to the answer and to every reference; the
official script leaves references alone that are all equal.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"},
    **{"seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_APOSTROPHES = _words(
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)
_CONTRACTIONS = {
    form[: match.start()] + form[match.end() :]: form for form in _APOSTROPHES for match in re.finditer("'", form)
} | {"somebody'd": "somebodyd"}  # as the official table has it
"""Each form with one of its apostrophes missing -> the form."""


def normalise_vqa(answer: str) -> str:
    """An answer in the form that is compared: `The two dogs!` -> `2 dogs`."""
    text = _without_punctuation(" ".join(answer.split()))
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark next to a space (or any, where a number holds a comma) vanishes, another becomes a space."""
    cleaned = text
    glued = _NUMBER_WITH_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        vanishes = glued or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", cleaned)
