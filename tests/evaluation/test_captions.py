"""CIDEr, BLEU and ROUGE-L against values computed by hand, and the tokenizer that stands in for Java."""

from __future__ import annotations

import math
import shutil

import pytest

from sat_models.evaluation.captions import caption_metrics, tokenise

pytest.importorskip("pycocoevalcap")

SENTENCES = [
    "A man riding a horse.",
    "It's the dog's ball, isn't it?",
    "Two red-brown cats (small) at 3:30!",
    "A 2.5 m tree",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man, riding a horse.", "a man riding a horse"),
        ("It's the dog's ball; isn't it?", "it 's the dog 's ball is n't it"),
        ("Red-brown cats!", "red-brown cats"),
        ("", ""),
    ],
)
def test_the_rule(text: str, words: str) -> None:
    assert tokenise(text) == words


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_the_rule_is_that_of_java_on_plain_sentences() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    plain = [text for text in SENTENCES if "(" not in text]
    told = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(plain)})
    assert [told[n][0] for n in range(len(plain))] == [tokenise(text) for text in plain]


def test_equal_captions_have_full_scores() -> None:
    scores = caption_metrics(SENTENCES, [[text] for text in SENTENCES], tokenizer="rule")
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"):
        assert scores[name] == pytest.approx(1.0), name
    # 10 is the most CIDEr gives: a tenfold cosine of 1 over n-grams of 1 to 4 words
    assert scores["cider"] == pytest.approx(10.0)


def test_bleu_and_rouge_by_hand() -> None:
    scores = caption_metrics(["a red cat sits"], [["a red dog sits here"]], tokenizer="rule")
    brevity = math.exp(1 - 5 / 4)
    assert scores["bleu1"] == pytest.approx(brevity * 3 / 4)  # a, red, sits
    assert scores["bleu2"] == pytest.approx(brevity * math.sqrt(3 / 4 * 1 / 3))  # "a red"
    precision, recall, beta = 3 / 4, 3 / 5, 1.2  # "a red … sits"
    assert scores["rouge_l"] == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def test_cider_by_hand() -> None:
    """Two pictures; a word in one of them weighs log 2, a word in both nothing."""
    answers, references = ["a cat", "a dog"], [["a cat"], ["a bird"]]
    scores = caption_metrics(answers, references, tokenizer="rule")
    # picture 1: 1-grams {cat: log 2} and 2-grams {a cat: log 2} are equal: 1 + 1; no 3- and 4-grams: 0 + 0; mean 0.5
    # picture 2: "dog" and "a dog" are in no reference, so nothing is shared: 0
    assert scores["cider"] == pytest.approx(10 * (0.5 + 0.0) / 2)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="2 captions came with 1"):
        caption_metrics(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="each needs one"):
        caption_metrics(["a"], [[]])
