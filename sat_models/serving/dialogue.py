"""The dialogue in a terminal: a picture, questions, `clear`, `stop`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from sat_models.errors import ZooError
from sat_models.serving.chat import Answer, ChatSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wording:
    """The words of the dialogue in one language."""

    welcome: str
    image: str
    user: str
    model: str
    drawn: str
    cut_off: str
    error: str


WORDINGS = {
    "english": Wording(
        welcome="Welcome. Give a picture, then ask about it. 'clear' starts over, 'stop' ends.",
        image="Image path or URL (Enter for text only): ",
        user="User: ",
        model="Model: ",
        drawn="Boxes drawn in {path}",
        cut_off="(The answer was cut off; --max_new_tokens and --max_length say where.)",
        error="error: {message}",
    ),
    "chinese": Wording(
        welcome="欢迎使用。请先给出图像，再输入问题。输入 clear 重新开始，输入 stop 结束程序。",
        image="请输入图像路径或 URL（直接回车进入纯文本对话）：",
        user="用户：",
        model="模型：",
        drawn="已将方框画在 {path}",
        cut_off="（回答因长度限制被截断，可用 --max_new_tokens 和 --max_length 调整。）",
        error="错误：{message}",
    ),
}


class _Ended(Exception):
    """The user said stop, or there is no more input."""


class Dialogue:
    """Reads pictures and questions and prints answers until `stop` or the end of the input. No error ends it.

    Args:
        session: what answers.
        language: a key of `WORDINGS`.
        image: the first picture, so that it is not asked for; a path or URL.
        ask_first: send an empty question as soon as there is a picture (`--no_prompt`).
        stream: print answers while they are made.
        output: where to save pictures with boxes; None: beside, in the working directory, under a name of its own.
        read: asks for a line, as `input`.
    """

    def __init__(
        self,
        session: ChatSession,
        *,
        language: str = "english",
        image: str | None = None,
        ask_first: bool = False,
        stream: bool = False,
        output: Path | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        self._session, self._words = session, WORDINGS[language]
        self._image, self._ask_first, self._stream = image, ask_first, stream
        self._output, self._read_line = output, read
        self._piece_shown = False

    def run(self) -> None:
        """Talk until the user ends it."""
        self._say(self._words.welcome)
        with contextlib.suppress(_Ended):
            given = self._image
            while True:
                self._session.clear()
                self._take_image(given)
                given = None
                self._talk()

    def _take_image(self, given: str | None) -> None:
        """Ask until there is a picture, or an empty line for none."""
        while True:
            source = self._read(self._words.image).strip() if given is None else given
            given = None
            if source == "clear":
                continue
            try:
                self._session.set_image(source or None)
            except ZooError as error:
                self._complain(error)
                continue
            self._image = source
            return

    def _talk(self) -> None:
        """Questions and answers until `clear`."""
        if self._ask_first:
            self._turn("")
        while True:
            line = self._read(self._words.user)
            if line.strip() == "clear":
                return
            self._turn(line)

    def _turn(self, query: str) -> None:
        """One question; whatever goes wrong is said, and the next one can be asked."""
        try:
            answer = self._session.ask(query, stream=self._show_piece if self._stream else None)
        except ZooError as error:
            self._complain(error)
            return
        except Exception as error:
            if not self._session.usable:
                raise
            self._complain(f"{type(error).__name__}: {error}")
            logger.exception("this turn failed")
            return
        if self._stream:
            self._say("" if self._piece_shown else self._words.model)
        else:
            self._say(self._words.model + answer.text)
        self._piece_shown = False
        if answer.finish_reason == "length":
            self._say(self._words.cut_off)
        for name, part in answer.parts.items():
            self._say(f"{name}: {json.dumps(part, ensure_ascii=False)}")
        if answer.logprobs is not None:
            self._say(answer.scores_line())
        if answer.incomplete is not None:
            self._say(answer.incomplete)
        self._draw(answer)

    def _show_piece(self, piece: str) -> None:
        print(piece if self._piece_shown else self._words.model + piece, end="", flush=True)
        self._piece_shown = True

    def _draw(self, answer: Answer) -> None:
        if answer.boxes and self._session.image is not None:
            path = self._session.draw(answer, self._output or _free_name(self._image))
            if path is not None:
                self._say(self._words.drawn.format(path=path))

    def _read(self, prompt: str) -> str:
        """A line. Raises _Ended at `stop` and at the end of the input."""
        try:
            line = self._read_line(prompt)
        except EOFError:
            self._say("")
            raise _Ended from None
        if line.strip() == "stop":
            raise _Ended
        return line

    def _complain(self, error: Exception | str) -> None:
        if self._piece_shown:
            self._say("")
            self._piece_shown = False
        sys.stdout.flush()
        print(self._words.error.format(message=" ".join(str(error).split())), file=sys.stderr, flush=True)

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


def _free_name(source: str | None) -> Path:
    """A name in the working directory that is not taken: `<picture>_boxes.png`, then with a number."""
    stem = "picture" if not source or ":" in source else PurePath(source).stem
    for name in (f"{stem}_boxes{number}.png" for number in ("", *range(2, 10000))):
        if not Path(name).exists():
            return Path(name)
    return Path(f"{stem}_boxes.png")
