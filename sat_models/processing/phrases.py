"""The noun phrase in front of a box.

The originals take spaCy's noun chunks. Its English model is on no package index, so it is used only where somebody
installed it; otherwise a rule of our own on word lists does: walk back from the box to the determiner.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from typing import Any

logger = logging.getLogger(__name__)

SPACY_MODEL = "en_core_web_sm"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those my your his her its our their some any each every another both all several many "
    "few no one two three four five six seven eight nine ten eleven twelve dozen"
)
_ARTICLES = _words("a an the another every each my your his her its their")
_VERBS = _words(
    "is are was were be been being am do does did has have had can could will would may might should must see find "
    "shows show showing locate detect mark point box describe sits stands lies holds wears contains includes features "
    "sitting standing lying holding wearing riding walking running looking hanging placed located parked seated "
    "visible shown seen positioned situated appears depicts made next surrounded covered attached topped filled "
    "contain include using playing eating carrying click tap press select open drag type"
)
_PREPOSITIONS = _words(
    "on in at to from by near under over above below behind beside between into onto of with for against along across "
    "around through inside outside left right beneath within without toward towards upon off up down as like than about"
)
_OTHER_BREAKS = _words(
    "and or but while then so because if which who whose what where when why how there here it he she they i you we "
    "me him them not also just currently please yes answer"
)
_BREAKS = _VERBS | _PREPOSITIONS | _OTHER_BREAKS
_JOINERS = _words("and or")
_OPENERS = _DETERMINERS | _ARTICLES
_LINKS = _words("of with")
"""Words that tie two noun phrases to one: "a cup of tea", "the man with a hat"."""
_PLACES = _words("left right top bottom front back side middle center centre end edge corner part inside outside out")
"""Before "of" these make a preposition ("left of a square"); alone they only say where: "the man on the left"."""
_COLOURS = _words("black white red green blue yellow brown grey gray orange pink purple golden silver")

_WORD = re.compile(r"\w[\w'\u2019-]*")
_CLAUSE_END = re.compile(r"[.!?](?:\s+|$)|[,;:()\[\]\n]")
_QUESTION_HEAD = re.compile(
    r"^(?:please\s+)?(?:(?:can|could|would|will|do|did)\s+you\s+(?:please\s+)?)?"
    r"(?:where(?:'s|\s+(?:is|are|was|were))|(?:tell|show|give)\s+me\s+(?:where|the\s+(?:location|position|box)\s+of)|"
    r"what\s+(?:is|are)\s+the\s+(?:location|position|coordinates?|bounding\s+box(?:es)?)\s+of|"
    r"find|locate|detect|point\s+(?:to|out|at)|see|show\s+me|mark)\s+",
    re.IGNORECASE,
)


def phrase_before(segment: str, *, use_spacy: bool | None = None) -> str | None:
    """The phrase a box belongs to.

    Args:
        segment: text between the previous box (or the start) and this one.
        use_spacy: None uses it where its model is installed, False never, True the same as None but with a warning
            when it is missing.

    Returns:
        The phrase as written in `segment`; "" if there are words but no noun phrase; None if there are no words but
        "and", "or" ("two dogs [[..]] and [[..]]": the caller goes on with the phrase it had).
    """
    if all(word.lower() in _JOINERS for word in _WORD.findall(segment)):
        return None
    question = _asked_for(segment)
    if question:
        return question
    nlp = _spacy(warn=bool(use_spacy)) if use_spacy is not False else None
    if nlp is not None:
        chunks = [chunk.text for chunk in nlp(segment).noun_chunks]
        return chunks[-1] if chunks else ""
    return _last_noun_phrase(segment)


def _asked_for(segment: str) -> str:
    """The subject of a question or request: "Where is the man with a hat?" -> "the man with a hat", else ""."""
    sentence = re.split(r"(?<=[.!?])\s+(?=\S)|\n", segment.strip())[-1].strip()
    if not sentence.endswith("?"):
        return ""
    head = _QUESTION_HEAD.match(sentence)
    return sentence[head.end() :].rstrip("? ").strip() if head else ""


def _last_noun_phrase(segment: str) -> str:
    """The last noun phrase by word lists; "" if only function words are there."""
    clause = _last_clause(segment)
    words = list(_WORD.finditer(clause))
    lower = [word.group().lower() for word in words]
    end = len(words)
    while end and _breaks(lower, end - 1):
        end -= 1
    if not end:
        return ""
    start = _phrase_start(lower, end)
    while (link := _link_before(lower, start, end)) is not None:
        start = _phrase_start(lower, link)
    return clause[words[start].start() : words[end - 1].end()]


def _last_clause(segment: str) -> str:
    """The last stretch without a sentence end, comma, colon, bracket or line end that is more than function words."""
    parts = [part for part in _CLAUSE_END.split(segment) if _WORD.search(part)]
    for part in reversed(parts):
        lower = [word.lower() for word in _WORD.findall(part)]
        if not all(_breaks(lower, index) for index in range(len(lower))):
            return part
    return parts[-1] if parts else ""


def _breaks(lower: list[str], index: int) -> bool:
    """True if the word ends a noun phrase; right behind an article it belongs to one ("a parked car", "the left")."""
    if lower[index] not in _BREAKS:
        return False
    while index > 0 and lower[index] in _PLACES and lower[index - 1] in _PLACES:
        index -= 1  # "the top left" is one place
    return index == 0 or lower[index - 1] not in _ARTICLES


def _phrase_start(lower: list[str], end: int) -> int:
    """Index of the first word of the phrase that ends before `end`: back to a determiner or a word that breaks it."""
    start = end - 1
    while start > 0 and (lower[start] not in _OPENERS or (start == end - 1 and lower[start] == "one")):
        joins_colours = lower[start - 1] == "and" and start > 1 and {lower[start], lower[start - 2]} <= _COLOURS
        if _breaks(lower, start - 1) and not joins_colours:
            return start
        start -= 1
    while start > 0 and lower[start - 1] in _OPENERS:
        start -= 1
    return start


def _link_before(lower: list[str], start: int, end: int) -> int | None:
    """End of the phrase that the words [start, end) hang on ("a cup | of tea", "the man | on the left"), or None."""
    if start < 2 or lower[start - 1] not in _PREPOSITIONS:
        return None
    if lower[start - 1] not in _LINKS and not set(lower[start:end]) <= _PLACES | _ARTICLES:
        return None
    before = lower[start - 2]
    return None if before in _PLACES or _breaks(lower, start - 2) else start - 1


@functools.cache
def _spacy(*, warn: bool) -> Any | None:
    """spaCy's English pipeline, loaded once; None where it is not installed or does not load."""
    if importlib.util.find_spec(SPACY_MODEL) is None or importlib.util.find_spec("spacy") is None:
        if warn:
            logger.warning("spaCy's model %s is not installed; phrases are found by a simpler rule", SPACY_MODEL)
        return None
    import spacy

    try:
        return spacy.load(SPACY_MODEL)
    except Exception as error:  # a model built for another spaCy raises many types
        logger.warning("spaCy's model %s does not load (%s); phrases are found by a simpler rule", SPACY_MODEL, error)
        return None
