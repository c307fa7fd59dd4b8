"""ms-swift's `objects`: names and boxes in pixels that stand where the texts say, in each family's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import processor, write_jsonl
from PIL import Image

from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.boxes import parse_boxes
from sat_models.processing.prompts import BASE
from sat_models.training.data import VLMDataset
from sat_models.training.formats import read_records
from sat_models.training.grounding.asking import Asking
from sat_models.training.records import Problem, Record
from sat_models.training.resuming import data_digest
from sat_models.training.validate import duplicates

SIZE = (200, 100)
BOXES = [[20, 10, 60, 50], [100, 40, 200, 100]]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    Image.new("RGB", SIZE).save(tmp_path / "1.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "2.png")
    return tmp_path


def read(here: Path, **entry: Any) -> tuple[list[Record], list[Problem]]:
    problems: list[Problem] = []
    path = write_jsonl(here / "x.jsonl", [{"images": ["1.png"], **entry}])
    return read_records(path, on_problem=problems.append), problems


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def said(record: Record, form: str = "thousand") -> tuple[str, str]:
    (turn,), _ = record.said(BASE, BOX_FORMS[form])
    return turn


FORMS = {
    "thousand": "A dog [[100,100,300,500]] and cats [[500,400,999,999;100,100,300,500]].",
    "unit": "A dog [0.10, 0.10, 0.30, 0.50] and cats [0.50, 0.40, 1.00, 1.00], [0.10, 0.10, 0.30, 0.50].",
    "unit of square": "A dog [0.10, 0.30, 0.30, 0.50] and cats [0.50, 0.45, 1.00, 0.75], [0.10, 0.30, 0.30, 0.50].",
    "hundred": "A dog {<10><10><30><50>} and cats {<50><40><100><100>}<delim>{<10><10><30><50>}.",
    "thousand in tags": "<ref>A dog</ref> <box>[[100, 100, 300, 500]]</box> and <ref>cats</ref> "
    "<box>[[500, 400, 1000, 1000], [100, 100, 300, 500]]</box>.",
}


@pytest.mark.parametrize("form", FORMS)
def test_names_and_boxes_stand_where_the_text_says(form: str, here: Path) -> None:
    objects = {"ref": ["A dog", "cats"], "bbox": [BOXES[0], BOXES[1], BOXES[0]]}
    text = "<ref-object> <bbox> and <ref-object> <bbox><bbox>."
    (record,), problems = read(here, **turns("<image>Describe it.", text), objects=objects)
    assert not problems and said(record, form) == ("Describe it.", FORMS[form])
    assert [(group.name, len(group.boxes)) for group in record.boxes] == [("A dog", 1), ("cats", 2)]
    read_back = [box.pixels for box in parse_boxes(said(record, form)[1], *SIZE, form=BOX_FORMS[form])]
    for got, box in zip(read_back, objects["bbox"], strict=True):
        assert got == pytest.approx(box, abs=1.01)


def test_every_form_of_the_example_is_one_that_is_read() -> None:
    for form in BOX_FORMS.values():
        numbers = dict(zip(("x0", "y0", "x1", "y1"), ("0.1", "0.2", "0.3", "0.4"), strict=True))
        whole = dict(zip(numbers, ("10", "20", "30", "40"), strict=True))
        example = form.example
        for letter, number in (numbers if form.scale == 1 else whole).items():
            example = example.replace(letter, number)
        (box,) = parse_boxes(example, 100, 100, form=form)
        assert box.form.partition("/")[0] == form.style


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ({"ref": ["dog"], "bbox": [BOXES[0]]}, "<bbox>"),
        ({"ref": ["dog"], "bbox": [BOXES[0]], "bbox_type": "real", "image_id": [0]}, "<bbox>"),
        ({"ref": ["dog"], "bbox": [[0.1, 0.1, 0.3, 0.5]], "bbox_type": "norm1"}, "<bbox>"),
        ({"ref": ["dog"], "bbox": [[100, 100, 300, 500]], "bbox_type": "norm1000"}, "<bbox>"),
        (json.dumps({"ref": ["dog"], "bbox": [BOXES[0]]}), "<bbox>"),
        ([{"caption": "dog", "bbox": BOXES[0], "bbox_type": "real", "image": 0}], "<bbox>"),
        (json.dumps([{"caption": "dog", "bbox": [100, 100, 300, 500], "bbox_type": "norm_1000"}]), "<bbox>"),
    ],
)
def test_each_way_to_write_objects_says_the_same(objects: Any, text: str, here: Path) -> None:
    (record,), problems = read(here, query="Find <ref-object>", response=text, objects=objects)
    assert not problems and said(record) == ("Find dog", "[[100,100,300,500]]")


def test_objects_without_a_question_are_asked_about(here: Path) -> None:
    records, problems = read(here, objects={"ref": ["dog", "cat"], "bbox": BOXES})
    assert not problems and [said(record) for record in records] == [
        ("Where is dog? answer in [[x0,y0,x1,y1]] format.", "[[100,100,300,500]]"),
        ("Where is cat? answer in [[x0,y0,x1,y1]] format.", "[[500,400,999,999]]"),
        ("Tell me what you see within the designated area [[100,100,300,500]] in the picture.", "dog"),
        ("Tell me what you see within the designated area [[500,400,999,999]] in the picture.", "cat"),
        ("Describe this image with a box for each object.", "Dog [[100,100,300,500]] and cat [[500,400,999,999]]."),
    ]
    (one,), _ = read(here, objects={"ref": ["dogs"], "bbox": BOXES, "image_id": [0, 0]})[0][:1], None
    assert said(one)[1] == "[[100,100,300,500;500,400,999,999]]"


def test_several_pictures_turns_and_places(here: Path) -> None:
    entry = turns("<image>and<image>", "one <bbox>\n<bbox>")
    entry["messages"] += [{"role": "user", "content": "Where is <bbox>?"}, {"role": "assistant", "content": "Left."}]
    boxes = [BOXES[0], [5, 5, 25, 45], BOXES[0]]
    (record,), problems = read(here, **entry, images=["1.png", "2.png"], objects={"bbox": boxes, "image_id": [0, 1, 0]})
    assert not problems
    assert record.said(BASE)[0] == (
        ("and", "one [[100,100,300,500]][[100,100,500,900]]"),
        ("Where is [[100,100,300,500]]?", "Left."),
    )
    assert [group.image for group in record.boxes] == [0, 1, 0] and record.placed[0] == "<image>and<image>"
    entry["messages"][-1]["loss"] = False
    (cut,), _ = read(here, **entry, images=["1.png", "2.png"], objects={"bbox": boxes, "image_id": [0, 1, 0]})
    assert len(cut.turns) == 1 and len(cut.boxes) == 2, "boxes of turns that are left out are left out"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [[20, 10, 260, 50]]}}, "(20, 10, 260, 50) px; it must lie"),
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [[20, 10, 20, 50]]}}, "(20, 10, 20, 50) px, of no size"),
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [[60, 50, 20, 10]]}}, "second corner must be right of"),
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [[1, 2]]}}, "has the point [1, 2]; points are not read"),
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [[1, 2, 3]]}}, "has [1, 2, 3]; it must be four numbers"),
        (turns("Where?", "<bbox>") | {"objects": {"bbox": [["1", 2, 3, 4]]}}, "it must be four numbers"),
        (turns("Where?", "<bbox><bbox>") | {"objects": {"bbox": [BOXES[0]]}}, "2 <bbox> in the texts, but 1 in"),
        (turns("<ref-object>?", "No.") | {"objects": {"ref": [], "bbox": [BOXES[0]]}}, "1 <ref-object> in the texts"),
        (turns("?", "<bbox>") | {"objects": {"bbox": [BOXES[0]], "bbox_type": "xywh"}}, "must be one of real, norm1"),
        (turns("?", "<bbox>") | {"objects": {"bbox": [BOXES[0]], "image_id": [1]}}, "there are 1 picture(s)"),
        (turns("?", "<bbox>") | {"objects": {"bbox": [BOXES[0]], "image_id": [0, 0]}}, "a list of 1 numbers"),
        (turns("?", "<bbox>") | {"objects": {"ref": [" "], "bbox": [BOXES[0]]}}, "the name of a box is ' '"),
        (turns("?", "<bbox>") | {"objects": {"ref": ["<image>"], "bbox": [BOXES[0]]}}, "can hold no picture"),
        (turns("?", "<bbox>") | {"objects": "{'bbox'"}, "a text that is not JSON"),
        (turns("?", "<bbox>") | {"objects": {"bbox": {}}}, "it must hold 'ref' and 'bbox', two lists"),
        (turns("<|box|>", "<bbox>") | {"objects": {"bbox": [BOXES[0]]}}, "holds '<|box|>', which has a meaning"),
        (turns("?", "<bbox>") | {"system": "<bbox>", "objects": {"bbox": BOXES}}, "the system text holds"),
        ({"objects": {"ref": ["a", "b"], "bbox": [BOXES[0]]}}, "2 names for 1 boxes; give one for each"),
        ({"objects": {"ref": ["a"], "bbox": [BOXES[0]]}, "images": ["1.png", "2.png"]}, "of one picture"),
        ({"objects": [{"label": "a", "bbox": BOXES[0]}]}, "its items must have caption, bbox"),
    ],
)
def test_objects_that_cannot_be_meant_are_refused_by_line(entry: dict[str, Any], said: str, here: Path) -> None:
    records, (problem,) = read(here, **entry)
    assert not records and said in problem.message and problem.source.endswith("x.jsonl:1")


def test_a_pixel_over_the_edge_is_moved_to_it(here: Path) -> None:
    (record,), _ = read(here, **turns("?", "<bbox>"), objects={"bbox": [[-0.6, 40, 200.9, 100.5]]})
    assert record.boxes[0].boxes == ((0.0, 40.0, 200.0, 100.0),)


def test_an_image_turned_by_its_camera_is_measured_as_it_is_shown(here: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200)).save(here / "1.png", exif=exif)
    (record,), problems = read(here, **turns("?", "<bbox>"), objects={"bbox": [BOXES[1]]})
    assert not problems and record.boxes[0].size == SIZE


def test_records_with_boxes_are_told_apart_by_them(here: Path) -> None:
    def one(box: list[float]) -> Record:
        (record,), _ = read(here, **turns("?", "<bbox>"), objects={"bbox": [box]})
        return record

    assert len({data_digest([one(box)]) for box in BOXES}) == 2
    assert not list(duplicates([one(box) for box in BOXES])) and list(duplicates([one(BOXES[0]), one(BOXES[0])]))
    plain, _ = read(here, **turns("?", "Here."))
    assert plain[0].boxes is None


def test_the_dataset_writes_them_in_the_form_of_its_model(here: Path) -> None:
    (record,), _ = read(here, **turns("Where?", "<bbox>"), objects={"bbox": [BOXES[0]]})
    for name, written in (
        ("cogvlm-mini", "[[100,100,300,500]]"),
        ("internvl-mini", "<box>[[100, 100, 300, 500]]</box>"),
    ):
        dataset = VLMDataset([record], processor(name))
        assert dataset.dialogue(0)[1] == (("Where?", written),)


def test_an_asking_of_its_own(here: Path) -> None:
    path = write_jsonl(here / "x.jsonl", [{"image": "1.png", "objects": {"ref": ["dog", "cat"], "bbox": BOXES}}])
    records = read_records(path, asking=Asking(shares={"rec": 1.0}))
    assert [record.id.rpartition("#")[2] for record in records] == ["rec", "rec"]
