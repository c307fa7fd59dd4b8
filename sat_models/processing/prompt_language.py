"""Prompts in a language that weights were not trained on."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

logger = logging.getLogger(__name__)

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_NAMES = {"zh": "Chinese", "en": "English"}


def language_of(prompt: str) -> str:
    """ "zh" for a prompt with Chinese characters, else "en"."""
    return "zh" if _HAN.search(prompt) else "en"


def unknown_language(prompt: str, known: Collection[str]) -> str:
    """What is to be said of a prompt in another language than those that weights know; "" if nothing is.

    Args:
        known: "zh", "en"; none: any.
    """
    if not known or (own := language_of(prompt)) in known:
        return ""
    names = " and ".join(_NAMES[language] for language in known)
    return f"the prompt '{prompt:.40}' is in {_NAMES[own]}, and these weights were trained on {names}: translate it"


def warn_of_language(prompt: str, known: Collection[str]) -> None:
    """Log what `unknown_language` says."""
    if said := unknown_language(prompt, known):
        logger.warning("%s", said)
