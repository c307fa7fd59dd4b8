"""Annotations with boxes in pixels: each form, as its tool writes it, gives the same samples; faults have places."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import processor, write_json, write_jsonl
from PIL import Image

from sat_models.commands.validate import main
from sat_models.errors import ConfigError, InputError, UnknownNameError, ZooError
from sat_models.processing.box_forms import BOX_FORMS as FAMILY_FORMS
from sat_models.processing.prompts import BASE
from sat_models.shapes.box_forms import BOX_FORMS, BoxedImage, write_boxes
from sat_models.training.data import VLMDataset
from sat_models.training.formats import detect_format, read_records
from sat_models.training.grounding.annotated import Annotated, Thing
from sat_models.training.grounding.asking import Asking, Wording, asking_from
from sat_models.training.grounding.samples import records_of
from sat_models.training.records import Problem, Record
from sat_models.training.resuming import data_digest
from sat_models.training.split import load_train_valid
from sat_models.training.split_files import split_dataset
from sat_models.training.validate import validate

SIZE = (400, 250)
DOG, CAT, CAT_TOO = (40.0, 25.0, 120.0, 125.0), (200.0, 100.0, 400.0, 250.0), (10.0, 150.0, 90.0, 240.0)
IMAGE = BoxedImage(1, SIZE, (("dog", DOG), ("cat", CAT), ("cat", CAT_TOO)))
FORMATS = {
    "objects": "json", "coco": "coco", "refcoco": "refcoco", "visual-genome": "visual-genome", "yolo": "yolo",
    "labelme": "labelme", "label-studio": "label-studio",
}  # fmt: skip
"""Forms of annotation that say what is where, and what each is read as."""


def written(folder: Path, form: str) -> Path:
    """One image with three boxes in a form."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, "white").save(folder / "images" / IMAGE.file)
    return BOX_FORMS[form](folder, [IMAGE])


def said(records: list[Record], form: str = "thousand") -> list[tuple[str, str]]:
    return [record.said(BASE, FAMILY_FORMS[form])[0][0] for record in records]


def read(path: Path, **options: Any) -> tuple[list[Record], list[Problem]]:
    problems: list[Problem] = []
    return read_records(path, on_problem=problems.append, **options), problems


SAMPLES = [
    ("Where is dog? answer in [[x0,y0,x1,y1]] format.", "[[100,100,300,500]]"),
    ("Where is cat? answer in [[x0,y0,x1,y1]] format.", "[[025,600,225,960;500,400,999,999]]"),
    ("Tell me what you see within the designated area [[100,100,300,500]] in the picture.", "dog"),
    ("Tell me what you see within the designated area [[025,600,225,960]] in the picture.", "cat"),
    ("Tell me what you see within the designated area [[500,400,999,999]] in the picture.", "cat"),
    (
        "Describe this image with a box for each object.",
        "Cat [[025,600,225,960;500,400,999,999]] and dog [[100,100,300,500]].",
    ),
]


@pytest.mark.parametrize("form", FORMATS)
def test_one_image_gives_the_same_samples_from_every_form(form: str, tmp_path: Path) -> None:
    path = written(tmp_path, form)
    assert detect_format(path)[0] == FORMATS[form]
    records, problems = read(path)
    assert not problems and said(records) == SAMPLES
    shares = {"rec": 0.5, "reg": 0.5}
    drawn = said(read(path, asking=Asking(shares=shares, seed=3))[0])
    assert drawn == said(read(written(tmp_path / "other", "objects"), asking=Asking(shares=shares, seed=3))[0])
    assert 0 < len(drawn) < 5, "a share of them, the same from every form"


def test_pixels_make_the_tensors_that_the_project_s_own_form_makes(tmp_path: Path) -> None:
    """What a model learns from is the same, so what it reaches is, too. The own form is written out here by hand."""

    def own(box: tuple[float, ...], form: str) -> str:
        shares = [value / side for value, side in zip(box, SIZE * 2, strict=True)]
        if form == "internvl-mini":
            return "<box>[[" + ", ".join(str(round(share * 1000)) for share in shares) + "]]</box>"
        return "[[" + ",".join(f"{min(round(share * 1000), 999):03d}" for share in shares) + "]]"

    written(tmp_path, "objects")
    for name in ("cogvlm-mini", "internvl-mini"):
        names = ("<ref>dog</ref>", "<ref>cat</ref>") if name == "internvl-mini" else ("dog", "cat")
        entries = [
            {"prompt": f"Where is {who}?", "text": own(box, name), "image": f"images/{IMAGE.file}"}
            for who, box in zip(names, (DOG, CAT), strict=True)
        ]
        wanted = VLMDataset(read_records(write_jsonl(tmp_path / "own.jsonl", entries)), processor(name))
        wordings = {**Asking().wordings, "rec": Wording(("Where is {ref}?",), ("{box}",))}
        for form in FORMATS:
            folder = tmp_path / name / form
            (folder / "images").mkdir(parents=True)
            Image.new("RGB", SIZE, "white").save(folder / "images" / IMAGE.file)
            path = BOX_FORMS[form](folder, [dataclasses.replace(IMAGE, things=(("dog", DOG), ("cat", CAT)))])
            records = read_records(path, asking=Asking(shares={"rec": 1.0}, wordings=wordings))
            dataset = VLMDataset(records, processor(name))
            assert len(dataset) == len(wanted) == 2
            for got, right in zip(dataset, wanted, strict=True):
                pairs = [(getattr(got, f.name), getattr(right, f.name)) for f in dataclasses.fields(right)]
                assert all(torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b for a, b in pairs)


def test_drawn_images_in_every_form(tmp_path: Path) -> None:
    first = None
    for form in FORMATS:
        path = write_boxes(tmp_path / form, form=form, count=3, seed=5)
        texts = said(read_records(path, asking=Asking(shares={"rec": 1.0, "reg": 1.0})))
        first = first or texts
        assert len(texts) > 6 and texts == first
    turns = said(read_records(write_boxes(tmp_path / "swift", form="swift", count=3, seed=5)))
    assert turns == said(read_records(tmp_path / "coco/annotations", asking=Asking(shares={"rec": 1.0})))
    with pytest.raises(UnknownNameError, match="form of boxes"):
        write_boxes(tmp_path / "x", form="pascal", count=1)


def annotated(**options: Any) -> Annotated:
    things = [Thing("dog", DOG), Thing("cat", CAT)]
    return Annotated(Path("a.png"), SIZE, "x", **{"things": things, "known": ("bird", "cat", "Dog", "fish"), **options})


def test_what_is_not_there_is_asked_for_where_the_names_are_known() -> None:
    asking = Asking(shares={"absent": 1.0})
    absent = said(list(records_of(annotated(), asking)))
    assert sorted(absent) == [
        (f"Where is {name}? answer in [[x0,y0,x1,y1]] format.", "It is not in this image.") for name in ("bird", "fish")
    ]
    assert len(list(records_of(annotated(things=[]), asking))) == 1, "of an image without anything, too"
    assert not list(records_of(annotated(known=()), asking))
    assert not list(records_of(annotated(whole=False), asking)), "something that was left out may be it"
    assert "fish" not in str(said(list(records_of(annotated(partial={"fish"}), asking))))


def test_faults_cost_what_they_touch() -> None:
    tasks = [record.id.rpartition("#")[2] for record in records_of(annotated(partial={"cat"}), Asking())]
    assert tasks == ["rec", "reg", "reg"], "not all cats are known: neither where they are, nor everything"
    tasks = [record.id.rpartition("#")[2] for record in records_of(annotated(whole=False), Asking())]
    assert tasks == ["rec", "rec", "reg", "reg"]
    many = [Thing("dog", (x, 0.0, x + 1.0, 1.0)) for x in range(5)]
    tasks = [record.id.rpartition("#")[2] for record in records_of(annotated(things=many), Asking(most_boxes=4))]
    assert tasks == ["reg"] * 5, "an answer that names five is too long"


def test_wordings_and_shares_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "boxes.yaml"
    file.write_text(
        "rec:\n  question: ['Find {ref}.', 'Show {ref} as {format}.']\n  answer: '{ref} is at {box}'\n"
        "absent:\n  question: 'Is there {ref}?'\n  answer: 'no {{none}}'\nmost_boxes: 3\n"
    )
    asking = asking_from(["rec=1", "absent=1"], file, seed=7)
    texts = said(list(records_of(annotated(), asking)), "thousand in tags")
    assert texts[0][1] == "<ref>dog</ref> is at <box>[[100, 100, 300, 500]]</box>"
    assert {text[1] for text in texts[2:]} == {"no {none}"} and texts[2][0].startswith("Is there <ref>")
    assert asking.most_boxes == 3
    several = [said(list(records_of(annotated(), asking_from(["rec=1"], file, seed=s))))[0][0] for s in range(9)]
    assert set(several) == {"Find dog.", "Show dog as [[x0,y0,x1,y1]]."}
    assert asking_from(None, None, prompt="Say {it}:").wording("caption").questions == ("Say {{it}}:",)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("rec: {question: 'Where is {expression}?'}", UnknownNameError, "expression"),
        ("detect: {question: 'x'}", UnknownNameError, "detect"),
        ("rec: 'Where is {ref}?'", ConfigError, "must hold 'question' and 'answer'"),
        ("rec: {question: []}", ConfigError, "a list of texts"),
        ("rec: {question: 'Where is {ref'}", ConfigError, "cannot be filled in"),
        ("most_boxes: many", ConfigError, "whole number"),
        ("- rec", ConfigError, "must hold tasks"),
        ("a: [", ConfigError, "cannot be read"),
    ],
)
def test_templates_that_cannot_be_meant(content: str, error: type, message: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.yaml").write_text(content)
    with pytest.raises(error, match=message):
        asking_from(None, tmp_path / "boxes.yaml")


def test_shares_that_cannot_be_meant() -> None:
    for tasks, message in ((["rec=2"], "at most 1"), (["rec=x"], "TASK=SHARE"), (["detect=1"], "detect")):
        with pytest.raises(ZooError, match=message):
            asking_from(tasks)


def coco(tmp_path: Path, **content: Any) -> Path:
    """A file of COCO beside its image, with two categories."""
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg")
    head = {
        "id": 5,
        "width": SIZE[0],
        "height": SIZE[1],
        "file_name": "a.jpg",
        "license": 1,
        "coco_url": "http://x/a.jpg",
    }
    categories = [{"id": 1, "name": "dog", "supercategory": "animal"}, {"id": 18, "name": "cat"}]
    data = {"info": {"year": 2017}, "licenses": [], "images": [head], "categories": categories, **content}
    return write_json(tmp_path / "instances_val2017.json", data)


def box(number: int, category: int, corner: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 5, "category_id": category, "bbox": corner, "area": 1.0, "iscrowd": 0, **more}


def test_coco_crowds_and_captions(tmp_path: Path) -> None:
    annotations = [box(1, 1, [40, 25, 80, 100]), box(2, 18, [0, 0, 400, 100], iscrowd=1, segmentation={"counts": []})]
    records, problems = read(coco(tmp_path, annotations=annotations), asking=asking_from(["rec", "grounded_caption"]))
    assert not problems and said(records) == [SAMPLES[0]], "a crowd is nothing that is boxed one by one"
    captions = [{"id": 1, "image_id": 5, "caption": " A dog. "}, {"id": 2, "image_id": 5, "caption": "Animals."}]
    records, problems = read(coco(tmp_path, annotations=captions, categories=[]), prompt="Say:")
    assert not problems and said(records) == [("Say:", "A dog."), ("Say:", "Animals.")]
    assert detect_format(tmp_path / "instances_val2017.json")[0] == "coco"


def test_coco_in_its_own_folders(tmp_path: Path) -> None:
    path = coco(tmp_path, annotations=[box(1, 1, [40, 25, 80, 100])])
    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "a.jpg").rename(tmp_path / "coco/val2017/a.jpg")
    path = path.rename(tmp_path / "coco/annotations" / path.name)
    assert len(read_records(path)) == 3
    (tmp_path / "coco/val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"picture 'a.jpg' is not there .*name the folder of the pictures with image_root"
    ):
        read_records(path)
    assert len(read_records(path, image_root=tmp_path / "elsewhere")) == 3


@pytest.mark.parametrize(
    ("change", "message", "kept"),
    [
        ({"annotations": [box(1, 7, [1, 1, 9, 9]), box(2, 1, [40, 25, 80, 100])]}, "category_id 7 is none of", 2),
        ({"annotations": [box(1, 18, [1, 1, 0, 9]), box(2, 1, [40, 25, 80, 100])]}, "of no size", 2),
        ({"annotations": [box(1, 1, [300, 25, 180, 100]), box(2, 1, [40, 25, 80, 100])]}, "it must lie inside", 1),
        ({"annotations": [box(1, 18, [1, 1, 9]), box(2, 1, [40, 25, 80, 100])]}, "four numbers", 2),
        (
            {"annotations": [{**box(1, 1, [1, 1, 2, 2]), "image_id": 9}, box(2, 1, [40, 25, 80, 100])]},
            "none of the 1",
            3,
        ),
        (
            {"annotations": [box(2, 1, [40, 25, 80, 100])], "images": [{"id": 5, "file_name": "b.jpg"}]},
            "'b.jpg' is not",
            0,
        ),
        (
            {
                "annotations": [box(2, 1, [40, 25, 80, 100])],
                "images": [{"id": 5, "file_name": "a.jpg", "width": 800, "height": 500}],
            },
            "of a picture of 800 x 500 px, but this one has 400 x 250",
            0,
        ),
        ({"annotations": [{"id": 1, "image_id": 5, "caption": " "}]}, "the caption is empty", 0),
        ({"annotations": {}}, "must be a list", 0),
    ],
)
def test_faults_of_coco_have_their_place(change: dict[str, Any], message: str, kept: int, tmp_path: Path) -> None:
    records, (problem,) = read(coco(tmp_path, **change))
    assert message in problem.message and problem.source.startswith(str(tmp_path)) and len(records) == kept


def test_yolo_as_its_tools_lay_it_out(tmp_path: Path) -> None:
    """Ultralytics with a YAML, Roboflow's paths, Darknet and LabelImg beside the images."""
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg")
    row = "0 0.2 0.3 0.2 0.4\n"

    def lay(folder: str, image: str, label: str, **files: str) -> Path:
        for name in (image, label):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / image).write_bytes((tmp_path / "a.jpg").read_bytes())
        (tmp_path / folder / label).write_text(row)
        for name, text in files.items():
            (tmp_path / folder / name.replace("_", ".")).write_text(text)
        return tmp_path / folder

    paths = {"train": "path: .\ntrain: images/train\nval: images/val\nnames: {0: dog, 1: cat}\n"}
    one = lay("ultralytics", "images/train/a.jpg", "labels/train/a.txt", data_yaml=paths["train"])
    roboflow = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['dog', 'cat']\n"
    two = lay("roboflow", "train/images/a.jpg", "train/labels/a.txt", data_yaml=roboflow)
    three = lay("labelimg", "a.jpg", "a.txt", classes_txt="dog\ncat\n")
    four = lay("darknet", "obj_train_data/a.jpg", "obj_train_data/a.txt", obj_names="dog\ncat\n")
    listed = "names: [dog, cat]\ntrain: train.txt\n"
    five = lay("cvat", "images/train/a.jpg", "labels/train/a.txt", data_yaml=listed, train_txt="images/train/a.jpg\n")
    for folder in (one, one / "data.yaml", two, two / "train", three, four, five):
        assert detect_format(folder)[0] == "yolo"
        records, problems = read(folder, asking=asking_from(["rec"]))
        assert not problems and said(records) == [SAMPLES[0]], folder
    lay("ultralytics", "images/val/a.jpg", "labels/val/a.txt")
    train, valid = load_train_valid(one, valid_data=one)
    assert {r.images[0].parent.name for r in train} == {"train"} and {r.images[0].parent.name for r in valid} == {"val"}


def yolo(tmp_path: Path, row: str, extra: str = "") -> Path:
    written(tmp_path, "yolo")
    (tmp_path / "labels" / "1.txt").write_text(f"1 0.2 0.3 0.2 0.4\n{row}\n")
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: [cat, dog]\n{extra}")
    return tmp_path


def test_yolo_outlines_key_points_and_images_without_objects(tmp_path: Path) -> None:
    rec = asking_from(["rec"])
    outline = "0 0.5 0.4 1.0 0.4 1.0 1.0 0.75 1.0 0.5 0.9"
    assert said(read_records(yolo(tmp_path / "a", outline), asking=rec))[1][1] == "[[500,400,999,999]]"
    points = "0 0.75 0.7 0.5 0.6 0.6 0.6 2 0.7 0.7 1"
    path = yolo(tmp_path / "b", points, "kpt_shape: [2, 3]\n")
    (path / "labels" / "1.txt").write_text(points)
    assert said(read_records(path, asking=rec)) == [(SAMPLES[1][0], "[[500,400,999,999]]")]
    Image.new("RGB", SIZE).save(path / "images" / "empty.png")
    records, problems = read(path, asking=asking_from(["absent"]))
    assert not problems and sorted({record.images[0].name for record in records}) == ["1.png", "empty.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7 0.5 0.5 0.2 0.2", "class 7 is none of the named categories (0 cat, 1 dog)"),
        ("0 120 80 40 50", "must be shares of the picture's sides, from 0 to 1"),
        ("0 0.5 0.5 0 0.2", "of no size"),
        ("0 0.5 0.5 0.2", "the row is '0 0.5 0.5 0.2'; it must be"),
        ("0 0.5 0.5 0.2 0.2 0.9", "it must be a class and x_center"),
        ("0 0.5 nan 0.2 0.2", "all numbers"),
        ("cat 0.5 0.5 0.2 0.2", "class cat is none of"),
    ],
)
def test_faults_of_yolo_have_their_line(row: str, message: str, tmp_path: Path) -> None:
    records, (problem,) = read(yolo(tmp_path, row))
    assert message in problem.message and problem.source.endswith("1.txt:2")
    assert said(records)[0] == SAMPLES[0], "the rest is asked about"


def test_a_yolo_set_with_something_missing(tmp_path: Path) -> None:
    path = yolo(tmp_path / "a", "")
    (path / "labels/stray.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert "no picture stray.* belongs to it" in read(path)[1][0].message
    (path / "labels/1.txt").write_bytes("0 0.5 0.5 0.1 0.1 é\n".encode("latin-1"))
    assert "is not UTF-8" in read(path)[1][0].message
    (path / "data.yaml").write_text("train: nowhere\nnames: [cat]\n")
    assert "'nowhere', which are not there" in read(path)[1][0].message
    (path / "data.yaml").unlink()
    assert "nothing names their classes. Add data.yaml or classes.txt" in read(path)[1][0].message
    path = yolo(tmp_path / "b", "")
    (path / "labels/1.txt").unlink()
    assert "none of its 1 pictures has a label file" in read(path)[1][0].message


def labelme(tmp_path: Path, *shapes: dict[str, Any], **more: Any) -> Path:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    shapes = [{"group_id": None, "description": "", "flags": {}, "mask": None, **shape} for shape in shapes]
    sides = {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
    whole = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.png",
        "imageData": None,
        **sides,
        **more,
    }
    return write_json(tmp_path / "a.json", whole)


def test_labelme_shapes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = [
        {"label": "dog", "shape_type": "rectangle", "points": [[120, 25], [40, 125]]},
        {"label": "box", "shape_type": "rectangle", "points": [[40, 25], [120, 25], [120, 125], [40, 125]]},
        {"label": "hill", "shape_type": "polygon", "points": [[40, 125], [80, 25], [120, 60]]},
        {"label": "old", "points": [[40, 125], [80, 25], [120, 60]]},
        {"label": "ball", "shape_type": "circle", "points": [[100, 100], [100, 140]]},
        {"label": "edge", "shape_type": "line", "points": [[0, 0], [9, 9]]},
        {"label": "tip", "shape_type": "point", "points": [[0, 0]]},
    ]
    with caplog.at_level(logging.WARNING):
        records, problems = read(labelme(tmp_path, *shapes), asking=asking_from(["rec"]))
    assert not problems and [answer for _, answer in said(records)] == ["[[100,100,300,500]]"] * 4 + [
        "[[150,240,350,560]]"
    ]
    assert "passed over: 1 line, 1 point" in caplog.text


def test_labelme_names_its_image_as_windows_does_or_holds_it(tmp_path: Path) -> None:
    import base64

    shape = {"label": "dog", "shape_type": "rectangle", "points": [[40, 25], [120, 125]]}
    (tmp_path / "imgs").mkdir()
    (tmp_path / "json").mkdir()
    path = labelme(tmp_path / "json", shape, imagePath="..\\imgs\\b.png")
    data = base64.b64encode((tmp_path / "json/a.png").read_bytes()).decode()
    (tmp_path / "json/a.png").rename(tmp_path / "imgs/b.png")
    assert read_records(path)[0].images == (tmp_path / "json/../imgs/b.png",)
    path = labelme(tmp_path / "json", shape, imagePath="gone.png", imageData=data)
    (record, *_), problems = read(path)
    assert not problems and str(record.images[0]).startswith("data:image/png;base64,")
    assert len(VLMDataset([record], processor())) == 1


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        ({"shape_type": "rectangle", "points": [[40, 25], [440, 125]]}, {}, "it must lie inside"),
        ({"shape_type": "rectangle", "points": [[40, 25], [40, 125]]}, {}, "of no size"),
        ({"shape_type": "star", "points": [[40, 25]]}, {}, "the shape_type is 'star'; known: polygon"),
        ({"shape_type": "polygon", "points": [[40, "x"]]}, {}, "must be a list of [x, y]"),
        ({"shape_type": "circle", "points": [[40, 25]]}, {}, "a circle has 1 points"),
        ({"points": [[1, 1], [2, 2], [3, 1]], "label": None}, {}, "'label' is null"),
        ({"points": [[1, 1], [2, 2], [3, 1]]}, {"imageWidth": 800}, "a picture of 800 x 250 px"),
        ({"points": [[1, 1], [2, 2], [3, 1]]}, {"imagePath": "b.png"}, "picture 'b.png' is not there"),
        ({"points": [[1, 1], [2, 2], [3, 1]]}, {"imagePath": "", "imageData": "!"}, "base64"),
    ],
)
def test_faults_of_labelme(shape: dict[str, Any], more: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, (problem,) = read(labelme(tmp_path, {"label": "dog", **shape}, **more))
    assert message in problem.message and problem.source.startswith(str(tmp_path / "a.json"))


def region(**value: Any) -> dict[str, Any]:
    kind = next((key for key in value if key.endswith("labels")), "rectanglelabels")
    sides = {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0}
    return {"id": "r1", "type": kind, "from_name": "label", "to_name": "image", **sides, "value": value}


def task(*results: dict[str, Any], image: str = "/data/upload/3/5f2a9c1e-a.png", **more: Any) -> dict[str, Any]:
    annotation = {"id": 1, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 7, "data": {"image": image}, "annotations": [annotation], "predictions": [], **more}


DOG_IN_PER_CENT = {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0}


def export(tmp_path: Path, *tasks: Any) -> Path:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    return write_json(tmp_path / "export.json", list(tasks))


@pytest.mark.parametrize(
    ("results", "box"),
    [
        ([region(**DOG_IN_PER_CENT, rectanglelabels=["dog"])], "[[100,100,300,500]]"),
        ([region(x=10, y=10, width=20, height=40, rotation=90, rectanglelabels=["dog"])], None),
        # 80 px right along a turned side are 80 px down: half a turn around (40, 25) leads out of the image.
        ([region(x=30, y=10, width=25, height=32, rotation=90, rectanglelabels=["dog"])], "[[100,100,300,500]]"),
        ([region(points=[[10, 10], [30, 20], [20, 50]], polygonlabels=["dog"])], "[[100,100,300,500]]"),
        ([region(x=20, y=30, radiusX=10, radiusY=20, rotation=0, ellipselabels=["dog"])], "[[100,100,300,500]]"),
        (
            [
                {**region(**DOG_IN_PER_CENT), "type": "rectangle"},
                {**region(**DOG_IN_PER_CENT, labels=["dog"]), "type": "labels"},
            ],
            "[[100,100,300,500]]",
        ),
        (
            [
                region(**DOG_IN_PER_CENT, rectanglelabels=["animal"]),
                {**region(**DOG_IN_PER_CENT, text=["dog"]), "type": "textarea"},
            ],
            "[[100,100,300,500]]",
        ),
    ],
)
def test_regions_of_label_studio(results: list[dict[str, Any]], box: str | None, tmp_path: Path) -> None:
    whole = {"id": "c", "type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}}
    records, problems = read(export(tmp_path, task(*results, whole)), asking=asking_from(["rec"]))
    if box is None:
        assert not records and "it must lie inside" in problems[0].message
    else:
        assert not problems and said(records) == [(SAMPLES[0][0], box)]


def test_exports_of_label_studio(tmp_path: Path) -> None:
    dog = region(**DOG_IN_PER_CENT, rectanglelabels=["dog"])
    whole = task(dog)
    flat = {k: v for k, v in dog.items() if k.startswith(("original", "image_"))}
    minimal = {"id": 7, "image": "/data/upload/3/5f2a9c1e-a.png", "annotator": 1, "annotation_id": 1}
    minimal["label"] = [{**DOG_IN_PER_CENT, "rectanglelabels": ["dog"], **flat}]
    old = {"id": 7, "data": whole["data"], "completions": whole["annotations"]}
    cancelled = {
        **whole["annotations"][0],
        "was_cancelled": True,
        "result": [region(**DOG_IN_PER_CENT, rectanglelabels=["x"])],
    }
    twice = {**whole, "annotations": [cancelled, *whole["annotations"]]}
    for one in (whole, minimal, old, twice):
        path = export(tmp_path, one)
        assert detect_format(path)[0] == "label-studio"
        records, problems = read(path, asking=asking_from(["rec"]))
        assert not problems and said(records) == [SAMPLES[0]]
    records, problems = read(export(tmp_path, whole, {**whole, "annotations": []}))
    assert not problems and len(records) == 3, "a task that nobody has finished says nothing"
    for name in ("/data/local-files/?d=set/a.png", "s3://bucket/set/a.png", "upload/3/5f2a9c1e-a.png", "a.png"):
        assert len(read_records(export(tmp_path, task(dog, image=name)))) == 3


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (task({**region(**DOG_IN_PER_CENT, rectanglelabels=["dog"]), "image_rotation": 90}), "turned by 90 degrees"),
        (task({**region(**DOG_IN_PER_CENT, rectanglelabels=["dog"]), "original_width": 1}), "a picture of 1 x 250 px"),
        (task(region(**DOG_IN_PER_CENT)), "the region has no label"),
        (task(region(format="rle", rle=[1], brushlabels=["dog"])), "painted (a mask)"),
        (task(region(x="ten", y=1, width=1, height=1, rectanglelabels=["dog"])), "'x' is 'ten'; it must be a finite"),
        (task({"id": "r", "type": "rectanglelabels"}), "has no 'value'"),
        (task(region(points=[[1, 1]], polygonlabels=["dog"])), "at least three"),
        (
            task(region(**DOG_IN_PER_CENT, rectanglelabels=["dog"]), image="/data/upload/3/5f2a9c1e-b.png"),
            "is not there",
        ),
        (task(region(**DOG_IN_PER_CENT, rectanglelabels=["dog"]), data={"text": "x"}), "names no picture"),
        (task(image="https://x.org/a.png"), "its size is not known"),
    ],
)
def test_faults_of_label_studio(one: dict[str, Any], message: str, tmp_path: Path) -> None:
    records, (problem,) = read(export(tmp_path, one))
    assert not records and message in problem.message and problem.source.startswith(f"{tmp_path / 'export.json'}, .[0]")


def test_expressions_of_the_split_that_is_trained(tmp_path: Path) -> None:
    path = written(tmp_path, "refcoco")
    instances = json.loads((tmp_path / "instances.json").read_text())
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": 1, "category_id": 1, "split": split, "file_name": "x", "sent_ids": [n],
         "sentences": [{"sent_id": n, "sent": sent}]}
        for n, (split, sent) in enumerate([("train", "left dog"), ("val", "big cat"), ("testA", "cat")], 1)
    ]  # fmt: skip
    path.unlink()
    path = write_json(tmp_path / "refs(google).json", refs)
    assert detect_format(path)[0] == "refcoco" and len(instances["annotations"]) == 3
    train, valid = load_train_valid(path, valid_data=path)
    assert [record.turns[0][1] for record in train + valid if record.id.endswith("reg")] == ["left dog", "big cat"]
    lines = {"image": "1.png", "sent": "left dog", "bbox": list(DOG), "width": SIZE[0], "height": SIZE[1]}
    lined = write_jsonl(tmp_path / "refcoco_train.jsonl", [lines])
    assert detect_format(lined)[0] == "refcoco" and len(read_records(lined)) == 3
    (tmp_path / "refs(bad).p").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert "it names posix.system" in read(tmp_path / "refs(bad).p")[1][0].message


def test_the_key_of_a_resumed_run_holds_what_is_asked_and_where(tmp_path: Path) -> None:
    path = written(tmp_path, "coco")
    usual = data_digest(read_records(path))
    assert usual == data_digest(read_records(path))
    others = [Asking(shares={"rec": 1.0}), Asking(shares={"rec": 0.5, "reg": 0.5}, seed=1), asking_from(["reg=1"])]
    digests = {usual, *(data_digest(read_records(path, asking=asking)) for asking in others)}
    path.write_text(path.read_text().replace("[40.0, 25.0,", "[41.0, 25.0,"))
    assert len(digests | {data_digest(read_records(path))}) == 5


def test_the_validator_draws_the_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "set", "yolo")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "0007_old.boxes.png").write_text("of an earlier run")
    for _ in range(2):
        code = main([str(path), "--draw", str(tmp_path / "out"), "--box_tasks", "rec=1", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert code == 0 and report["format"] == "yolo" and report["tasks"] == {"rec": 2}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["0001_1.boxes.png", "notes.txt"]
    drawing = Image.open(report["drawn"][0])
    assert drawing.size == SIZE
    for x0, y0, x1, y1 in (DOG, CAT, CAT_TOO):
        for x, y in ((x0, (y0 + y1) / 2), ((x0 + x1) / 2, y1)):
            assert drawing.getpixel((min(round(x), 399), min(round(y), 249))) != (255, 255, 255), (x, y)
    assert drawing.getpixel((300, 50)) == (255, 255, 255)
    own = write_jsonl(
        tmp_path / "own.jsonl", [{"image": "set/images/1.png", "prompt": "?", "text": "A [[100,100,300,500]]"}]
    )
    assert len(validate(own, draw=tmp_path / "own").drawn) == 1, "boxes that stand in texts are drawn, too"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        validate(own, draw=tmp_path / "file")


def test_bad_samples_are_counted_or_refused_as_others_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = coco(tmp_path, annotations=[box(1, 1, [300, 25, 180, 100]), box(2, 18, [40, 25, 80, 100])])
    with pytest.raises(
        InputError, match=r"instances_val2017.json, .annotations\[0\]: the box of 'dog' is .*on_bad='skip'"
    ):
        load_train_valid(path, share=0)
    with caplog.at_level(logging.WARNING):
        train, _ = load_train_valid(path, share=0, on_bad="skip")
    assert len(train) == 2 and "1 bad record(s) left out (1 boxes)" in caplog.text
    with pytest.raises(InputError, match="read as coco, which is not split into files"):
        split_dataset(path, tmp_path / "out")
