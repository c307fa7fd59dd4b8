"""Every format has a reader, and every fault a place."""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_helpers import image_file, write_json, write_jsonl

from sat_models.errors import InputError, UnknownNameError
from sat_models.models.families import prompt_styles
from sat_models.processing.prompts import PromptStyle
from sat_models.shapes.captcha import write_captchas
from sat_models.training.entries import CAPTION_PROMPT
from sat_models.training.formats import CAPTCHA_PROMPT, captcha_answer, detect_format, read_records
from sat_models.training.marks import without_slots
from sat_models.training.records import PROBLEM_KINDS, Problem

QA = {"prompt": "What?", "text": "A dog.", "image": "1.png"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 1.png and 2.png; the working directory is another, empty one."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    folder = tmp_path / "data"
    image_file(folder / "1.png")
    image_file(folder / "2.png", "blue")
    return folder


def problems_of(path: Path, **options: Any) -> list[Problem]:
    found: list[Problem] = []
    read_records(path, on_problem=found.append, **options)
    assert {problem.kind for problem in found} <= set(PROBLEM_KINDS)
    return found


def one_problem(here: Path, entry: Any) -> Problem:
    (problem,) = problems_of(write_jsonl(here / "x.jsonl", [entry]))
    assert problem.source == f"{here}/x.jsonl:1"
    return problem


def test_the_documents_jsonl(here: Path) -> None:
    path = write_jsonl(here / "x.jsonl", [{"id": 7, **QA}, "", {**QA, "image": "2.png"}])
    first, second = read_records(path)
    assert (first.id, first.images, first.turns) == ("7", (here / "1.png",), (("What?", "A dog."),))
    assert first.source == f"{path}:1" and second.source == second.id == f"{path}:3"


def test_the_examples_of_this_repository() -> None:
    records = read_records(Path(__file__).resolve().parents[2] / "examples")
    assert len(records) == 10 and all(record.images[0].is_file() for record in records)


def test_where_pictures_are_looked_for(here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_file(here / "examples" / "a.png")
    image_file(tmp_path / "cwd" / "examples" / "b.png")
    image_file(here / "c.png")
    image_file(tmp_path / "root" / "d.png")
    absolute = image_file(tmp_path / "e.png")
    names = ["examples/a.png", "examples/b.png", "examples/c.png", "D:\\old\\c.png", "d.png", str(absolute)]
    path = write_jsonl(here / "x.jsonl", [{**QA, "image": name} for name in names])
    with caplog.at_level(logging.WARNING):
        records = read_records(path, image_root=tmp_path / "root")
    assert [record.images[0] for record in records] == [
        here / "examples" / "a.png", Path("examples/b.png"), here / "c.png", here / "c.png",
        tmp_path / "root" / "d.png", absolute,
    ]  # fmt: skip
    assert len(caplog.records) == 1 and "examples/c.png" in caplog.text


def test_visualglm(here: Path) -> None:
    path = write_json(here / "x.json", [{"img": "1.png", "prompt": "背景?", "label": "蓝色"}])
    (record,) = read_records(path)
    assert record.turns == (("背景?", "蓝色"),) and record.images == (here / "1.png",)


def test_llava(here: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    more = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Left."}]
    entries = [{"id": "a", "image": "1.png", "conversations": said + more}, {"id": "b", "conversations": more}]
    path = write_json(here / "x.json", entries, indent=1)
    first, text_only = read_records(path)
    assert first.turns == (("What?", "A dog."), ("Where?", "Left.")) and first.images == (here / "1.png",)
    assert text_only.images == () and text_only.turns == (("Where?", "Left."),)
    lines = path.read_text().splitlines()
    assert first.source == f"{path}:2"
    assert '"id": "b"' in lines[int(text_only.source.rpartition(":")[2])]
    write_json(path, entries)
    assert [record.source for record in read_records(path)] == [f"{path}:1", f"{path}:1 (entry 2)"]


def test_messages_with_text(here: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image><image>\nCompare."},
        {"role": "assistant", "content": "Red and blue."},
    ]
    (record,) = read_records(write_jsonl(here / "x.jsonl", [{"messages": messages, "images": ["1.png", "2.png"]}]))
    assert record.turns == (("Be brief.\nCompare.", "Red and blue."),)
    assert record.images == (here / "1.png", here / "2.png")


def test_messages_with_pictures_of_their_own(here: Path) -> None:
    """GLM-4's data: the picture stands in front of the text of its message, unless a mark says where."""
    messages = [
        {"role": "user", "content": "Hello.", "image": None},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What?", "image": "2.png"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Like <image>?", "images": ["1.png"]},
        {"role": "assistant", "content": "No."},
    ]
    (record,) = read_records(write_jsonl(here / "x.jsonl", [{"messages": messages}]))
    assert record.images == (here / "2.png", here / "1.png")
    assert record.turns == (("Hello.", "Hello."), ("What?", "A dog."), ("Like ?", "No."))
    assert record.placed == ("Hello.", "<image>What?", "Like <image>?")
    for wrong in (
        [{"role": "user", "content": "<image><image>", "image": "1.png"}, {"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x", "image": "1.png"}],
    ):
        assert one_problem(here, {"messages": wrong}).kind in ("slots", "fields")


def test_where_pictures_stand_is_kept_for_styles_that_read_them_anywhere(here: Path) -> None:
    anywhere = PromptStyle("", "", "", "", "", system="", mark="<here>", gap="+", images_anywhere=True)
    entry = {
        "system": "Be kind.", "images": ["1.png", "2.png", "1.png"],
        "conversations": [
            {"from": "human", "value": "<image>\n<image> Which?"}, {"from": "gpt", "value": "This."},
            {"from": "human", "value": "And <image>?"}, {"from": "gpt", "value": "That."},
        ],
    }  # fmt: skip
    (record,) = read_records(write_jsonl(here / "x.jsonl", [entry]))
    turns, system = record.said(anywhere)
    assert turns == (("<here>+<here>+Which?", "This."), ("And <here>?", "That.")) and system == "Be kind."
    turns, system = record.said(replace(anywhere, system=None))
    assert turns[0][0] == "Be kind.\n<here>\n<here> Which?" and system is None
    assert record.said(replace(anywhere, images_anywhere=False))[0] == (("Which?", "This."), ("And ?", "That."))


@pytest.mark.parametrize("version", ["glm4v", "internvl2_5", "xcomposer2", "xcomposer2d5", "chat", "llava_v1"])
def test_families_that_read_pictures_anywhere(here: Path, version: str) -> None:
    texts = ("Who?", "I.", "<image>\nWhere?", "Here.")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    (record,) = read_records(write_jsonl(here / "x.jsonl", [{"messages": messages, "image": "1.png"}]))
    style = prompt_styles()[version].trained
    turns, _ = record.said(style)
    anywhere = version not in ("chat", "llava_v1")
    assert turns[1][0] == (f"{style.mark}{style.gap}Where?" if anywhere else "Where?")
    assert style.images_up_to(1, turns, 1) == (0 if anywhere else 1)


def test_messages_with_parts(here: Path) -> None:
    url = "https://example.org/x.png"
    parts = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image"},
        {"type": "image_url", "image_url": "2.png"},
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Same."}]}
    entry = {"messages": [{"role": "user", "content": parts}, answer], "image": "1.png"}
    (record,) = read_records(write_jsonl(here / "x.jsonl", [entry]))
    assert record.images == (url, here / "1.png", here / "2.png")
    assert record.turns == (("Compare", "Same."),)


def sft(folder: Path, **labels: Any) -> None:
    for stem, label in labels.items():
        image_file(folder / "images" / f"{stem}.jpg")
        write_json(folder / "labels" / f"{stem}.json", label, indent=2)


CAPTION = {"captions": [{"role": "caption", "content": "这张照片展示了一男一女。"}]}
DIALOGUE = {
    "conversations": [
        {"role": "user", "content": "什么?"},
        {"role": "assistant", "content": "狗。"},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Left."},
    ]
}
SAID = DIALOGUE["conversations"]


def test_sft311k_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sft(tmp_path, _1=CAPTION, _2=DIALOGUE)
    image_file(tmp_path / "images" / "3.png")
    with caplog.at_level(logging.WARNING):
        caption, dialogue = read_records(tmp_path)
    assert caption.turns == ((CAPTION_PROMPT, "这张照片展示了一男一女。"),)
    assert caption.images == (tmp_path / "images" / "_1.jpg",) and caption.source == f"{tmp_path}/labels/_1.json:1"
    assert dialogue.turns == (("什么?", "狗。"), ("Where?", "Left."))
    assert "1 picture(s) without a label" in caplog.text
    assert read_records(tmp_path, prompt="Say:")[0].turns[0][0] == "Say:"


def test_sft311k_with_all_its_folders(tmp_path: Path) -> None:
    names = [f"llava_{kind}_formate" for kind in ("details-minigpt4_3500", "instruction_multi", "instruction_single")]
    for name in names:
        sft(tmp_path / name, a=DIALOGUE)
    sft(tmp_path / "valid", a=DIALOGUE)
    records = read_records(tmp_path)
    assert [record.images[0].parts[-3] for record in records] == names
    assert detect_format(tmp_path)[0] == "sft311k"


def test_several_captions_are_several_records(tmp_path: Path) -> None:
    sft(tmp_path, a={"captions": [{"role": "caption", "content": "One."}, {"role": "caption", "content": "Two."}]})
    assert [(r.turns[0][1], r.id[-2:]) for r in read_records(tmp_path)] == [("One.", "#1"), ("Two.", "#2")]


def test_sft311k_faults_name_their_file(tmp_path: Path) -> None:
    sft(tmp_path, a=DIALOGUE, b=CAPTION)
    (tmp_path / "images" / "a.jpg").unlink()
    (tmp_path / "labels" / "b.json").write_text('{"captions": [\n {"role": "caption", "content": "x",},\n]}\n')
    missing, comma = problems_of(tmp_path)
    assert (missing.kind, missing.source) == ("image", f"{tmp_path}/labels/a.json:1")
    assert (comma.kind, comma.source) == ("json", f"{tmp_path}/labels/b.json:2") and "no comma before" in comma.message


def test_captchas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a7Xq2.jpg", "sub/0427_000001.png", "valid/9.png", "test/8.png", ".hidden/7.png"):
        image_file(tmp_path / name)
    with caplog.at_level(logging.INFO):
        records = read_records(tmp_path)
    assert [record.turns for record in records] == [((CAPTCHA_PROMPT, "a7Xq2"),), ((CAPTCHA_PROMPT, "0427"),)]
    assert "answer to 'CAPTCHA:'" in caplog.text
    image_file(tmp_path / "_.png")
    assert [problem.kind for problem in problems_of(tmp_path)] == ["empty"]


def test_drawn_captchas_are_read_back(tmp_path: Path) -> None:
    paths = write_captchas(tmp_path / "a", count=3, digits=4, seed=5)
    again = write_captchas(tmp_path / "b", count=5, digits=4, seed=5)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again[:3]]
    assert {record.turns[0][1] for record in read_records(tmp_path / "a")} == {captcha_answer(p) for p in paths}
    assert all(len(captcha_answer(path)) == 4 for path in paths)


def test_a_split_folder_means_its_train(tmp_path: Path) -> None:
    image_file(tmp_path / "train" / "12.png")
    image_file(tmp_path / "valid" / "34.png")
    assert [record.turns[0][1] for record in read_records(tmp_path)] == ["12"]


def test_other_forms_of_json(here: Path) -> None:
    lines = write_jsonl(here / "lines.json", [QA, QA])
    assert [record.source for record in read_records(lines)] == [f"{lines}:1", f"{lines}:2"]
    assert len(read_records(write_json(here / "object.json", QA, indent=1))) == 1
    (here / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(QA).encode())
    assert len(read_records(here / "bom.jsonl")) == 1
    with pytest.raises(InputError, match=r"3 JSON files \(bom.jsonl, lines.json, object.json\); name the one"):
        read_records(here)
    assert len(read_records(here, format="captcha")) == 2
    with pytest.raises(UnknownNameError, match=r"data format 'captchas'.*Did you mean captcha"):
        read_records(here, format="captchas")


def test_broken_lines(here: Path) -> None:
    path = here / "x.jsonl"
    path.write_bytes(json.dumps(QA).encode() + b"\n{'prompt': 1}\n\n" + b'{"a": "\xff"}\n{"a":\n[' * 1 + b"\n")
    with pytest.raises(InputError, match=r"x\.jsonl:2: is not JSON .*double quotes.*validate_dataset\.py"):
        read_records(path)
    found = problems_of(path)
    assert [problem.source.rpartition(":")[2] for problem in found] == ["2", "4", "5", "6"]
    assert "UTF-8" in found[1].message and "too early" in found[2].message


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("[{A},\n{A},\n]", 3, "no comma before"),
        ("[\n{A}\n{A}]", 3, "Expecting ',' delimiter"),
        ("[{A},\n\n{A}", 3, "too early"),
        ("", 1, "too early"),
        ('{"a": 1', 1, "too early"),
    ],
)
def test_broken_files(here: Path, text: str, line: int, hint: str) -> None:
    path = here / "x.json"
    path.write_text(text.replace("{A}", json.dumps(QA)))
    (problem,) = problems_of(path)
    assert problem.kind == "json" and problem.source == f"{path}:{line}" and hint in problem.message


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ([1], "fields", "must be an object"),
        ({"text": "x"}, "fields", "no 'prompt'"),
        ({"promt": "x", "text": "y"}, "fields", "only 'promt', 'text'"),
        ({**QA, "label": "z"}, "fields", "both 'text' and 'label'"),
        ({**QA, "text": 3}, "fields", "'text' is 3"),
        ({**QA, "text": " "}, "empty", "answer of turn 1"),
        ({"prompt": "x", "text": "y", "image_path": "1.png"}, "fields", "'image_path' but no picture in 'image'"),
        ({**QA, "image": [3]}, "fields", "must be a name"),
        ({**QA, "image": "3.png"}, "image", "'3.png' is not there"),
        ({**QA, "image": "\0" + "x" * 5000}, "image", "is not there"),
        ({**QA, "prompt": "<image> <image> x"}, "slots", "2 <image> in the questions, but 1 picture"),
        ({"prompt": "<image>", "text": "y"}, "slots", "but 0 picture"),
        ({"messages": []}, "fields", "at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "fields", "role 'tool'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "fields", "ends without an answer"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "fields", "item 2: a second question"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "fields", "without a question"),
        ({"messages": [{"role": "user", "content": None}]}, "fields", "has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "fields", "'audio'"),
        ({"captions": []}, "fields", "'captions'"),
        ({"messages": [*SAID[:2], {"role": "user", "content": ""}, *SAID[3:]]}, "empty", "question of turn 2"),
    ],
)  # fmt: skip
def test_bad_entries(here: Path, entry: Any, kind: str, message: str) -> None:
    problem = one_problem(here, entry)
    assert problem.kind == kind and message in problem.message


def test_questions_may_be_empty(here: Path) -> None:
    (record,) = read_records(write_jsonl(here / "x.jsonl", [{**QA, "prompt": "<image>"}]))
    assert record.turns == (("", "A dog."),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" untouched  text\n", " untouched  text\n"),
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("Compare <image> and <image>.", "Compare and ."),
        ("One\n<image>\nTwo", "One\nTwo"),
        ("<image>", ""),
    ],
)
def test_slots_leave_the_text(text: str, expected: str) -> None:
    assert without_slots(text) == expected


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not exist"):
        read_records(tmp_path / "none")
    with pytest.raises(InputError, match="holds no training data"):
        read_records(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"a \.json or \.jsonl file is wanted"):
        read_records(tmp_path / "x.txt")
    (tmp_path / "packed").mkdir()
    packed = tmp_path / "packed" / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    for place in (packed, packed.parent):
        with pytest.raises(InputError, match=r"x\.jsonl\.gz' is packed \(gzip\) and read as it lies; unpack it"):
            read_records(place)
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no records"):
        read_records(tmp_path / "x.jsonl")
