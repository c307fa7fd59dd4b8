"""One training record, what can be wrong with one, and where its pictures are."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sat_models.errors import InputError
from sat_models.processing.box_forms import BoxForm
from sat_models.processing.prompts import PromptStyle, Turn
from sat_models.text import is_utf8, printable
from sat_models.training.boxed_text import BoxGroup, filled_turns

logger = logging.getLogger(__name__)

ImageFile = Path | str
"""A file, or a URL as text."""
SLOT = "<image>"
"""Says in a question of training data that a picture stands here."""


@dataclass(frozen=True)
class Record:
    """One dialogue about some pictures.

    Attributes:
        id: from the data, else the same as `source`.
        images: files that exist, or URLs; empty for text only.
        turns: (question, answer) pairs; answers are never empty.
        source: "file:line", for messages.
        untrained: numbers of turns, from 0, whose answers are read but not trained; the last turn is none of them.
        system: system text; in `turns` it stands in front of the first question, a line of its own.
        first_question: the first question without it; None where there is no system text.
        placed: the questions of `turns` with `<image>` where each picture stands; empty where nothing says so.
        boxes: what stands at the box marks of `turns`, in order; None for texts that are what they say.
        rejected: of a pair, the answer that the last one is better than; None elsewhere.
    """

    id: str
    images: tuple[ImageFile, ...]
    turns: tuple[Turn, ...]
    source: str
    untrained: tuple[int, ...] = ()
    system: str | None = None
    first_question: str | None = None
    placed: tuple[str, ...] = ()
    boxes: tuple[BoxGroup, ...] | None = None
    rejected: str | None = None

    def said(self, style: PromptStyle, form: BoxForm | None = None) -> tuple[tuple[Turn, ...], str | None]:
        """The turns as a prompt style takes them: with its marks where it reads pictures in any place, and boxes in a
        family's form (None: CogVLM's); and the system text, where there is one and the style has a place for it."""
        questions, apart = [question for question, _ in self.turns], None
        if style.images_anywhere and self.placed:
            questions = [_marked(question, style) for question in self.placed]
        if style.system is not None and self.system is not None and self.first_question is not None:
            first, apart = self.first_question, self.system
            if style.images_anywhere and self.placed:
                first = _marked(self.placed[0].removeprefix(f"{apart}\n"), style)
            questions = [first, *questions[1:]]
        turns = tuple(zip(questions, (answer for _, answer in self.turns), strict=True))
        return turns if self.boxes is None else filled_turns(turns, self.boxes, form), apart

    def fault(self) -> str | None:
        """The fault of its texts, if there is one: half of a surrogate pair, which JSON and file names can hold,
        cannot be written as UTF-8."""
        texts = [
            (what, number, text)
            for number, turn in enumerate(self.turns, 1)
            for what, text in zip(("question", "answer"), turn, strict=True)
        ]
        for what, number, text in [*texts, ("rejected answer", len(self.turns), self.rejected or "")]:
            if not is_utf8(text):
                shown = printable(text[max(0, _first_half(text) - 20) :])
                return f"the {what} of turn {number} is not UTF-8: half of a surrogate pair in '{shown:.60}'"
        return None

    def rows(self) -> tuple[Record, ...]:
        """Itself; of a pair, a record with the chosen and one with the rejected answer, which alone is trained."""
        if self.rejected is None:
            return (self,)
        *past, (question, chosen) = self.turns
        answers, untrained = (chosen, self.rejected), tuple(range(len(past)))
        turns = ((*past, (question, answer)) for answer in answers)
        return tuple(replace(self, turns=own, untrained=untrained, rejected=None) for own in turns)


def _marked(question: str, style: PromptStyle) -> str:
    """A question with the style's marks for `<image>`. Behind those at its beginning stands what the style puts
    behind an image that nothing has placed, and no other white space."""
    found = _FIRST_SLOTS.match(question)
    first = (style.mark + style.gap) * found.group().count(SLOT)
    return first + question[found.end() :].replace(SLOT, style.mark)


_FIRST_SLOTS = re.compile(rf"(?:\s*{SLOT}\s*)*")


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data. `kind` is one of `PROBLEM_KINDS`."""

    source: str
    kind: str
    message: str

    def __post_init__(self) -> None:
        for name in ("source", "message"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


PROBLEM_KINDS = {
    "json": "not JSON, or not UTF-8",
    "fields": "keys or roles missing, unknown or of the wrong type",
    "empty": "empty text",
    "slots": "as many <image> as pictures are needed",
    "image": "a picture is missing or cannot be read",
    "boxes": "a box outside of its picture, of no size, or of an unknown name",
    "too long": "does not fit into max_length",
    "duplicate": "the same pictures and turns again",
}

PROBLEMS_SHOWN = 10
"""So many are said one by one, and the rest counted."""
OnProblem = Callable[[Problem], None]
"""A handler of problems; when it returns, the record is left out and reading goes on."""


def raise_problem(problem: Problem) -> None:
    """The strict way: the first problem ends the reading. Raises InputError."""
    raise InputError(
        f"{problem}. Mend or remove it; scripts/validate_dataset.py lists all such places, and on_bad='skip' leaves "
        f"bad samples out."
    )


def raise_bare_problem(problem: Problem) -> None:
    """The same for data that the validator does not know. Raises InputError."""
    raise InputError(f"{problem}. Mend or remove it; on_bad='skip' leaves bad samples out.")


def count_kinds(problems: Iterable[Problem]) -> str:
    """ "3 image, 1 json": how often each kind came."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in problems).most_common())


def _first_half(text: str) -> int:
    """Where the first character stands that UTF-8 cannot write."""
    return next(at for at, character in enumerate(text) if 0xD800 <= ord(character) <= 0xDFFF)


class EntryError(Exception):
    """An entry that cannot be used; whoever reads it adds the place."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def at(self, source: str) -> Problem:
        """As a problem of that place."""
        return Problem(source, self.kind, str(self))


class ImageFinder:
    """From the names in one file to pictures on disk.

    A name is tried in `image_root` (where given), relative to the file and to the working directory, in `folders`, and
    at last by its base name beside the file, which is said once per file.
    """

    def __init__(
        self, file: Path, image_root: Path | None = None, *, folders: Sequence[Path] = (), quiet: bool = False
    ) -> None:
        self._file, self._root, self._folders = file, image_root, folders
        self._warned = quiet

    def find(self, name: str) -> ImageFile:
        """The picture of a name; URLs stay as they are.

        Raises:
            EntryError: it is nowhere.
        """
        if re.match(r"(https?://|data:)", name):
            return name
        folder = self._file.parent
        tried = [*([self._root / name] if self._root else []), folder / name, Path(name)]
        tried += [other / name for other in self._folders]
        found = next((path for path in tried if _is_file(path)), None)
        if found:
            return found
        beside = folder / re.split(r"[\\/]", name)[-1]
        if not _is_file(beside):
            places = ", ".join(dict.fromkeys(str(path)[:200] for path in (*tried, beside)))
            hint = "" if self._root else "; name the folder of the pictures with image_root"
            raise EntryError("image", f"picture '{name[:200]}' is not there (tried {places}){hint}")
        if not self._warned:
            logger.warning("%s: '%s' and maybe more is not where the path says; taking %s", self._file, name, beside)
            self._warned = True
        return beside


def _is_file(path: Path) -> bool:
    """True if it is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
