"""How an answer ends: its text, its tokens and the reason, token by token and whole."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from sat_models.generation.answer import AnswerRow, Request

END = -1


class Words:
    """Token n is the n-th of some words; a word that begins with "~" has no text until the next token."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words, self._waiting = words, ""

    def push(self, token: int) -> str:
        text = self._waiting + self._words[token].lstrip("~")
        self._waiting = text if self._words[token].startswith("~") else ""
        return "" if self._waiting else text

    def flush(self) -> str:
        return self._waiting


def ended(
    words: Sequence[str], stops: Sequence[str], budget: int = 99, *, lead: str = ""
) -> tuple[AnswerRow, list[str], list[int]]:
    """The row after these tokens and the end token, the pieces of its text, and its ids as they became certain."""
    request = Request(SimpleNamespace(length=3), stops=tuple(stops), lead=lead)
    row = AnswerRow(request, budget=budget, end_ids=[END], decoder=Words(words))
    pieces, ids = [], []
    for token in (*range(len(words)), END):
        row.take(token)
        pieces.append(row.take_text())
        assert row.token_ids[: len(ids)] == ids, "what was certain stays"
        ids = list(row.token_ids)
        if row.over:
            break
    return row, pieces, ids


@pytest.mark.parametrize(
    ("words", "stops", "text", "count"),
    [
        (["a", "b", "c"], (), "abc", 3),
        (["hello wor", "ld end"], ("world",), "hello ", 1),
        (["a<", "/s", "x"], ("</s>",), "a</sx", 3),
        (["aab"], ("ab", "aab"), "", 0),
        (["ab", "ab", "ac"], ("abac",), "ab", 1),
        (["x\n"], ("\n\n",), "x\n", 1),
        (["It is", " a dog", ".", "###", "Human"], ("###",), "It is a dog.", 3),
        (["a dog", "#", "#", "#", "x"], ("###",), "a dog", 1),
        (["a dog", " ###"], ("###",), "a dog ", 1),
        (["a dog", " #", "##"], ("###",), "a dog ", 1),
        (["a dog", " ", "###"], ("###",), "a dog ", 2),
        (["a dog#", "##x"], ("###",), "a dog", 1),
        (["It is so", ".\n\n", "Next"], ("\n\n",), "It is so.", 2),
        (["a ", "## b", "#"], ("###",), "a ## b#", 3),
        (["###"], ("###",), "", 0),
        (["ab", "~1", "~2", "~3", "4", "x"], ("1234",), "ab", 1),
        (["ab", "~1", "2", "x"], ("99",), "ab12x", 4),
        (["ab", "~1", "~2"], ("99",), "ab12", 3),
        (["A", "B", "C", "D", "E"], ("CD", "BCDE"), "AB", 2),
    ],
)
def test_an_answer_ends_before_a_stop_string(words: list[str], stops: tuple[str, ...], text: str, count: int) -> None:
    row, pieces, _ = ended(words, stops)
    assert "".join(pieces) == row.result().text == text
    assert row.token_ids == row.result().token_ids == list(range(count))
    assert row.finish_reason == "stop"
    assert row.sampled[: len(row.token_ids)] == row.token_ids, "what the model was fed with is not cut"


@pytest.mark.parametrize("stops", [(), ("END",)])
@pytest.mark.parametrize(
    ("lead", "words", "text"),
    [
        ("\n", ["\n", "a", "\n"], "a\n"),
        ("\n", ["\n\na", "b"], "\nab"),
        ("\n", ["~", "\n", "a"], "a"),
        ("\n", ["a", "\n"], "a\n"),
        ("\n", ["\n"], ""),
        ("\n", [], ""),
        (">> ", [">", "> a"], "a"),
        (">> ", [">", "a"], ">a"),
        (">> ", [">", ">"], ">>"),
    ],
)
def test_a_lead_is_shown_to_nobody(lead: str, words: list[str], text: str, stops: tuple[str, ...]) -> None:
    row, pieces, _ = ended(words, stops, lead=lead)
    assert "".join(pieces) == row.result().text == text
    assert row.token_ids == list(range(len(words))), "its tokens are the answer's"


def test_text_comes_as_soon_as_it_is_certain() -> None:
    _, pieces, _ = ended(["a", " b", "#", "c", "##", "d"], ("###",))
    assert pieces[:6] == ["a", " b", "", "#c", "", "##d"]


@pytest.mark.parametrize(("budget", "reason", "text"), [(2, "length", "a#"), (4, "stop", "a"), (9, "stop", "a")])
def test_a_limit_ends_an_answer_with_what_was_held_back(budget: int, reason: str, text: str) -> None:
    row, pieces, ids = ended(["a", "#", "#", "#", "b"], ("###",), budget)
    assert (row.finish_reason, row.result().text, "".join(pieces)) == (reason, text, text)
    assert ids == row.result().token_ids == list(range(len(text)))


def test_a_failed_answer_raises_when_it_is_asked_for() -> None:
    row, _, _ = ended(["a"], ())
    row.error = ValueError("why")
    assert row.over
    with pytest.raises(ValueError, match="why"):
        row.result()
