"""The chat session: history, picture, boxes, and what stays when a turn fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from speaking import session

from sat_models.errors import InputError
from sat_models.generation.sampling import SamplingOptions

BOXED = "a cat [[100,200,500,900]] and a dog [[000,000,250,500]]"


def test_history_goes_into_the_next_turn_and_clear_forgets(image: Path) -> None:
    options = SamplingOptions(max_new_tokens=5)
    chat, engine = session("red", "two", "hello", options=options, version="chat")
    chat.set_image(str(image))
    assert chat.ask("Which colour?").text == "red"
    assert chat.ask("How many?").text == "two"
    inputs, used = engine.asked[1]
    assert inputs.history == [("Which colour?", "red")]
    assert (inputs.image.size, inputs.version, used) == ((200, 100), "chat", options)
    chat.clear()
    chat.ask("Hi")
    assert (engine.asked[2][0].history, engine.asked[2][0].image) == ([], None)


def test_a_new_picture_starts_over(image: Path) -> None:
    chat, _ = session("red")
    chat.ask("Hi")
    chat.set_image(image)
    assert chat.history == []


def test_streamed_pieces_are_the_text(image: Path) -> None:
    chat, _ = session("a red cat")
    pieces: list[str] = []
    answer = chat.ask("What?", stream=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text == "a red cat"


def test_boxes_come_in_pixels_and_as_json(image: Path) -> None:
    chat, _ = session(BOXED)
    chat.set_image(image)
    answer = chat.ask("Where?")
    assert [box.pixels for box in answer.boxes] == [(20.0, 20.0, 100.0, 90.0), (0.0, 0.0, 50.0, 50.0)]
    assert answer.as_json() == {
        "text": BOXED,
        "token_ids": [ord(character) for character in BOXED],
        "finish_reason": "stop",
        "boxes": [[20.0, 20.0, 100.0, 90.0], [0.0, 0.0, 50.0, 50.0]],
    }
    assert answer.prompt_tokens == 7


def test_boxes_without_a_picture_are_text() -> None:
    chat, _ = session(BOXED)
    answer = chat.ask("Where?")
    assert answer.boxes == []
    assert chat.draw(answer, Path("nowhere.png")) is None


def test_drawing(image: Path, tmp_path: Path) -> None:
    chat, _ = session(BOXED)
    chat.set_image(image)
    path = chat.draw(chat.ask("Where?"), tmp_path / "drawn.png")
    assert path == tmp_path / "drawn.png"
    with Image.open(path) as drawn:
        assert drawn.size == (200, 100)
        assert len(drawn.getcolors()) > 2


@pytest.mark.parametrize("target", ["missing/drawn.png", "drawn.nosuchtype"])
def test_a_drawing_that_fails_costs_no_answer(
    image: Path, tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    chat, _ = session(BOXED)
    chat.set_image(image)
    answer = chat.ask("Where?")
    assert chat.draw(answer, tmp_path / target) is None
    assert str(tmp_path / target) in caplog.text
    assert answer.text == BOXED


@pytest.mark.parametrize("error", [RuntimeError("no memory"), InputError("too long")])
def test_a_failed_turn_leaves_the_session_as_it_was(image: Path, error: Exception) -> None:
    chat, engine = session("red", error, "two")
    chat.set_image(image)
    chat.ask("One?")
    with pytest.raises(type(error), match=str(error)):
        chat.ask("Two?")
    assert chat.history == [("One?", "red")]
    assert chat.ask("Three?").text == "two"
    assert engine.closed == 3


def test_a_listener_that_fails_ends_the_generation(image: Path) -> None:
    chat, engine = session("a long answer")

    def hang_up(piece: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        chat.ask("What?", stream=hang_up)
    assert engine.closed == 1
    assert chat.history == []


def test_a_bad_picture_leaves_the_session_as_it_was(image: Path, tmp_path: Path) -> None:
    chat, _ = session("red", "two")
    chat.set_image(image)
    chat.ask("One?")
    with pytest.raises(InputError, match="does not exist"):
        chat.set_image(tmp_path / "none.png")
    assert chat.image is not None
    assert len(chat.history) == 1


def test_an_empty_question_only_on_purpose() -> None:
    with pytest.raises(InputError, match="empty"):
        session("x")[0].ask("")
    assert session("x", allow_empty_query=True)[0].ask("").text == "x"


def test_an_answer_ends_where_its_prompt_style_says() -> None:
    chat, engine = session("A dog.###Human: Where?", version="llava_v0")
    answer = chat.ask("What is it?")
    assert answer.text == "A dog." and answer.finish_reason == "stop"
    assert "".join(map(chr, answer.token_ids)) == "A dog." and engine.closed == 1
