"""The dialogue in a terminal, with typed lines in and printed lines out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speaking import session

from sat_models.serving.chat import ChatSession
from sat_models.serving.dialogue import WORDINGS, Dialogue


def _typed(*lines: str) -> Callable[[str], str]:
    remaining = list(lines)

    def read(prompt: str) -> str:
        print(prompt, end="")
        if not remaining:
            raise EOFError
        return remaining.pop(0)

    return read


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a dialogue in an empty directory; gives (stdout, stderr)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(chat: ChatSession, *lines: str, **kwargs: Any) -> tuple[str, str]:
        Dialogue(chat, read=_typed(*lines), **kwargs).run()
        return capsys.readouterr()

    return run


def test_picture_questions_clear_and_stop(talk: Callable[..., Any], image: Path) -> None:
    chat, engine = session("red", "two", "hello")
    out, err = talk(chat, str(image), "Which colour?", "How many?", "clear", "", "Hi", "stop")
    assert "Model: red\nUser: Model: two\n" in out
    assert out.count("Image path or URL") == 2
    assert err == ""
    assert [len(inputs.history) for inputs, _ in engine.asked] == [0, 1, 0]
    assert engine.asked[0][0].image is not None
    assert engine.asked[2][0].image is None


@pytest.mark.parametrize("lines", [["stop"], [], ["", "stop"], [""], ["", "Hi"]])
def test_it_ends_at_stop_and_at_the_end_of_input_anywhere(talk: Callable[..., Any], lines: list[str]) -> None:
    talk(session("hello")[0], *lines)


def test_errors_are_said_and_the_next_question_is_answered(talk: Callable[..., Any], image: Path) -> None:
    chat, _ = session(RuntimeError("no memory"), "red")
    out, err = talk(chat, "none.png", str(image), "", "Which?", "Again?", "stop")
    assert "error: Picture 'none.png' does not exist" in err
    assert "error: The question is empty." in err
    assert "error: RuntimeError: no memory" in err
    assert out.rstrip().endswith("Model: red\nUser:")


def test_a_broken_job_is_not_talked_on(talk: Callable[..., Any]) -> None:
    chat, engine = session(RuntimeError("lost process 1"), "red")
    engine.usable = False
    with pytest.raises(RuntimeError, match="lost process 1"):
        talk(chat, "", "Which?", "Again?", "stop")


def test_streaming_prints_each_piece_once(talk: Callable[..., Any]) -> None:
    chat, _ = session("a red cat", "", RuntimeError("x"), "two")
    out, err = talk(chat, "", "What?", "Empty?", "Fails?", "How many?", "stop", stream=True)
    assert "User: Model: a red cat\nUser: Model: \nUser: Model: Mm\nUser: Model: two\nUser: " in out
    assert "error: RuntimeError: x" in err


def test_boxes_are_drawn_to_a_free_name_and_said(talk: Callable[..., Any], image: Path) -> None:
    chat, _ = session("it [[100,200,500,900]]", "it [[100,200,500,900]]")
    out, _ = talk(chat, "Where?", "And?", "stop", image=str(image))
    assert "Boxes drawn in cat_boxes.png" in out
    assert "Boxes drawn in cat_boxes2.png" in out
    assert Path("cat_boxes2.png").is_file()
    assert "Image path" not in out, "the picture was given"


def test_boxes_are_drawn_where_told(talk: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    chat, _ = session("it [[100,200,500,900]]")
    out, _ = talk(chat, "Where?", "stop", image=str(image), output=tmp_path / "x.jpg")
    assert (tmp_path / "x.jpg").is_file()
    assert str(tmp_path / "x.jpg") in out


def test_a_failed_drawing_costs_no_answer(talk: Callable[..., Any], image: Path, tmp_path: Path) -> None:
    chat, _ = session("it [[100,200,500,900]]", "red")
    out, _ = talk(chat, "Where?", "And?", "stop", image=str(image), output=tmp_path / "no" / "x.jpg")
    assert "Model: it [[100,200,500,900]]" in out
    assert "Model: red" in out
    assert "drawn" not in out


def test_the_empty_question_is_sent_by_itself(talk: Callable[..., Any], image: Path) -> None:
    chat, engine = session("a cat", allow_empty_query=True)
    out, _ = talk(chat, "stop", image=str(image), ask_first=True)
    assert "Model: a cat" in out
    assert engine.asked[0][0].query == ""


def test_a_cut_off_answer_is_marked(talk: Callable[..., Any]) -> None:
    out, _ = talk(session("a long", finish="length")[0], "", "What?", "stop")
    assert "cut off" in out


def test_chinese(talk: Callable[..., Any], tmp_path: Path) -> None:
    chat, _ = session("红色")
    out, err = talk(chat, "none.png", "", "什么颜色？", "stop", language="chinese")
    assert "用户：模型：红色" in out
    assert err.startswith("错误：")
    assert WORDINGS["chinese"].welcome in out
