"""What is asked about annotated images: which questions, how many of them, in which words.

Words of a question or an answer: `{ref}` a name, `{box}` its boxes, `{objects}` all names with their boxes, `{format}`
how the model writes a box.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sat_models.errors import ConfigError, UnknownNameError

CAPTION_PROMPT = "Describe this image."
"""Question of a caption, for formats that carry none."""


@dataclass(frozen=True)
class Wording:
    """How a task asks and answers; one of each is drawn for a sample.

    Attributes:
        questions: with the words that the task fills in.
        answers: the same.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]


TASK_WORDS = {
    "rec": ("ref", "box", "format"), "reg": ("ref", "box", "format"), "grounded_caption": ("objects", "format"),
    "absent": ("ref", "format"), "caption": ("caption",),
}  # fmt: skip
"""The tasks, and the words that each fills in."""
WORDINGS = {
    "rec": Wording(("Where is {ref}? answer in {format} format.",), ("{box}",)),
    "reg": Wording(("Tell me what you see within the designated area {box} in the picture.",), ("{ref}",)),
    "grounded_caption": Wording(("Describe this image with a box for each object.",), ("{objects}.",)),
    "absent": Wording((), ("It is not in this image.",)),
    "caption": Wording((CAPTION_PROMPT,), ("{caption}",)),
}
"""As `scripts/evaluate.py` asks; `absent` asks as `rec` does unless it has questions of its own."""
SHARES = {"rec": 1.0, "reg": 1.0, "grounded_caption": 1.0, "absent": 0.0, "caption": 1.0}


@dataclass(frozen=True)
class Asking:
    """The settings of the questions.

    Attributes:
        shares: of the samples that the annotations allow, by task; of `absent`, for each that `rec` allows.
        wordings: by task.
        seed: of what is drawn. The same seed asks the same, whichever form the annotations have.
        most_boxes: an answer with more boxes is not asked for.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: MappingProxyType(SHARES))
    wordings: Mapping[str, Wording] = field(default_factory=lambda: MappingProxyType(WORDINGS))
    seed: int = 1234
    most_boxes: int = 20

    def __post_init__(self) -> None:
        for task, share in self.shares.items():
            if task not in SHARES:
                raise UnknownNameError("task of boxes", task, SHARES)
            if not 0 <= share <= 1:
                raise ConfigError(f"box_tasks: the share of {task} is {share}; it must be at least 0 and at most 1")
        if self.most_boxes < 1:
            raise ConfigError(f"most_boxes is {self.most_boxes}; it must be at least 1")

    def share(self, task: str) -> float:
        """0 for a task that is not asked for."""
        return self.shares.get(task, 0.0)

    def wording(self, task: str) -> Wording:
        """Its questions and answers."""
        own = self.wordings[task]
        return own if own.questions else replace(own, questions=self.wordings["rec"].questions)


def asking_from(
    tasks: Mapping[str, float] | Sequence[str] | None = None,
    templates: str | Path | None = None,
    *,
    seed: int = 1234,
    prompt: str | None = None,
) -> Asking:
    """Settings as users give them.

    Args:
        tasks: share by task, or ["rec=1", "reg=0.5"]; tasks that are not named are left out. None is `SHARES`.
        templates: a YAML file: task -> `question` and `answer`, each a text or a list of them; and `most_boxes`.
        seed: see `Asking`.
        prompt: the question of captions.

    Raises:
        ConfigError: a share that is no number from 0 to 1; a file that is missing or holds something else.
        UnknownNameError: an unknown task, or an unknown word in a template.
    """
    content = _read(Path(templates)) if templates else {}
    most = content.pop("most_boxes", Asking.most_boxes)
    if not isinstance(most, int) or isinstance(most, bool):
        raise ConfigError(f"{templates}: most_boxes is {most!r:.40}; it must be a whole number")
    wordings = {task: _wording(task, content.get(task, {}), f"{templates}: {task}") for task in WORDINGS}
    for name in content:
        if name not in WORDINGS:
            raise UnknownNameError("task of boxes", str(name), [*WORDINGS, "most_boxes"], hint=f"(in {templates})")
    if prompt is not None:
        wordings["caption"] = replace(wordings["caption"], questions=(prompt.replace("{", "{{").replace("}", "}}"),))
    return Asking(shares_from(tasks), wordings, seed, most)


def shares_from(tasks: Mapping[str, float] | Sequence[str] | None) -> Mapping[str, float]:
    """{"rec": 0.5} from itself or from ["rec=0.5"]; a bare name is all of it. Raises ConfigError."""
    if tasks is None:
        return SHARES
    pairs = tasks.items() if isinstance(tasks, Mapping) else [str(one).partition("=")[::2] for one in tasks]
    try:
        return {str(task): 1.0 if share == "" else float(share) for task, share in pairs}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"box_tasks takes TASK=SHARE, such as rec=1 reg=0.5; got {tasks!r:.80}") from error


def _wording(task: str, given: Any, where: str) -> Wording:
    if not isinstance(given, Mapping) or set(given) - {"question", "answer"}:
        raise ConfigError(f"{where} is {given!r:.60}; it must hold 'question' and 'answer', one of them or both")
    usual = WORDINGS[task]
    questions = _texts(task, given["question"], f"{where}.question") if "question" in given else usual.questions
    answers = _texts(task, given["answer"], f"{where}.answer") if "answer" in given else usual.answers
    return Wording(questions, answers)


def _texts(task: str, given: Any, where: str) -> tuple[str, ...]:
    """A text or a list of texts, with words that the task has."""
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError(f"{where} is {given!r:.60}; it must be text, or a list of texts")
    for text in texts:
        try:
            words = [word for _, word, _, _ in string.Formatter().parse(text) if word is not None]
        except ValueError as error:
            raise ConfigError(f"{where}: '{text:.60}' cannot be filled in ({error}); write {{{{ for a brace") from error
        for word in words:
            if word not in TASK_WORDS[task]:
                raise UnknownNameError("word of a template", word, TASK_WORDS[task], hint=f"(in {where})")
    return tuple(texts)


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of box templates {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold tasks with 'question' and 'answer', but it is a {type(content).__name__}")
    return content
