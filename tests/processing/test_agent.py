"""Questions for a screen, and answers taken apart, whole or damaged."""

from __future__ import annotations

import pytest

from sat_models.errors import InputError
from sat_models.models.cogagent.agent import AgentReply, Operation, agent_prompt, parse_agent_reply, with_grounding

WHOLE = """Plan: 1. Type 'CogVLM' into the search bar. 2. Wait for 10. of the results.
3. Open the first result.

Next Action: Move the cursor to the search bar and type 'CogVLM'.

Grounded Operation: [combobox]  Search -> TYPE: CogVLM at the box [[212,498,787,564]]"""


def _operation(line: str) -> Operation:
    operation = parse_agent_reply(f"Grounded Operation: {line}", 1000, 1000).operation
    assert operation is not None
    return operation


def test_prompt() -> None:
    assert agent_prompt(" search CogVLM ") == 'What steps do I need to take to "search CogVLM"?(with grounding)'
    assert agent_prompt("search CogVLM", grounded=False) == 'What steps do I need to take to "search CogVLM"?'
    assert with_grounding(with_grounding("Where is the menu? ")) == "Where is the menu?(with grounding)"
    with pytest.raises(InputError, match="task is empty"):
        agent_prompt("  ")


def test_whole_answer() -> None:
    reply = parse_agent_reply(WHOLE, width=2000, height=500)
    assert reply.plan == (
        "Type 'CogVLM' into the search bar.",
        "Wait for 10. of the results.",
        "Open the first result.",
    )
    assert reply.next_action == "Move the cursor to the search bar and type 'CogVLM'."
    operation = reply.operation
    assert (operation.action, operation.value) == ("TYPE", "CogVLM")
    assert (operation.element_type, operation.element) == ("combobox", "Search")
    assert [box.normalized for box in operation.boxes] == [(212, 498, 787, 564)]
    assert operation.boxes[0].pixels == (424.0, 249.0, 1574.0, 282.0) and operation.boxes[0].phrase == "Search"
    assert operation.point == (999.0, 265.5)
    assert reply.text == WHOLE


def test_on_one_line() -> None:
    reply = parse_agent_reply("Plan: 1. A 2. B Next Action: do A Grounded Operation:tap [[681,808]]", 100, 200)
    assert reply.plan == ("A", "B") and reply.next_action == "do A"
    assert reply.operation.action == "TAP" and reply.operation.value == "" and not reply.operation.boxes
    assert reply.operation.point == (68.1, 161.6)


def test_headings_in_other_forms() -> None:
    text = "**Plan**:\n- Open the menu\n- Quit\n\n**Action：** open the menu\noperation: [menuitem] File → CLICK"
    reply = parse_agent_reply(text, 10, 10)
    assert reply.plan == ("Open the menu", "Quit") and reply.next_action == "open the menu"
    assert (reply.operation.element, reply.operation.action, reply.operation.point) == ("File", "CLICK", None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[button] Search -> CLICK at the box [[1,2,3,4]]", ("button", "Search", "CLICK", "")),
        ("[textbox] -> TYPE: a -> b at the box [[1,2,3,4]]", ("textbox", "", "TYPE", "a -> b")),
        ("[combobox] Sort -> SELECT: Price: low [[1,2,3,4]].", ("combobox", "Sort", "SELECT", "Price: low")),
        ("Search -> CLICK", ("", "Search", "CLICK", "")),
        ("scroll down", ("", "", "SCROLL", "down")),
        ("TYPE：你好", ("", "", "TYPE", "你好")),
        ("[combobox] Sea", ("combobox", "Sea", "", "")),  # cut off, further and further
        ("[button] Search -> CLICK at the box [[212,49", ("button", "Search", "CLICK", "")),
        ("[button] Search -> CLICK at the box", ("button", "Search", "CLICK", "")),
        ("at the box [[1,2,3,4]]", ("", "", "", "")),
    ],
)
def test_operations(line: str, expected: tuple[str, str, str, str]) -> None:
    operation = _operation(line)
    assert (operation.element_type, operation.element, operation.action, operation.value) == expected
    assert operation.text == line


def test_several_boxes_and_large_values() -> None:
    operation = _operation("[link] x -> CLICK at the box [[0,0,100,100;200,200,1500,300]]")
    assert [box.normalized for box in operation.boxes] == [(0, 0, 100, 100), (200, 200, 999, 300)]
    assert operation.point == (50.0, 50.0)
    assert _operation("tap [[5000,10]]").point == (999.0, 10.0)


@pytest.mark.parametrize("text", ["", "I cannot see a search bar.", "Plan:", "Grounded Operation:", "plan ahead"])
def test_absent_parts(text: str) -> None:
    assert parse_agent_reply(text, 10, 10) == AgentReply(text=text)


def test_first_section_that_is_not_empty_counts() -> None:
    reply = parse_agent_reply("Next Action:\nNext Action: one\nNext Action: two", 10, 10)
    assert reply.next_action == "one"


def test_bad_size() -> None:
    with pytest.raises(InputError, match="0 x 10"):
        parse_agent_reply("Plan: 1. a", 0, 10)
