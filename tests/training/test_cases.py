"""Data that changed its meaning on the way, after public bug reports: what is read means what it says, the rest is
refused by name and line."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_helpers import GOLDEN, image_file, processor, write_jsonl
from PIL import Image

from sat_models.errors import InputError
from sat_models.processing.layout import IGNORE
from sat_models.training.data import VLMDataset
from sat_models.training.data_report import report_text
from sat_models.training.formats import read_records
from sat_models.training.marks import with_slots
from sat_models.training.records import EntryError, Problem, Record
from sat_models.training.split_files import split_dataset
from sat_models.training.validate import check_lengths, marked_text, validate
from sat_models.zoo import load_processor

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases" / "data"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    image_file(tmp_path / "1.png")
    image_file(tmp_path / "2.png", "blue")
    return tmp_path


def case(name: str, here: Path) -> Path:
    """A file of tests/cases, beside pictures."""
    return Path(shutil.copy(CASES / name, here / Path(name).name))


def read(path: Path) -> tuple[list[Record], list[Problem]]:
    problems: list[Problem] = []
    return read_records(path, on_problem=problems.append), problems


def entry_of(here: Path, **entry: Any) -> tuple[list[Record], list[Problem]]:
    return read(write_jsonl(here / "x.jsonl", [{"image": "1.png", **entry}]))


ASKED = {"prompt": "What?", "text": "A dog."}


def sample_text(record: Record, version: str = "chat") -> str:
    turns, _ = record.said(processor().style(version))
    made = processor().training_samples(list(record.images), turns, version=version, untrained=record.untrained)
    return " | ".join(marked_text(sample, processor().tokenizer) for sample in made)


def test_an_answer_with_loss_false_is_read_and_not_trained(here: Path) -> None:
    (record,), problems = read(case("loss_flag/data.json", here))
    assert not problems and record.untrained == (0,)
    text = sample_text(record)
    assert "WRONG ANSWER" in text and text.count("«") == 1 and "« A circle.</s>»" in text
    assert sample_text(record, "vqa").count("WRONG") == 0, "on its own it is no sample"
    (sample,) = [VLMDataset([record], processor(), version="chat")[0]]
    trained = sample.labels[sample.labels != IGNORE].tolist()
    assert trained == [*processor().tokenizer.encode("A circle."), processor().tokenizer.eos_id]
    assert len(VLMDataset([record], processor(), version="vqa")) == 1
    report = validate(here / "data.json", processor(), version="chat")
    assert report.ok and "WRONG ANSWER" in report.sample[1] and "WRONG ANSWER»" not in report.sample[1]


def dialogue(*flags: dict[str, Any]) -> dict[str, Any]:
    said = []
    for number, given in enumerate(flags):
        said += [{"role": "user", "content": f"Q{number}?"}, {"role": "assistant", "content": f"A{number}.", **given}]
    return {"messages": said}


@pytest.mark.parametrize(
    ("flags", "turns", "untrained"),
    [
        (({"weight": 0}, {"weight": 1}), 2, (0,)),
        (({"train": False}, {}, {"loss": 0}), 2, (0,)),
        (({}, {"loss": False}), 1, ()),
        (({"loss": True}, {"weight": None}), 2, ()),
        (({"train_on_turn": False}, {"train_on_turn": True}), 2, (0,)),
    ],
)
def test_other_ways_to_say_what_is_trained(
    flags: tuple[dict[str, Any], ...], turns: int, untrained: tuple[int, ...], here: Path
) -> None:
    (record,), _ = entry_of(here, **dialogue(*flags))
    assert (len(record.turns), record.untrained) == (turns, untrained)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (dialogue({"loss": False}), "none of its answers is trained"),
        ({**ASKED, "loss": False}, "none of its answers is trained"),
        (dialogue({"weight": 0.5}), "'messages' item 2: 'weight' is 0.5; it must be true or false"),
        (dialogue({"loss": "no"}), "'messages' item 2: 'loss' is 'no'"),
        (dialogue({"loss_scale": 2.0}), "'messages' item 2: 'loss_scale' is 2.0, which is not read"),
        ({**ASKED, "objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]]}}, "0 <bbox> in the texts, but 1 in"),
        (dialogue({"objects": {"ref": ["x"]}}), "'messages' item 2: 'objects' is {'ref': ['x']}, which is not read"),
        ({**ASKED, "tools": '[{"name": "f"}]'}, "'tools' is '[{"),
        ({**ASKED, "video": "a.mp4"}, "'video' is 'a.mp4', which is not read"),
        ({"videos": ["a.mp4"], **dialogue({})}, "'videos' is ['a.mp4']"),
        ({**ASKED, "chosen": "A cat."}, "'chosen', which is half of a pair"),
        (dialogue({"tool_calls": [{"id": "1"}]}), "'messages' item 2: 'tool_calls'"),
        ({**ASKED, "history": "earlier"}, "'history' is 'earlier'; it must be a list"),
        ({**ASKED, "history": [["What?"]]}, "'history' item 1 is ['What?']; it must be a [question, answer] pair"),
        ({**ASKED, "system": ["x"]}, "'system' is ['x']; it must be text"),
        ({**ASKED, "image": None, "image_file": ["1.png"]}, "has 'image_file' but no picture in 'image'"),
        ({**ASKED, "image": None, "pictures": {"a": "1.png"}}, "has 'pictures' but no picture in 'image'"),
        ({**ASKED, "images": ["2.png"]}, "both 'image' and 'images', which differ"),
        ({**dialogue({}), "conversations": dialogue({})["messages"]}, "both 'messages' and 'conversations'"),
        ({"captions": [{"role": "caption", "content": "<image> a dog"}]}, "an answer can hold no picture"),
        ({**ASKED, "text": "<ImageHere>"}, "'text' holds '<ImageHere>', but an answer can hold no picture"),
        ({**ASKED, "text": "<bbox>"}, "'text' holds '<bbox>', which is not read"),
        ({**ASKED, "prompt": "<audio>What?"}, "'prompt' holds '<audio>', which is not read"),
        ({**ASKED, "prompt": "<|image_2|> and <|image_1|>", "image": ["1.png", "2.png"]}, "is out of order"),
        ({**ASKED, "prompt": "[IMG] and [IMG]"}, "2 <image> in the questions, but 1 picture"),
        (dialogue({"mask": 1}), "'messages' item 2: 'mask' is 1, which is not read"),
        ({**ASKED, "bbox": [1, 2, 3, 4]}, "'bbox' is [1, 2, 3, 4], which is not read"),
        ({**ASKED, "system_prompt": "Be short."}, "'system_prompt' is 'Be short.', which is not read"),
        ({**dialogue({}), "label": False}, "'label' is false: the answer is one to avoid"),
        ({**dialogue({}), "kto_tag": False}, "'kto_tag' is false: the answer is one to avoid"),
        ({**ASKED, "rejected_images": ["2.png"]}, "'rejected_images' is ['2.png'], which is not read"),
        ({**ASKED, "image": 0}, "the picture is 0; it must be a name"),
        ({**ASKED, "image_2": "2.png"}, "has 'image_2', which is not read; list the pictures under 'images'"),
        ({**ASKED, "image": None, "media": ["1.png"]}, "has 'media' but no picture in 'image'"),
        ({**ASKED, "image": None, "visual": "1.jpeg"}, "has 'visual' but no picture in 'image'"),
        ({**ASKED, "text": "<img>1.png</img>"}, "'text' holds '<img>1.png</img>', but an answer can hold no picture"),
        ({**ASKED, "text": " \u3000\u200b"}, "the answer of turn 1 is empty"),
        ({**ASKED, "prompt": "<audio_1>What?"}, "'prompt' holds '<audio_1>', which is not read"),
        ({**ASKED, "system": "<|image|>Be short."}, "'system' holds '<|image|>', but a system text can"),
    ],
)  # fmt: skip
def test_what_nobody_reads_is_refused_by_name_and_line(entry: dict[str, Any], said: str, here: Path) -> None:
    records, (problem,) = entry_of(here, **entry)
    assert not records and said in problem.message and problem.source.endswith("x.jsonl:1")


def test_numbered_parts_stand_in_their_order(here: Path) -> None:
    def asked(*numbers: int) -> tuple[list[Record], list[Problem]]:
        parts = [{"type": "image", "index": number, "text": None} for number in numbers]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": "What?", "index": None}]}
        messages = [question, {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]
        return entry_of(here, image=None, images=["1.png", "2.png"], messages=messages)

    ((record,), _), (none, (problem,)) = asked(0, 1), asked(1, 0)
    assert [image.name for image in record.images] == ["1.png", "2.png"]
    assert not none and "'index' 1 is out of order" in problem.message


def test_a_question_and_a_response_of_swift(here: Path) -> None:
    entry = {"images": ["1.png"], "query": "<image>What?", "response": "A dog.", "history": [["Hm?", "Yes."]]}
    (record,), problems = read(write_jsonl(here / "x.jsonl", [entry]))
    assert not problems and record.turns == (("Hm?", "Yes."), ("What?", "A dog."))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_number_that_nobody_can_hold_is_a_bad_sample(name: str, here: Path) -> None:
    lines = [json.dumps(ASKED), '{"id": ' + "9" * 5000 + ', "prompt": "What?", "text": "A cat."}']
    (here / name).write_text("[" + ",\n".join(lines) + "]" if name == "x.json" else "\n".join(lines))
    records, (problem,) = read(here / name)
    assert len(records) == 1 and "a number of too many digits" in problem.message
    (here / "one.json").write_text(lines[1])
    assert "a number of too many digits" in read(here / "one.json")[1][0].message


def test_boxes_by_reference_are_read_or_refused_by_name(here: Path) -> None:
    records, (problem,) = read(case("swift_bbox/data.jsonl", here))
    assert not records and problem.source.endswith("data.jsonl:1")
    assert "(9, 16, 13, 21) px; it must lie inside of its picture, which has 12 x 8 px" in problem.message
    Image.new("RGB", (50, 60)).save(here / "1.png")
    (record,), problems = read(here / "data.jsonl")
    assert not problems and sample_text(record).endswith("« [[180,267,260,350;720,800,980,883]]</s>»")
    records, (problem,) = entry_of(here, prompt="Find <ref-object>", text="It is there.")
    assert "'prompt' holds '<ref-object>', which is not read here" in problem.message


def test_system_and_neutral_tools(here: Path) -> None:
    (record,), problems = read(case("system_top/data.json", here))
    assert not problems and record.turns == (("You answer like a pirate.\nWhat?", "A circle."),)
    (record,), _ = entry_of(here, **ASKED, system="Be short.", tools=[], history=[["Hm?", "Yes."]], objects={})
    assert record.turns == (("Be short.\nHm?", "Yes."), ("What?", "A dog."))


@pytest.mark.parametrize("version", ["llava_v1", "chat", "vqa"])
def test_a_system_text_stands_where_the_style_has_its_place(version: str, here: Path) -> None:
    """LLaVA's style has one, in front of everything; CogVLM's have none, and it begins the first question."""
    (record,), _ = entry_of(here, **dialogue({}, {}), system="Be a pirate.")
    dataset = VLMDataset([record], processor(), version=version, max_length=512)
    text = marked_text(dataset[0], dataset.processor.tokenizer)
    if version == "llava_v1":
        assert text.startswith("<s> Be a pirate. USER: ") and "curious human" not in text and text.count("pirate") == 1
    else:
        assert "Be a pirate.\nQ0?" in text and record.turns[0][0] == "Be a pirate.\nQ0?"
    assert dataset.system_of(record) == ("Be a pirate." if version == "llava_v1" else None)
    lengths, problems = check_lengths(record, dataset.processor, version=version, max_length=512)
    assert not problems and lengths == [dataset[place].length for place in range(len(dataset))]
    messages = [{"role": "system", "content": "Be a pirate."}, *dialogue({}, {})["messages"]]
    (same,), _ = entry_of(here, messages=messages)
    assert VLMDataset([same], dataset.processor, version=version, max_length=512)[0].input_ids.equal(
        dataset[0].input_ids
    )


def test_history_stands_before(here: Path) -> None:
    (record,), problems = read(case("history/data.json", here))
    assert not problems
    assert record.turns == (("What is it?", "A circle"), ("And the colour?", "Red"))
    (record,), _ = entry_of(here, **dialogue({}), history=[["<image>Hm?", "Yes."]])
    assert record.turns == (("Hm?", "Yes."), ("Q0?", "A0.")) and len(record.images) == 1


def test_a_picture_named_in_the_text(here: Path, tmp_path: Path) -> None:
    path = case("qwen_img_tag/data.json", here)
    (record,), problems = read(path)
    assert not problems and record.images == (here / "1.png",)
    assert record.turns == (("Picture 1:\nWhat is there?", "A circle."),)
    (two,), _ = entry_of(here, image=None, prompt="<img>2.png</img> or <img> 1.png </img>?", text="The first.")
    assert two.images == (here / "2.png", here / "1.png") and two.turns[0][0] == "or ?"
    _, (problem,) = entry_of(here, image=None, prompt="<img>9.png</img>?", text="x")
    assert problem.kind == "image" and "'9.png' is not there" in problem.message
    split_dataset(path, tmp_path / "parts", counts=(1, 0, 0))
    (again,), _ = read(tmp_path / "parts" / "train" / "data.jsonl")
    assert again.images == (tmp_path / "parts" / "train" / "images" / "1.png",)


def test_pictures_marks_of_other_families(here: Path) -> None:
    records, problems = read(case("other_tags/data.json", here))
    entries = json.loads((here / "data.json").read_text())
    assert len(records) == len(entries) - 1
    assert {record.turns for record in records} == {(("What is there?", "A circle."),)}
    (problem,) = problems
    assert "holds '<video>', which is not read here" in problem.message and "(entry" not in problem.source


@pytest.mark.parametrize(
    "mark",
    [
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<Img><ImageHere></Img>",
        "<|image_1|>",
        "<image_placeholder>",
        "<start_of_image>",
        "<IMG_CONTEXT>",
        "<__media__>",
        "[IMG]",
        "<Image>",
        "<image 1>",
        "<im_start><image><im_end>",
        "<|begin_of_image|><|endoftext|><|end_of_image|>",
        "(<image>./</image>)",
        "<image></image>",
        "<image_soft_token>",
        "<fake_token_around_image><image><fake_token_around_image>",
    ],
)
def test_more_marks_of_other_families(mark: str) -> None:
    assert with_slots(f"{mark}\nWhat?", "here") == ("<image>\nWhat?", [None])


def test_text_about_html_is_left_alone() -> None:
    for text in ("a < b > c", "<imagine>", "<img src='x.png'>", "image", "[image of a dog]", "<b>", "<picture>"):
        assert with_slots(text, "here") == (text, [])
    with pytest.raises(EntryError):
        with_slots("<video>", "here")


def test_a_picture_in_an_answer_is_refused(here: Path) -> None:
    records, (problem,) = read(case("slot_in_answer/data.json", here))
    assert not records and "holds '<image>', but an answer can hold no picture" in problem.message
    parts = [{"type": "text", "text": "so:"}, {"type": "image", "image": "1.png"}]
    messages = [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": parts}]
    _, (problem,) = entry_of(here, messages=messages)
    assert "an answer can hold no picture" in problem.message


def test_text_that_utf8_cannot_write_is_a_bad_sample(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = case("surrogate.jsonl", here)
    records, problems = read(path)
    assert [record.turns[0][1] for record in records] == ["ok"]
    assert [problem.source for problem in problems] == [f"{path}:1", f"{path}:2"]
    assert "the question of turn 1 is not UTF-8: half of a surrogate pair in 'How many \\ud83d" in problems[0].message
    assert "the answer of turn 1" in problems[1].message
    report = validate(path, processor())
    report_text(report).encode()
    json.dumps(report.as_dict(), ensure_ascii=False).encode()
    with pytest.raises(InputError, match=r"surrogate\.jsonl:1: the question of turn 1 is not UTF-8"):
        read_records(path)


@pytest.mark.parametrize(
    "entry",
    [
        {**ASKED, "image": "\udc80.png"},
        {**ASKED, "prompt": ["\ud83d"]},
        {"messages": [{"role": "\ud83d", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "\ud83d"}]}]},
        {"\ud83d": "x"},
        {**ASKED, "image": None, "image_\ud83d": "x"},
        {**ASKED, "objects": "\ud83d"},
        {**ASKED, "history": ["\ud83d"]},
        dialogue({"loss": "\ud83d"}),
    ],
)
def test_halves_of_pairs_anywhere_are_said_in_ascii(entry: dict[str, Any], here: Path) -> None:
    _, problems = read(write_jsonl(here / "x.jsonl", [json.dumps({"image": "1.png", **entry})]))
    assert problems
    for problem in problems:
        str(problem).encode()


def test_an_unrelated_field_harms_nothing(here: Path, tmp_path: Path) -> None:
    entry = {**ASKED, "image": "1.png", "note": "\ud83d", "id": "\ud83d"}
    path = write_jsonl(here / "x.jsonl", [json.dumps(entry)])
    (record,), problems = read(path)
    assert not problems and record.turns == (("What?", "A dog."),)
    split_dataset(path, tmp_path / "parts", counts=(1, 0, 0))
    assert read(tmp_path / "parts" / "train" / "x.jsonl")[0][0].turns == record.turns


def test_validator_and_training_agree_on_what_fits(tmp_path: Path) -> None:
    entry = json.loads((CASES / "fits_but_refused.jsonl").read_text())
    path = write_jsonl(tmp_path / "x.jsonl", [{**entry, "image": str(ROOT / "examples" / "2.png")}])
    tiny = load_processor("cogvlm-tiny")
    report = validate(path, tiny, max_length=88)
    (problem,) = report.problems
    with pytest.raises(InputError) as refused:
        VLMDataset(read_records(path), tiny, max_length=88)
    assert problem.kind == "too long" and problem.message in str(refused.value)
    assert validate(path, tiny, max_length=200).ok


@pytest.mark.parametrize("model", ["cogvlm-mini", "visualglm-mini"])
@pytest.mark.parametrize("version", ["chat", "vqa", None])
def test_validator_and_training_agree_everywhere(model: str, version: str | None, here: Path) -> None:
    """Whatever the lengths: no problem means that training takes the whole sample, a problem that it does not."""
    maker = load_processor(GOLDEN / model, local_tokenizer=GOLDEN / "cogvlm-mini")
    chance, seen = random.Random(f"{model}{version}"), set()
    for number in range(60):
        turns = [
            ("why " * chance.randrange(1, 9), "so " * chance.randrange(1, 9)) for _ in range(chance.randrange(1, 4))
        ]
        record = Record("1", (here / "1.png",) * chance.randrange(2), tuple(turns), f"x:{number}")
        limit = chance.randrange(20, 90)
        whole = maker.training_layouts(record.turns, maker.plans(record.images), version=version, max_length=9999)
        chosen = version or maker.version
        lengths, problems = check_lengths(record, maker, version=chosen, max_length=limit)
        assert lengths == [layout.input_ids.numel() for layout in whole]
        kept: list[int] = []
        dataset = None
        try:
            dataset = VLMDataset([record], maker, version=version, max_length=limit, on_bad="skip")
            kept = [dataset[place].length for place in range(len(dataset))]
        except InputError:
            pass
        assert (kept == lengths) == (not problems), (record, limit, problems)
        seen.add(bool(problems))
    assert seen == {True, False}


def test_the_report_counts_pictures_and_warns(here: Path) -> None:
    entries = [{**ASKED, "image": "1.png"}, {"prompt": "Hm?", "text": "Yes."}]
    report = validate(write_jsonl(here / "x.jsonl", entries))
    assert report.as_dict()["with_pictures"] == 1
    assert "pictures: 1 of 2 record(s) have one\nwarning: 1 of 2 have no picture" in report_text(report)
    report = validate(write_jsonl(here / "x.jsonl", entries[1:]))
    assert "warning: all of 1 have no picture" in report_text(report)
    assert "warning" not in report_text(validate(write_jsonl(here / "x.jsonl", entries[:1])))


def test_bad_samples_are_counted_after_the_first_ten(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [Record(str(n), (), (("long " * 300, "x"),), f"x.jsonl:{n}") for n in range(25)]
    records.append(Record("26", (), (("What?", "x"),), "x.jsonl:26"))
    assert len(VLMDataset(records, processor(), on_bad="skip")) == 1
    said = [message.getMessage() for message in caplog.records]
    assert sum("bad sample" in message for message in said) == 10
    assert said[9].endswith("further ones are counted only") and "25 record(s) with samples left out" in said[10]
