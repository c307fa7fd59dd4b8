"""Readers of the public formats: on files by hand, and on those that the project writes, answered perfectly."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models.errors import ConfigError, InputError
from sat_models.evaluation import runner
from sat_models.evaluation.captions import tokenizer_name
from sat_models.evaluation.readers import read_samples
from sat_models.evaluation.samples import Sample, with_prompts
from sat_models.evaluation.tasks import TASKS, default_prompt, question_of
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.boxes import format_boxes
from sat_models.processing.image import load_image
from sat_models.shapes.drawing import draw
from sat_models.shapes.held_out import held_out_items
from sat_models.shapes.public_formats import FORMATS, write_public_dataset

TASK_OF = {
    "coco-captions": "caption", "vqav2": "vqa", "pope": "vqa", "refcoco": "rec", "visual-genome": "reg",
    "flickr30k-entities": "grounded-caption", "visual7w-pointing": "visual7w", "visual7w-telling": "visual7w",
}  # fmt: skip


def dump(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_coco_captions(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    captions = [{"id": 1, "image_id": 7, "caption": "A dog."}, {"id": 2, "image_id": 7, "caption": "Dog!"}]
    path = dump(tmp_path / "c.json", {"images": images, "annotations": captions})
    assert read_samples("caption", path, tmp_path) == [Sample("7", tmp_path / "a.jpg", references=("A dog.", "Dog!"))]


def test_karpathy_captions(tmp_path: Path) -> None:
    images = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": "A dog."}]} for split in ("test", "val")
    ]
    path = dump(tmp_path / "dataset_flickr30k.json", {"images": images})
    (sample,) = read_samples("caption", path, tmp_path, split="test")
    assert sample.image == tmp_path / "test.jpg" and sample.references == ("A dog.",)


def test_vqav2(tmp_path: Path) -> None:
    answers = [{"answer": "yes", "answer_id": n} for n in range(10)]
    annotations = dump(
        tmp_path / "a.json", {"annotations": [{"question_id": 5, "answers": answers, "answer_type": "yes/no"}]}
    )
    asked = {"data_subtype": "val2014", "questions": [{"question_id": 5, "image_id": 42, "question": "Is it?"}]}
    questions = dump(tmp_path / "q.json", asked)
    (sample,) = read_samples("vqa", annotations, tmp_path, questions=questions)
    assert sample.image.name == "COCO_val2014_000000000042.jpg"
    assert (sample.words, sample.references, sample.kind) == ({"question": "Is it?"}, ("yes",) * 10, "yes/no")
    with pytest.raises(InputError, match="--questions"):
        read_samples("vqa", annotations, tmp_path)
    with pytest.raises(InputError, match=r"question 5 of .* has no answer"):
        read_samples("vqa", dump(tmp_path / "none.json", {"annotations": []}), tmp_path, questions=questions)


def refs() -> list[dict[str, Any]]:
    return [
        {"ann_id": 3, "image_id": 1, "split": split, "sentences": [{"sent_id": n, "sent": "left man"}]}
        for n, split in enumerate(("val", "testA"))
    ]


def test_refcoco(tmp_path: Path) -> None:
    dump(
        tmp_path / "instances.json",
        {"images": [{"id": 1, "file_name": "m.jpg"}], "annotations": [{"id": 3, "bbox": [10, 20, 30.5, 40]}]},
    )
    pickled = tmp_path / "refs(unc).p"
    pickled.write_bytes(pickle.dumps(refs(), protocol=2))
    for path in (pickled, dump(tmp_path / "refs.json", refs())):
        (sample,) = read_samples("rec", path, tmp_path, split="testA")
        assert (sample.id, sample.boxes, sample.words) == ("1", ((10, 20, 40.5, 60),), {"expression": "left man"})
        assert len(read_samples("rec", path, tmp_path)) == 2


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    dump(tmp_path / "instances.json", {"images": [], "annotations": []})
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (target,)

    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Evil()], protocol=2))
    with pytest.raises(InputError, match="no pickle of plain data"):
        read_samples("rec", path, tmp_path)
    assert not target.exists()


def test_regions(tmp_path: Path) -> None:
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "4.jpg").touch()
    region = {"region_id": 9, "image_id": 4, "phrase": "a cup", "x": 1, "y": 2, "width": 3, "height": 4}
    (sample,) = read_samples("reg", dump(tmp_path / "r.json", [{"id": 4, "regions": [region]}]), tmp_path)
    assert sample.image == tmp_path / "VG_100K_2" / "4.jpg"
    assert (sample.boxes, sample.references) == (((1, 2, 4, 6),), ("a cup",))
    assert question_of("What is at {box}?", sample, (10, 10)) == "What is at [[100,200,400,600]]?"


def test_pictures_without_loss_are_found(tmp_path: Path) -> None:
    region = {"region_id": 9, "image_id": 4, "phrase": "a cup", "x": 1, "y": 2, "width": 3, "height": 4}
    path = dump(tmp_path / "r.json", [{"id": 4, "regions": [region]}])
    assert read_samples("reg", path, tmp_path)[0].image.name == "4.jpg", "as the dataset has it, there or not"
    (tmp_path / "4.png").touch()
    assert read_samples("reg", path, tmp_path)[0].image.name == "4.png"
    (tmp_path / "4.jpg").touch()
    assert read_samples("reg", path, tmp_path)[0].image.name == "4.jpg"


def test_entities(tmp_path: Path) -> None:
    for folder in ("Sentences", "Annotations"):
        (tmp_path / folder).mkdir()
    line = "[/EN#1/people Two men] with [/EN#2/bodyparts/other shaggy hair] near [/EN#0/scene the sea] ."
    (tmp_path / "Sentences" / "36979.txt").write_text(f"{line}\nTwo men .\n")
    objects = "".join(
        f"<object>{''.join(f'<name>{n}</name>' for n in names)}<bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>30</xmax>"
        "<ymax>40</ymax></bndbox></object>"
        for names, x in (("1", 1), ("12", 5))
    )
    scene = "<object><name>0</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    (tmp_path / "Annotations" / "36979.xml").write_text(f"<annotation>{objects}{scene}</annotation>")
    (sample,) = read_samples("grounded-caption", tmp_path, tmp_path)
    assert sample.references == ("Two men with shaggy hair near the sea .", "Two men .")
    assert sample.choices == ("Two men", "Two men", "shaggy hair")
    assert sample.boxes == ((1, 2, 30, 40), (5, 2, 30, 40), (5, 2, 30, 40))
    (tmp_path / "test.txt").write_text("1\n")
    with pytest.raises(InputError, match="no samples"):
        read_samples("grounded-caption", tmp_path, tmp_path, split="test")
    with pytest.raises(InputError, match=r"val\.txt' is not there"):
        read_samples("grounded-caption", tmp_path, tmp_path, split="val")


def test_visual7w(tmp_path: Path) -> None:
    pair = {"qa_id": 1, "question": "Which is red?", "answer": 11, "multiple_choices": [12], "type": "which"}
    image = {"filename": "v7w_1.jpg", "split": "test", "qa_pairs": [pair]}
    boxes = [
        {"box_id": 11, "x": 0, "y": 0, "width": 5, "height": 5},
        {"box_id": 12, "x": 5, "y": 5, "width": 5, "height": 5},
    ]
    path = dump(tmp_path / "p.json", {"images": [image], "boxes": boxes})
    (sample,) = read_samples("visual7w", path, tmp_path, split="test")
    assert sample.boxes == ((0, 0, 5, 5), (5, 5, 10, 10)) and sample.choices == ()
    telling = {**image, "qa_pairs": [{**pair, "answer": "red", "multiple_choices": ["blue"]}]}
    (sample,) = read_samples("visual7w", dump(tmp_path / "t.json", {"images": [telling]}), tmp_path)
    assert sample.choices == ("red", "blue") and sample.boxes == ()


@pytest.mark.parametrize("task", TASKS)
def test_files_of_another_format_are_named(task: str, tmp_path: Path) -> None:
    path = dump(tmp_path / "x.json", {"images": [{"strange": 1}], "annotations": [{}], "questions": [{}]})
    dump(tmp_path / "instances.json", {"images": [{}], "annotations": [{}]})
    with pytest.raises(InputError, match=r"not in the format|holds no"):
        read_samples(task, path, tmp_path, questions=path)
    with pytest.raises(InputError, match=r"cannot be read|holds no"):
        read_samples(task, tmp_path / "missing.json", tmp_path, questions=path)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(InputError, match=r"not JSON|holds no"):
        read_samples(task, broken, tmp_path, questions=path)


def perfect(sample: Sample, size: tuple[int, int]) -> str:
    """The right answer as a model would write it."""
    if sample.choices and sample.boxes:
        return " and ".join(
            f"{phrase} {format_boxes([box], *size)}" for phrase, box in zip(sample.choices, sample.boxes, strict=True)
        )
    if sample.boxes and not sample.words.get("box"):
        return format_boxes([sample.boxes[0]], *size)
    return sample.references[0]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("canonical", [True, False])
def test_what_the_project_writes_is_the_test_of_the_world(layout: str, canonical: bool, tmp_path: Path) -> None:
    """Read back: the same pictures, questions as they are worded, references, boxes and choices as `shapes` has."""
    task = TASK_OF[layout]
    files = write_public_dataset(tmp_path, layout=layout, count=16, seed=3, canonical=canonical)
    extra = {"questions": files[1]} if layout == "vqav2" else {}
    samples = with_prompts(read_samples(task, files[0], tmp_path / "images", **extra), files[-1])
    items = held_out_items(count=16, seed=3, versions=["chat"], canonical=canonical)
    if task == "visual7w":
        items = [item for item in items if item.qa.task == ("rec" if "pointing" in layout else "vqa")]
    else:
        items = [item for item in items if item.task == task and (layout != "pope" or item.qa.kind == "exist")]
    assert len(samples) == len(items) >= (4 if layout == "pope" else 16)
    for sample, item in zip(sorted(samples, key=lambda sample: int(sample.id)), items, strict=True):
        image = load_image(sample.image)
        assert image.tobytes() == draw(item.scene).tobytes() and image.size == item.size
        assert question_of("unused", sample, image.size) == item.qa.question
        right = item.choice_sample() if task == "visual7w" else item.sample()
        references = right.references[: 1 if layout == "pope" else None]
        assert tuple(re.sub(r" ([,.])", r"\1", text) for text in sample.references) == references
        assert (sample.words, sample.boxes, sample.choices) == (right.words, right.boxes, right.choices)
    if canonical and task in ("rec", "reg", "caption", "grounded-caption"):
        assert {sample.prompt for sample in samples} == {default_prompt(task, samples)}


def test_prompts_that_belong_to_other_samples(tmp_path: Path) -> None:
    samples = vqa_samples(tmp_path)
    path = dump(tmp_path / "prompts.json", {"0": "What?", "1": ""})
    with pytest.raises(InputError, match="no prompt for 6 of 7 samples, the first '1'"):
        with_prompts(samples, path)
    with pytest.raises(InputError, match="one JSON object"):
        with_prompts(samples, dump(path, ["What?"]))
    own = with_prompts(samples, dump(path, {str(n): f"{n}: {{question}}" for n in range(9)}))
    assert question_of("{question}", own[4], (8, 8)) == "4: Is it 4?"
    how = {"model": "m", "prompt": "", "version": None, "options": SamplingOptions()}
    assert runner.settings_of("vqa", own, **how) != runner.settings_of("vqa", samples, **how)


@pytest.mark.parametrize("layout", FORMATS)
def test_what_the_project_writes_is_read_and_scored(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java
    task = TASK_OF[layout]
    files = write_public_dataset(tmp_path / "data", layout=layout, count=12, seed=1)
    extra = {"questions": files[1]} if layout == "vqav2" else {}
    samples = read_samples(task, files[0], tmp_path / "data" / "images", **extra)
    assert len(samples) >= 5
    sizes = {}
    for sample in samples:
        with Image.open(sample.image) as image:
            sizes[sample.id] = image.size
    prompt = default_prompt(task, samples)
    settings = runner.settings_of(
        task, samples, model="knowing", prompt=prompt, version=None, options=SamplingOptions()
    )
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder, text in ((right, lambda s: perfect(s, sizes[s.id])), (wrong, lambda s: "")):
        runner.open_folder(folder, settings)
        pending = iter(samples)
        runner.predict(
            task,
            samples,
            lambda asked, text=text, pending=pending: [said(text(next(pending))) for _ in asked],
            folder,
            prompt=prompt,
            progress=False,
        )
    best = runner.summarise(task, samples, right, settings)
    worst = runner.summarise(task, samples, wrong, settings)
    assert best["scores"][best["main"]] > 0.95, best
    assert worst["scores"][best["main"]] < (0.8 if layout == "pope" else 0.1), worst  # silence means yes to POPE
    assert best["scores"]["count"] == len(samples)


def said(text: str) -> dict[str, Any]:
    return {"text": text, "tokens": len(text), "finish_reason": "stop"}


def vqa_samples(tmp_path: Path) -> list[Sample]:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    return [Sample(str(n), tmp_path / "x.png", {"question": f"Is it {n}?"}, ("yes",) * 10) for n in range(7)]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    samples, output, asked = vqa_samples(tmp_path), tmp_path / "out", []
    settings = runner.settings_of(
        "vqa", samples, model="m", prompt="{question}", version=None, options=SamplingOptions()
    )

    def dies(questions: Sequence[tuple[Image.Image, str]]) -> list[dict[str, Any]]:
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(question for _, question in questions)
        return [said("yes") for _ in questions]

    runner.open_folder(output, settings)
    with pytest.raises(KeyboardInterrupt):
        runner.predict("vqa", samples, dies, output, prompt="{question}", batch_size=2, progress=False)
    with (output / "predictions.0.jsonl").open("a") as file:
        file.write('{"id": "4", "ans')  # killed while writing
    with pytest.raises(ConfigError, match="3 samples have no prediction, the first '4'"):
        runner.summarise("vqa", samples, output, settings)
    rest: list[str] = []

    def goes_on(questions: Sequence[tuple[Image.Image, str]]) -> list[dict[str, Any]]:
        rest.extend(question for _, question in questions)
        return [said("no") for _ in questions]

    runner.open_folder(output, settings)
    runner.predict("vqa", samples, goes_on, output, prompt="{question}", batch_size=2, progress=False)
    assert rest == [f"Is it {n}?" for n in (4, 5, 6)]
    result = runner.summarise("vqa", samples, output, settings)
    assert result["scores"]["vqa_accuracy"] == pytest.approx(4 / 7)
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [sample.id for sample in samples]
    assert result["settings"]["decoding"]["temperature"] == 0.0
    assert not list(output.glob("predictions.0*"))
    runner.predict("vqa", samples, goes_on, output, prompt="{question}", progress=False)
    assert len(rest) == 3, "a finished run asks nothing"


def test_shares_cover_all_samples_once(tmp_path: Path) -> None:
    samples, output = vqa_samples(tmp_path), tmp_path / "out"
    settings = runner.settings_of(
        "vqa", samples, model="m", prompt="{question}", version=None, options=SamplingOptions()
    )
    runner.open_folder(output, settings)
    for number in range(3):
        runner.predict(
            "vqa", samples, lambda asked: [said("yes") for _ in asked], output, prompt="{question}", share=(number, 3),
            progress=False,
        )  # fmt: skip
    assert len(list(output.glob("predictions.[012].jsonl"))) == 3
    assert runner.summarise("vqa", samples, output, settings)["scores"] == {
        "count": 7, "vqa_accuracy": 1.0, "anls": 1.0, "exact_match": 1.0,
    }  # fmt: skip


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    samples = vqa_samples(tmp_path)
    how = {"model": "m", "version": None, "options": SamplingOptions()}
    runner.open_folder(tmp_path / "out", runner.settings_of("vqa", samples, prompt="{question}", **how))
    with pytest.raises(ConfigError, match=r"other settings \(prompt '\{question\}' -> 'Hm\?'\)"):
        runner.open_folder(tmp_path / "out", runner.settings_of("vqa", samples, prompt="Hm?", **how))
    with pytest.raises(ConfigError, match="other settings"):
        runner.open_folder(tmp_path / "out", runner.settings_of("vqa", samples[1:], prompt="{question}", **how))


def test_a_prompt_with_an_unknown_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Words of this task: \{question\}"):
        question_of("{expression}?", vqa_samples(tmp_path)[0], (8, 8))


def test_the_tokenizer_is_named() -> None:
    assert tokenizer_name() in ("ptb", "rule")
