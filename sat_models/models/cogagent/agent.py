"""Operating a screen with CogAgent: the question to ask about a screenshot, and what its answer says to do.

    Plan: 1. Type 'CogVLM' into the search bar. 2. Open the first result.
    Next Action: Move to the search bar and type 'CogVLM' into it.
    Grounded Operation: [combobox] Search -> TYPE: CogVLM at the box [[212,498,787,564]]

Source: CogAgent (arXiv 2312.08914, section 4 and its appendix); on phones the operation is a point, `tap [[681,808]]`.
The model writes what it likes: a part that is absent or cut off is empty here, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from sat_models.errors import InputError
from sat_models.processing.boxes import LARGEST, Box, parse_boxes

GROUNDING_SUFFIX = "(with grounding)"
"""Behind a question, it asks for coordinates in the answer."""

_QUESTION = 'What steps do I need to take to "{task}"?'

_HEADING = re.compile(
    r"(?:^[ \t*]*(plan|(?:next )?action|(?:grounded )?operation)"  # at the start of a line
    r"|\b(next action|grounded operation))[ *]*[:：][ *]*",  # or anywhere
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(r"(?:^|(?<=\s))(\d{1,2})[.)、]\s*")
_PLACE = re.compile(r"\s*(?:\bat (?:the )?(?:box|point)\b\s*)?(?:\[\s*\[[\d\s,;\[\]]*\.?)?$", re.IGNORECASE)
_POINT = re.compile(r"\[\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]\s*\]", re.ASCII)
_ELEMENT_TYPE = re.compile(r"\[([^\[\]]*)\]\s*")
_ARROW = re.compile(r"\s*(?:->|→)\s*")
_ACTION = re.compile(r"([^\W\d]+)\s*[:：]?\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Operation:
    """One thing to do on the screen.

    Attributes:
        text: as the model wrote it.
        action: what to do, in capitals: "CLICK", "TYPE", "SELECT", "TAP", ...; "" if the model did not say.
        value: what to type or select, or how ("down" of "scroll down"); "" without.
        element_type: "combobox", "button", ...; "" without.
        element: the label of what is operated; "" without.
        boxes: where it is; usually one box.
        point: (x, y) in pixels to click on: the point that the model named, else the centre of the first box; None
            without either.
    """

    text: str
    action: str = ""
    value: str = ""
    element_type: str = ""
    element: str = ""
    boxes: tuple[Box, ...] = ()
    point: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields; boxes as [x1, y1, x2, y2] and the point as [x, y], in pixels."""
        return {
            **vars(self),
            "boxes": [list(box.pixels) for box in self.boxes],
            "point": None if self.point is None else list(self.point),
        }


@dataclass(frozen=True)
class AgentReply:
    """An answer to `agent_prompt`, taken apart.

    Attributes:
        text: the whole answer.
        plan: its steps, numbers removed.
        next_action: the next one in words.
        operation: the next one as an operation with its place; None without.
    """

    text: str
    plan: tuple[str, ...] = ()
    next_action: str = ""
    operation: Operation | None = None

    @property
    def says_what_to_do(self) -> bool:
        """False for an answer that has none of the parts."""
        return self != AgentReply(self.text)

    def as_json(self) -> dict[str, Any]:
        """The parts: plan, next_action, operation (None without)."""
        operation = None if self.operation is None else self.operation.as_json()
        return {"plan": list(self.plan), "next_action": self.next_action, "operation": operation}


def with_grounding(question: str) -> str:
    """`question` with the suffix that asks for coordinates, once."""
    question = question.rstrip()
    return question if question.endswith(GROUNDING_SUFFIX) else question + GROUNDING_SUFFIX


def agent_prompt(task: str, *, grounded: bool = True) -> str:
    """The question that asks for a plan and the next action on a screenshot.

    Args:
        task: what is to be reached, "search for CogVLM".
        grounded: ask for the operation and its box too.

    Raises:
        InputError: an empty task.
    """
    task = task.strip()
    if not task:
        raise InputError('The task is empty. Say what is to be done on the screen, such as "search for CogVLM".')
    question = _QUESTION.format(task=task)
    return with_grounding(question) if grounded else question


def parse_agent_reply(text: str, width: int, height: int) -> AgentReply:
    """Take an answer apart.

    Args:
        text: the model's answer.
        width, height: of the screenshot in pixels.

    Raises:
        InputError: a size below 1.
    """
    if width < 1 or height < 1:
        raise InputError(f"The screenshot's size is given as {width} x {height}; both must be at least 1 pixel.")
    sections = _sections(text)
    operation = sections.get("operation", "")
    return AgentReply(
        text=text,
        plan=_steps(sections.get("plan", "")),
        next_action=sections.get("action", ""),
        operation=_operation(operation, width, height) if operation else None,
    )


def _sections(text: str) -> dict[str, str]:
    """Text under the headings, by the last word of the heading; of several, the first that is not empty."""
    sections: dict[str, str] = {}
    for heading, content in _cut(text, list(_HEADING.finditer(text))):
        name = (heading[1] or heading[2]).lower().split()[-1]
        sections[name] = sections.get(name) or content.strip()
    return sections


def _cut(text: str, marks: list[re.Match[str]]) -> Iterator[tuple[re.Match[str], str]]:
    """Each mark with the text between it and the next one."""
    for mark, following in zip_longest(marks, marks[1:]):
        yield mark, text[mark.end() : following.start() if following else None]


def _steps(plan: str) -> tuple[str, ...]:
    """By its numbers 1, 2, 3 … if it has them, else by line."""
    marks: list[re.Match[str]] = []
    for mark in _NUMBER.finditer(plan):
        if int(mark[1]) == len(marks) + 1:  # other numbers belong to the text
            marks.append(mark)
    parts = [part for _, part in _cut(plan, marks)] or plan.splitlines()
    cleaned = (part.strip(" \t\r\n-*•") for part in parts)
    return tuple(part for part in cleaned if part)


def _operation(text: str, width: int, height: int) -> Operation:
    """`[type] element -> ACTION: value at the box [[…]]`, each part optional."""
    body, element_type, element = _PLACE.sub("", text, count=1).strip(), "", ""
    if kind := _ELEMENT_TYPE.match(body):
        element_type, body = kind[1].strip(), body[kind.end() :]
    before, *after = _ARROW.split(body, maxsplit=1)
    if after:
        element, body = before, after[0]
    elif element_type:  # cut off before its arrow
        element, body = body, ""
    action = _ACTION.match(body)
    boxes = tuple(replace(box, phrase=element) for box in parse_boxes(text, width, height, use_spacy=False))
    return Operation(
        text=text,
        action=action[1].upper() if action else "",
        value=action[2].strip() if action else body,
        element_type=element_type,
        element=element,
        boxes=boxes,
        point=_point(text, boxes, width, height),
    )


def _point(text: str, boxes: tuple[Box, ...], width: int, height: int) -> tuple[float, float] | None:
    if named := _POINT.search(text):
        x, y = (min(int(value), LARGEST) for value in named.groups())
        return x * width / 1000, y * height / 1000
    if not boxes:
        return None
    x1, y1, x2, y2 = boxes[0].pixels
    return (x1 + x2) / 2, (y1 + y2) / 2
