"""An OpenAI server under load, as its clients see it: answers, first tokens, time between tokens of a stream."""

from __future__ import annotations

import base64
import io
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sat_models.errors import InputError, MissingPackageError
from sat_models.processing.image import load_image
from sat_models.text import markdown_table

_COLUMNS = (
    "clients", "answers/s", "tokens/s", "first token p50", "p90", "p99", "between tokens p50", "p99", "failed",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """The question of every client.

    Attributes:
        model: its name on the server.
        text: the words.
        image: the file; each request sends it with some pixels of its own, so that no cache knows it.
        same_image: send the file as it is, so that caches may know it.
        max_tokens: longest answer.
    """

    model: str
    text: str
    image: Path | None
    same_image: bool = False
    max_tokens: int = 64

    def messages(self, number: int) -> list[dict[str, Any]]:
        """Those of request `number`."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        if self.image is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": self._data_url(number)}})
        return [{"role": "user", "content": parts}]

    def _data_url(self, number: int) -> str:
        image = load_image(self.image)
        if not self.same_image:
            noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image.paste(Image.fromarray(noise), (0, 0))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass
class Seen:
    """The outcome of the requests of one measurement.

    Attributes:
        seconds: how long it took.
        first: of each answer, seconds to its first text.
        between: seconds between two pieces of text of one stream.
        tokens: of all answers.
        failed: what the server said to requests that failed.
    """

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: list[str] = field(default_factory=list)

    def row(self, name: str) -> tuple[str, ...]:
        """Of the table."""
        times = [_milliseconds(self.first, share) for share in (50, 90, 99)]
        times += [_milliseconds(self.between, share) for share in (50, 99)]
        rates = [f"{count / self.seconds:.3g}" for count in (len(self.first), self.tokens)]
        return (name, *rates, *times, str(len(self.failed)))


def _milliseconds(values: Sequence[float], share: int) -> str:
    return f"{1000 * np.percentile(values, share):.3g} ms" if values else ""


def open_client(url: str, key: str) -> Any:
    """OpenAI's own client of a server at `url` (ending in /v1). Raises MissingPackageError."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise MissingPackageError("openai", "test", "Measuring a server") from error
    return OpenAI(base_url=url, api_key=key, max_retries=0, timeout=600)


def measure(client: Any, question: Question, *, clients: int, seconds: float, first_number: int = 0) -> Seen:
    """So many clients, each of which asks again when its answer has come, for so long.

    Args:
        first_number: of the requests; others make other images.
    """
    seen, lock, counter = Seen(), threading.Lock(), itertools.count(first_number)
    end = time.perf_counter() + seconds

    def ask_again() -> None:
        while time.perf_counter() < end:
            with lock:
                number = next(counter)
            ask(client, question, number, seen, lock)

    start, threads = time.perf_counter(), [threading.Thread(target=ask_again) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen.seconds = time.perf_counter() - start
    return seen


def measure_arrivals(
    client: Any, running: Question, arriving: Question, *, clients: int, every: float, seconds: float
) -> tuple[Seen, Seen, Seen]:
    """Streams alone, and the same while a request with a new image comes every so many seconds.

    Returns:
        The streams alone, the streams beside the arrivals, the arrivals.
    """
    alone = measure(client, running, clients=clients, seconds=seconds)
    came, lock, over = Seen(), threading.Lock(), threading.Event()

    def arrivals() -> None:
        waiting: list[threading.Thread] = []
        for number in itertools.count(2 * 10**6):
            if over.wait(every):
                break
            waiting.append(threading.Thread(target=ask, args=(client, arriving, number, came, lock)))
            waiting[-1].start()
        for thread in waiting:
            thread.join()

    coming = threading.Thread(target=arrivals)
    coming.start()
    try:
        beside = measure(client, running, clients=clients, seconds=seconds, first_number=10**6)
    finally:
        over.set()
        coming.join()
    came.seconds = beside.seconds
    return alone, beside, came


def ask(client: Any, question: Question, number: int, seen: Seen, lock: threading.Lock) -> None:
    """One streamed answer; what came of it goes into `seen`, under `lock`."""
    start, times, tokens = time.perf_counter(), [], 0
    try:
        stream = client.chat.completions.create(
            model=question.model, messages=question.messages(number), max_tokens=question.max_tokens, stream=True,
            stream_options={"include_usage": True}, temperature=0,
        )  # fmt: skip
        for event in stream:
            if event.usage is not None:
                tokens = event.usage.completion_tokens
            if event.choices and event.choices[0].delta.content:
                times.append(time.perf_counter())
    except Exception as error:  # whatever a server and a connection may do is a result here
        with lock:
            seen.failed.append(f"{type(error).__name__}: {error}")
        return
    with lock:
        seen.tokens += tokens
        seen.first += [times[0] - start] if times else []
        seen.between += [later - earlier for earlier, later in itertools.pairwise(times)]


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of `Seen.row`s."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    return markdown_table(lines)


def check(seen: Seen) -> None:
    """Raises InputError if not one answer came, with what the server said."""
    if not seen.first:
        reason = seen.failed[0] if seen.failed else "no answer had any text"
        raise InputError(f"the server answered nothing: {reason}")
