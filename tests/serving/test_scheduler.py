"""The queue: order, rows that join and leave, cancelling, time, errors; on a stand-in for the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from speaking import Letters

from sat_models.errors import InputError
from sat_models.generation.answer import AnswerRow, Request
from sat_models.serving.requests import BusyError, Event, Failed, Finished, Piece, RequestTimeoutError
from sat_models.serving.scheduler import Scheduler

END = -1


class Session:
    """Says each prompt's `text`, one character per step; "!" fails the row, "#" all rows."""

    def __init__(self, engine: Engine, max_rows: int) -> None:
        self.engine, self.max_rows = engine, max_rows
        self.rows: dict[int, AnswerRow] = {}
        self.left: dict[int, list[str]] = {}
        self.closed = False

    def __getitem__(self, number: int) -> AnswerRow:
        return self.rows[number]

    def add(self, request: Request) -> int:
        if request.inputs.text == "bad":
            raise InputError("no room")
        number = self.engine.number = self.engine.number + 1
        self.left[number] = list(request.inputs.text)
        self.rows[number] = AnswerRow(request, budget=2_000_000, end_ids=[END], decoder=Letters())
        assert sum(not row.over for row in self.rows.values()) <= self.max_rows
        return number

    @property
    def finished(self) -> tuple[int, ...]:
        return tuple(n for n, row in self.rows.items() if row.over)

    def step(self) -> dict[int, list[int]]:
        self.engine.steps += 1
        self.engine.gate.wait(5)
        given = {}
        for number, row in self.rows.items():
            letter = self.left[number].pop(0) if self.left[number] else ""
            if letter == "!":
                row.error = RuntimeError("this row")
            elif letter == "#":
                self.closed = True
                raise RuntimeError("all rows")
            elif letter:
                row.take(ord(letter))
                given[number] = [ord(letter)]
            else:
                row.take(END)
        return given

    def remove(self, number: int) -> AnswerRow:
        return self.rows.pop(number)

    def close(self) -> None:
        self.closed = True


class Engine:
    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.number = self.steps = 0
        self.usable, self.piece = True, 0
        self.gate = threading.Event()
        self.gate.set()

    def session(self, *, max_rows: int, piece: int) -> Session:
        self.piece = piece
        self.sessions.append(Session(self, max_rows))
        return self.sessions[-1]


class Heard:
    """A listener."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self.over.set()

    @property
    def last(self) -> Event:
        assert self.over.wait(5), "no end"
        return self.events[-1]

    @property
    def text(self) -> str:
        assert isinstance(self.last, Finished), self.last
        assert "".join(e.text for e in self.events if isinstance(e, Piece)) == self.last.answer.text
        return self.last.answer.text


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def make(engine: Engine) -> Any:
    made: list[Scheduler] = []

    def make(**options: Any) -> Callable[..., Heard]:
        scheduler = Scheduler(engine, **options)
        made.append(scheduler)

        def ask(text: str, stops: tuple[str, ...] = (), **how: Any) -> Heard:
            heard = Heard()
            request = Request(SimpleNamespace(text=text, length=9), stops=stops)
            heard.ticket = scheduler.submit(request, heard, **how)
            return heard

        ask.scheduler = scheduler
        return ask

    yield make
    engine.gate.set()
    for scheduler in made:
        scheduler.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_answers_come_piece_by_piece(make: Any) -> None:
    heard = make()("abc")
    assert heard.text == "abc"
    assert [type(event) for event in heard.events] == [Piece, Piece, Piece, Finished]
    answer = heard.last.answer
    assert (answer.token_ids, answer.finish_reason, answer.prompt_tokens) == ([97, 98, 99], "stop", 9)


def test_many_share_the_steps(make: Any, engine: Engine) -> None:
    engine.gate.clear()
    ask = make(max_rows=4)
    heard = [ask("x" * 10) for _ in range(8)]
    engine.gate.set()
    assert [h.text for h in heard] == ["x" * 10] * 8
    assert engine.steps <= 35, "two rounds of four, not eight rounds of one"


def test_a_cancelled_request_makes_room(make: Any, engine: Engine) -> None:
    engine.gate.clear()
    ask = make(max_rows=1)
    long, waiting, next_one = ask("x" * 10_000), ask("never"), ask("ab")
    until(lambda: engine.steps == 1)
    assert ask.scheduler.load == (2, 1)
    long.ticket.cancel()
    waiting.ticket.cancel()
    engine.gate.set()
    assert next_one.text == "ab"
    assert engine.steps < 10
    assert waiting.events == [] and len(long.events) <= 1


def test_time_runs_out_running_and_waiting(make: Any, engine: Engine) -> None:
    engine.gate.clear()
    ask = make(max_rows=1)
    running, waiting = ask("x" * 100, seconds=0.05), ask("y", seconds=0.05)
    until(lambda: engine.steps == 1)
    time.sleep(0.1)
    engine.gate.set()
    for heard in (running, waiting):
        assert isinstance(heard.last, Failed) and isinstance(heard.last.error, RequestTimeoutError)
        assert "0.05 s" in str(heard.last.error)
    assert ask("z").text == "z"


def test_a_full_queue_refuses(make: Any, engine: Engine) -> None:
    engine.gate.clear()
    ask = make(max_rows=1, max_waiting=2)
    first = ask("a")
    until(lambda: engine.steps == 1)
    rest = [ask("b"), ask("c")]
    with pytest.raises(BusyError, match="2 requests are waiting"):
        ask("d")
    engine.gate.set()
    assert [h.text for h in (first, *rest)] == ["a", "b", "c"]


def test_an_error_ends_the_one_it_belongs_to(make: Any) -> None:
    ask = make()
    bad, broken, good = ask("bad"), ask("x!"), ask("abcd")
    assert isinstance(bad.last.error, InputError)
    assert str(broken.last.error) == "this row"
    assert good.text == "abcd"


def test_a_failed_step_ends_what_ran_and_nothing_else(make: Any, engine: Engine) -> None:
    ask = make(max_rows=2)
    engine.gate.clear()
    broken, with_it, later = ask("x#"), ask("abcdef"), ask("yz")
    engine.gate.set()
    assert str(broken.last.error) == str(with_it.last.error) == "all rows"
    assert later.text == "yz"
    assert engine.sessions[0].closed and len(engine.sessions) == 2


def test_lost_processes_end_the_server(make: Any, engine: Engine) -> None:
    told: list[int] = []
    engine.gate.clear()
    ask = make(max_rows=1, on_fatal=lambda: told.append(1))
    running, waiting = ask("x#"), ask("y")
    engine.usable = False
    engine.gate.set()
    assert isinstance(running.last, Failed) and isinstance(waiting.last, Failed)
    until(lambda: told == [1])
    with pytest.raises(BusyError):
        ask("z")


def test_a_stop_string_ends_the_answer_before_it(make: Any) -> None:
    heard = make()("one STOP two", stops=("STOP",))
    assert heard.text == "one "
    assert heard.last.answer.finish_reason == "stop"
    assert len(heard.last.answer.token_ids) == len("one ")


def test_a_listener_that_fails_is_cancelled(make: Any, engine: Engine) -> None:
    ask = make()

    def fail(event: Event) -> None:
        raise OSError("gone")

    ask.scheduler.submit(Request(SimpleNamespace(text="x" * 10_000, length=1)), fail)
    assert ask("ok").text == "ok"
    until(lambda: ask.scheduler.load == (0, 0))
    assert engine.steps < 20


def test_closing_lets_answers_finish_within_the_grace(make: Any, engine: Engine) -> None:
    ask = make()
    heard = ask("abc")
    ask.scheduler.close(grace=5)
    assert heard.text == "abc"
    assert engine.sessions[0].closed
    with pytest.raises(BusyError, match="shutting down"):
        ask("x")


def test_closing_ends_the_rest(make: Any, engine: Engine) -> None:
    ask = make()
    heard = ask("x" * 1_000_000)
    until(lambda: engine.steps > 1)
    ask.scheduler.close(grace=0.05)
    assert isinstance(heard.last, Failed) and "shut down" in str(heard.last.error)


def test_prompts_are_computed_in_pieces_of_the_size_that_was_asked_for(make: Any, engine: Engine) -> None:
    assert make()("a").text == "a" and engine.piece == 256  # by itself no stream waits for a whole prompt
    assert make(piece=32)("b").text == "b" and engine.piece == 32
