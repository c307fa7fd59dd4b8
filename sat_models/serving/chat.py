"""A conversation about a picture: what command line, web page and HTTP hold per user."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sat_models.generation.answer import GenerationResult, Request
from sat_models.generation.ranks import SharedEngine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.strict.constraint import Constraint
from sat_models.processing.boxes import Box
from sat_models.processing.drawing import draw_boxes
from sat_models.processing.image import ImageSource, load_image

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer(GenerationResult):
    """A finished turn; `boxes` and `parts` are those of `Reading`, in pixels of the session's picture. Scores are there
    where the session was asked for them."""

    boxes: list[Box] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The line of `--json`: text, token_ids, finish_reason, boxes as [x1, y1, x2, y2] in pixels, `parts`, and
        scores of the answer, of each box and of each token (logarithms), and `incomplete`, where there are such."""
        scores = {"score": self.score, "box_scores": self.box_scores, "logprobs": self.logprobs}
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "boxes": [list(box.pixels) for box in self.boxes],
            **self.parts,
            **(scores if self.logprobs is not None else {}),
            **({} if self.incomplete is None else {"incomplete": self.incomplete}),
        }

    def scores_line(self) -> str:
        """The scores of the answer and of its boxes, for people."""
        shown = f"score {self.score:.3g}"
        boxes = ", ".join(f"{score:.3g}" for score in self.box_scores)
        return f"{shown}; boxes {boxes}" if boxes else shown


def shared_engine(vlm: VLM, *, keep_prefixes: int = 1, prefix_bytes: int | None = None) -> SharedEngine:
    """The engine that serves `vlm`; make it on all processes.

    Args:
        keep_prefixes, prefix_bytes: see `AnsweringModel`; as it is, the last answer's cache is kept for the next turn.

    Raises:
        InputError: `vlm` has no tokenizer.
    """
    return SharedEngine(vlm.engine(keep_prefixes=keep_prefixes, prefix_bytes=prefix_bytes))


class ChatSession:
    """Picture, history and options of one conversation. A failed turn leaves it as it was.

    Args:
        vlm: a loaded model.
        engine: shared by the sessions of one model; None makes one.
        options: how to sample.
        version: prompt style; None takes the model's own.
        allow_empty_query: let an empty question through (`--no_prompt`).
        max_tiles: most tiles of a picture; None is the model's own choice.
        scores: note how probable each token is.
        constraint: the form that answers must have.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        engine: SharedEngine | None = None,
        options: SamplingOptions | None = None,
        version: str | None = None,
        allow_empty_query: bool = False,
        max_tiles: int | None = None,
        scores: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        self._vlm = vlm
        self._engine = engine or shared_engine(vlm)
        self.options = options or SamplingOptions()
        self.version = version
        self.allow_empty_query, self.max_tiles, self.scores = allow_empty_query, max_tiles, scores
        self.constraint = constraint
        self.image: Image.Image | None = None
        self.history: list[tuple[str, str]] = []

    def set_image(self, source: ImageSource | None) -> None:
        """Take a picture (None: text only) and start over.

        Raises:
            InputError: it cannot be read; picture and history stay as they were.
        """
        self.image = None if source is None else load_image(source)
        self.history = []

    @property
    def usable(self) -> bool:
        """True if another question can be asked; False once the processes of a split model have lost each other."""
        return self._engine.usable

    def clear(self) -> None:
        """Forget picture and history."""
        self.image, self.history = None, []

    def ask(self, query: str, *, stream: Callable[[str], object] | None = None) -> Answer:
        """One turn.

        Args:
            query: the question.
            stream: called with each piece of text as soon as it is there; the pieces joined are the answer's text.

        Raises:
            InputError: an empty question, or a prompt that leaves no room for an answer.
            Exception: whatever the model or `stream` raises; the model is left as it was.
        """
        request = Request.of(
            self._vlm.processor, self.image, query, history=self.history, version=self.version, options=self.options,
            allow_empty_query=self.allow_empty_query, max_tiles=self.max_tiles,
            logprobs=self.scores, constraint=self.constraint,
        )  # fmt: skip
        answer = self._engine.stream(request)
        with contextlib.closing(answer.pieces()) as pieces:
            for piece in pieces:
                if stream is not None:
                    stream(piece)
        result = answer.result()
        self.history.append((query, result.text))
        found = self._vlm.read(result.text, None if self.image is None else self.image.size)
        return Answer(**vars(result), **vars(found))

    def draw(self, answer: Answer, path: Path) -> Path | None:
        """Save the picture with the answer's boxes.

        Args:
            path: its ending chooses the format.

        Returns:
            The path, or None when there is nothing to draw or it could not be saved (a warning says why; an answer is
            never lost to its drawing).
        """
        if self.image is None or not answer.boxes:
            return None
        try:
            draw_boxes(self.image, answer.boxes).save(path)
        except Exception as error:
            logger.warning("the boxes could not be drawn to '%s': %s: %s", path, type(error).__name__, error)
            return None
        return path
