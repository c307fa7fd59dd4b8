"""CIDEr, BLEU and ROUGE-L of captions, by the COCO caption evaluation (package `pycocoevalcap`).

Its scorers are plain Python; its tokenizer is a Java program. Where there is no Java, a rule of ours splits the text.
On plain English sentences the two agree, but published figures are made with Java, so the scores say which was used.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from sat_models.errors import MissingPackageError

_TOKEN = re.compile(r"[^\W_]+(?:[-'/.,:][^\W_]+)*|'(?:s|re|ve|ll|d|m)\b")
_CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))$")


def tokenizer_name() -> str:
    """ "ptb" where Java is installed, else "rule"."""
    return "ptb" if shutil.which("java") else "rule"


def tokenise(text: str) -> str:
    """Lower-case words separated by spaces, punctuation left out: the rule that stands in for Java."""
    words = []
    for word in _TOKEN.findall(" ".join(text.lower().split())):
        words += [part for part in _CLITIC.split(word) if part]
    return " ".join(words)


def caption_metrics(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: str | None = None
) -> dict[str, float]:
    """Scores of a corpus; CIDEr weighs words by how many pictures' references hold them, so it needs several.

    Args:
        answers: one caption per picture.
        references: captions of people for each.
        tokenizer: "ptb" or "rule"; None takes "ptb" where Java is installed.

    Returns:
        `cider` (1.0 is what tables call 100), `bleu1` … `bleu4`, `rouge_l`.

    Raises:
        MissingPackageError: pycocoevalcap is not installed.
        ValueError: another number of references, or a picture without any.
    """
    if len(answers) != len(references) or not answers or not all(references):
        raise ValueError(f"{len(answers)} captions came with {len(references)} lists of references; each needs one.")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise MissingPackageError("pycocoevalcap", "eval", "CIDEr, BLEU and ROUGE-L") from error
    split = _ptb if (tokenizer or tokenizer_name()) == "ptb" else _by_rule
    said = split({index: [answer] for index, answer in enumerate(answers)})
    true = split({index: list(texts) for index, texts in enumerate(references)})
    with contextlib.redirect_stdout(io.StringIO()):
        bleu = Bleu(4).compute_score(true, said, verbose=0)[0]
        cider = Cider().compute_score(true, said)[0]
        rouge = Rouge().compute_score(true, said)[0]
    scores = {"cider": float(cider), "rouge_l": float(rouge)}
    return scores | {f"bleu{n}": float(value) for n, value in enumerate(bleu, 1)}


def _by_rule(texts: Mapping[int, list[str]]) -> dict[int, list[str]]:
    return {index: [tokenise(text) for text in some] for index, some in texts.items()}


def _ptb(texts: Mapping[int, list[str]]) -> dict[int, list[str]]:
    """By the Stanford tokenizer; an empty caption is not shown to it (it would drop the line)."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given: dict[Any, list[dict[str, str]]] = {
        index: [{"caption": " ".join(text.split()) or "."} for text in some] for index, some in texts.items()
    }
    return PTBTokenizer().tokenize(given)
