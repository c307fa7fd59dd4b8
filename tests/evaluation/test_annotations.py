"""Odd annotation files: read where they are clear, else refused before the first question with file and entry."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models.errors import ZooError
from sat_models.evaluation.readers import read_samples
from sat_models.evaluation.samples import Sample, with_images, with_prompts
from sat_models.evaluation.tasks import TASKS, question_of

CASES = Path(__file__).resolve().parents[1] / "cases" / "evaluation"


def dump(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_labels_of_pope_in_any_case(tmp_path: Path) -> None:
    samples = read_samples("vqa", CASES / "pope_Yes.jsonl", tmp_path)
    assert [sample.references for sample in samples] == [(label,) for label in ["no", "yes", "yes", "no", "no", "no"]]
    scores = TASKS["vqa"].corpus(samples, ["Yes."] * 6)
    assert scores["pope_yes_share"] == 1.0 and scores["pope_accuracy"] == pytest.approx(1 / 3)


def test_popes_lines_under_the_name_json(tmp_path: Path) -> None:
    path = tmp_path / "coco_pope_random.json"
    path.write_bytes((CASES / "pope_Yes.jsonl").read_bytes())
    assert read_samples("vqa", path, tmp_path) == read_samples("vqa", CASES / "pope_Yes.jsonl", tmp_path)


def pope(**changes: Any) -> str:
    return json.dumps({"question_id": 1, "image": "a.png", "text": "Is it?", "label": "yes"} | changes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (pope(label="maybe"), "line 2 of '.*': 'label' is 'maybe'; it must be yes or no"),
        (pope(label=None), "line 2 of '.*' is not in the format: 'label' is null; it must be text"),
        (pope(text="half \ud83d"), "line 2 of '.*': 'text' is .*half of a surrogate pair"),
        (pope(image=["a.png"]), "line 2 of '.*': 'image' is .*it must be text"),
        ('["question_id"]', "line 2 of '.*': it is list .*must be an object"),
        ('{"question_id": 1', "line 2 of '.*' is not JSON"),
        ('{"question_id": 1}', "line 2 of '.*': 'label' is missing"),
    ],
)
def test_a_bad_line_of_pope_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{pope()}\n{line}\n")
    with pytest.raises(ZooError, match=said.replace("': ", "'(: | is not in the format: )")):
        read_samples("vqa", path, tmp_path)


def test_questions_without_answers_are_refused_by_name(tmp_path: Path) -> None:
    questions = {"questions": [{"question_id": n, "image_id": 1, "question": "What?"} for n in range(1, 9)]}
    asked = dump(tmp_path / "q.json", questions)
    with pytest.raises(ZooError, match=r"a_empty\.json', \.annotations\[0\] .*'answers' is \[\]; it must be a list"):
        read_samples("vqa", CASES / "a_empty.json", tmp_path, questions=asked)


def test_ids_of_text_name_their_pictures(tmp_path: Path) -> None:
    path = CASES / "vqa_q_string_ids.json"
    asked = json.loads(path.read_text())["questions"]
    answers = [{"question_id": str(q["question_id"]), "answers": ["yes"] * 10} for q in asked]
    (tmp_path / "0054c91397f2fe05.jpg").touch()
    samples = read_samples("vqa", dump(tmp_path / "a.json", {"annotations": answers}), tmp_path, questions=path)
    assert len(samples) == len(asked) and {sample.image.name for sample in samples} == {"0054c91397f2fe05.jpg"}
    assert samples[0].references == ("yes",) * 10, "answers may be bare, and ids numbers here and text there"
    numbered = {"questions": [{"question_id": 1, "image_id": "42", "question": "What?"}]}
    samples = read_samples("vqa", tmp_path / "a.json", tmp_path, questions=dump(tmp_path / "q.json", numbered))
    assert samples[0].image.name == "COCO_val2014_000000000042.jpg"


def test_empty_corners_of_a_box_are_refused() -> None:
    with pytest.raises(ZooError, match=r"1\.xml', object 1 .*'xmin' is ''; it must be a finite number"):
        read_samples("grounded-caption", CASES / "flickr_a", CASES / "flickr_a" / "images")


def entities(folder: Path, number: int, line: str, corner: str = "1") -> None:
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(exist_ok=True, parents=True)
    (folder / "Sentences" / f"{number}.txt").write_bytes(line.encode("latin-1"))
    sides = f"<xmin>{corner}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>"
    (folder / "Annotations" / f"{number}.xml").write_text(
        f"<annotation><object><name>1</name><bndbox>{sides}</bndbox></object></annotation>"
    )


@pytest.mark.parametrize("corner", ["nan", "inf", "left", "1e999"])
def test_corners_that_are_no_numbers_are_refused(corner: str, tmp_path: Path) -> None:
    entities(tmp_path, 1, "[/EN#1/people Two men] .\n", corner)
    with pytest.raises(ZooError, match=r"1\.xml', object 1 .*must be a finite number"):
        read_samples("grounded-caption", tmp_path, tmp_path)


def test_pictures_without_boxes_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entities(tmp_path, 1, "[/EN#1/people Two men] .\n")
    entities(tmp_path, 2, "[/EN#7/people A dog] runs .\nA dog .\n")
    assert [sample.id for sample in read_samples("grounded-caption", tmp_path, tmp_path)] == ["1"]
    assert "1 picture(s) without a box in their first caption are left out, such as 2" in caplog.text


@pytest.mark.parametrize(("line", "said"), [("caf\xe9\n", "is not UTF-8 .*Convert it"), ("\n", "holds no caption")])
def test_odd_captions_of_entities(line: str, said: str, tmp_path: Path) -> None:
    entities(tmp_path, 1, line)
    with pytest.raises(ZooError, match=rf"1\.txt' {said}"):
        read_samples("grounded-caption", tmp_path, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_of_json(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    captions = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": "1", "caption": "Ein Käfer."}],
    }
    path.write_bytes(json.dumps(captions, ensure_ascii=False).encode(encoding))
    (sample,) = read_samples("caption", path, tmp_path)
    assert sample.references == ("Ein Käfer.",)
    path.write_bytes(path.read_bytes()[:-3] + b"\xff\xfe\x00")
    with pytest.raises(ZooError, match=r"c\.json' is not JSON"):
        read_samples("caption", path, tmp_path)


CAPTIONS = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"id": 1, "image_id": 1, "caption": "A dog."}]}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("annotations", 0, "caption"), None, r"\.annotations\[0\] .*'caption' is null; it must be text"),
        (("annotations", 0, "caption"), "", r"\.annotations\[0\] .*'caption' is ''; it must be text"),
        (("annotations", 0, "caption"), "\udc80", r"\.annotations\[0\] .*half of a surrogate pair"),
        (("annotations", 0), ["A dog."], r"\.annotations\[0\] .*it is list .*must be an object"),
        (("annotations",), {"1": "A dog."}, r"'annotations' is .*it must be a list"),
        (("annotations", 0, "image_id"), 2, r"\.annotations\[0\].* image_id 2 is none of the 'images'"),
        (("images", 0, "file_name"), 7.5, r"\.images\[0\] .*'file_name' is 7.5; it must be text"),
        (("images", 0, "id"), True, r"\.images\[0\] .*'id' is True; it must be text"),
        ((), [CAPTIONS], r"c\.json' is not in the format: it is list"),
        ((), "captions", r"c\.json' is not in the format: it is str"),
    ],
)
def test_odd_captions(place: tuple[Any, ...], value: Any, said: str, tmp_path: Path) -> None:
    data: Any = copy.deepcopy(CAPTIONS)
    if place:
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    else:
        data = value
    with pytest.raises(ZooError, match=said):
        read_samples("caption", dump(tmp_path / "c.json", data), tmp_path)


def test_images_that_cannot_be_read_are_known_before_any_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    noise.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    noise.save(tmp_path / "whole.png")
    flipped = bytearray((tmp_path / "whole.png").read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (tmp_path / "flipped.png").write_bytes(flipped)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    faults = {
        "missing.png": "does not exist", "cut.jpg": "damaged or cut off", "flipped.png": "damaged or cut off",
        "empty.png": "is not a picture", "folder.png": "is a folder", "nul\0.png": "cannot be opened",
    }  # fmt: skip
    good = Sample("good", tmp_path / "a.png")
    for name, fault in faults.items():
        bad = [Sample(f"{n}", tmp_path / name) for n in range(2)]
        with pytest.raises(ZooError, match=rf"2 of 3 .* can be read, the first is sample 0: .*{fault}.* --on_missing"):
            with_images([good, *bad], "error")
        assert with_images([*bad, good], "skip") == [good]
        assert "2 of 3 samples left out" in caplog.text and fault in caplog.text
        with pytest.raises(ZooError, match="2 of 2 samples have no image"):
            with_images(bad, "skip")
    assert with_images([good], "error") == [good]


TASK_FILES = {
    "coco-captions": ("caption", "captions_val2014.json"),
    "vqav2": ("vqa", "v2_mscoco_val2014_annotations.json"),
    "refcoco": ("rec", "instances.json"),
    "visual-genome": ("reg", "region_descriptions.json"),
    "visual7w-pointing": ("visual7w", "dataset_v7w_pointing.json"),
    "visual7w-telling": ("visual7w", "dataset_v7w_telling.json"),
}
ODD = (None, True, -1, 0.5, 1e308, "", "x", "\ud83d", "1", [], {}, [None], {"a": 1}, [1, 2, 3, 4], ["x"])


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value."""
    yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*here, key))


def spoilt(data: Any, place: tuple[Any, ...], value: Any, *, remove: bool) -> Any:
    if not place:
        return value
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return data


@pytest.mark.parametrize("layout", TASK_FILES)
def test_files_spoilt_anywhere_are_read_or_refused(layout: str, tmp_path: Path) -> None:
    """Whatever stands at any place: an error of one line that names the file, or samples that can be scored."""
    from sat_models.shapes.public_formats import write_public_dataset

    task, name = TASK_FILES[layout]
    files = write_public_dataset(tmp_path, layout=layout, count=2, seed=1)
    path, chance, refused = tmp_path / name, random.Random(layout), 0
    whole = path.read_text()
    options = {"questions": files[1]} if layout == "vqav2" else {}
    everywhere = list(places(json.loads(whole)))
    for _ in range(250):
        odd, place = chance.choice(ODD), chance.choice(everywhere)
        dump(path, spoilt(json.loads(whole), place, odd, remove=chance.random() < 0.2))
        try:
            samples = read_samples(task, files[0], tmp_path / "images", **options)
        except ZooError as error:
            refused += 1
            assert re.search(rf"{re.escape(path.name)}|{re.escape(files[0].name)}|--questions", str(error)), error
            assert len(str(error)) < 600
            continue
        for sample in samples:
            json.dumps([sample.id, sample.references, sample.kind], ensure_ascii=False).encode()
            question_of("{question}" if "question" in sample.words else "x", sample, (100, 100))
            TASKS[task].score(sample, "yes [[001,002,003,004]]", (100, 100))
    assert 20 < refused < 240
    path.write_text(whole)
    assert with_prompts(read_samples(task, files[0], tmp_path / "images", **options), files[-1])


@pytest.mark.parametrize("prompt", ["{expression}?", "{0}", "{question.x}", "{question[a]}", "{", "half \ud83d"])
def test_a_prompt_that_cannot_be_filled_in_names_its_sample(prompt: str, tmp_path: Path) -> None:
    samples = [Sample("7", tmp_path / "a.png", {"question": "What?"})]
    (own,) = with_prompts(samples, dump(tmp_path / "prompts.json", {"7": prompt}))
    with pytest.raises(ZooError, match="of sample 7 cannot be filled in") as refused:
        question_of("unused", own, (10, 10))
    str(refused.value).encode()
