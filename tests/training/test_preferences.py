"""Pairs of answers: every form that people have them in, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import image_file, processor, record, write_jsonl

from sat_models.errors import InputError
from sat_models.processing.layout import IGNORE
from sat_models.training.data import VLMDataset
from sat_models.training.data_report import report_text
from sat_models.training.formats import read_records
from sat_models.training.pairs import PairDataset
from sat_models.training.records import Record
from sat_models.training.validate import validate

QUESTION, CHOSEN, REJECTED = "What is it?", "A red card.", "A blue cat."


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


IMAGES = {"images": ["red.png"]}
FORMS = {
    "ms-swift": {"messages": [user(f"<image>{QUESTION}"), says(CHOSEN)], "rejected_response": REJECTED, **IMAGES},
    "ms-swift, flat": {"query": QUESTION, "response": CHOSEN, "rejected_response": REJECTED, **IMAGES},
    "ms-swift, whole": {
        "messages": [user(QUESTION), says(CHOSEN)], "rejected_messages": [user(QUESTION), says(REJECTED)], **IMAGES,
    },
    "TRL": {"prompt": [user(QUESTION)], "chosen": [says(CHOSEN)], "rejected": [says(REJECTED)], **IMAGES},
    "TRL, parts": {
        "prompt": [user([{"type": "image"}, {"type": "text", "text": QUESTION}])],
        "chosen": [says([{"type": "text", "text": CHOSEN}])],
        "rejected": [says([{"type": "text", "text": REJECTED}])], **IMAGES,
    },
    "TRL, prompt within": {
        "chosen": [user(QUESTION), says(CHOSEN)], "rejected": [user(QUESTION), says(REJECTED)], **IMAGES,
    },
    "TRL, prompt twice": {
        "prompt": QUESTION, "chosen": [user(QUESTION), says(CHOSEN)],
        "rejected": [user(QUESTION), says(REJECTED)], "score_chosen": 9.0, **IMAGES,
    },
    "TRL, text before messages": {
        "prompt": QUESTION, "chosen": [says(CHOSEN)], "rejected": [says(REJECTED)], **IMAGES,
    },
    "TRL, plain": {"prompt": QUESTION, "chosen": CHOSEN, "rejected": REJECTED, "image": "red.png"},
    "RLAIF-V": {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED, "image": "red.png"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": f"<image>{QUESTION}"}],
        "chosen": {"from": "gpt", "value": CHOSEN}, "rejected": {"from": "gpt", "value": REJECTED}, **IMAGES,
    },
}  # fmt: skip


def read(folder: Path, *entries: Any) -> list[Record]:
    image_file(folder / "red.png")
    return read_records(write_jsonl(folder / "pairs.jsonl", entries))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(tmp_path: Path, form: str) -> None:
    (found,) = read(tmp_path, FORMS[form])
    assert found.turns == ((QUESTION, CHOSEN),) and found.rejected == REJECTED
    assert found.images == (tmp_path / "red.png",)


def test_what_stands_before_the_pair_is_kept(tmp_path: Path) -> None:
    before = [user(QUESTION), says("A card."), user("Sure?")]
    entry = {"messages": [{"role": "system", "content": "Be brief."}, *before, says("Yes.")], **IMAGES,
             "rejected_response": "No."}  # fmt: skip
    (found,) = read(tmp_path, entry)
    assert found.turns[1:] == (("Sure?", "Yes."),) and found.rejected == "No." and found.system == "Be brief."
    (flat,) = read(tmp_path, {**FORMS["RLAIF-V"], "history": [["Hello?", "Hello."]]})
    assert flat.turns == (("Hello?", "Hello."), (QUESTION, CHOSEN)) and flat.rejected == REJECTED


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**FORMS["RLAIF-V"], "rejected": f" {CHOSEN}"}, "both 'A red card.'; those of a pair must differ, or"),
        ({**FORMS["ms-swift"], "rejected_response": CHOSEN}, "both 'A red card.'; those of.*mend or"),
        ({"prompt": QUESTION, "chosen": CHOSEN}, "'chosen', which is half of a pair"),
        ({"prompt": QUESTION, "text": CHOSEN, "rejected": REJECTED}, "'rejected', which is half of a pair"),
        ({**FORMS["RLAIF-V"], "text": "A card."}, "has both 'text' and"),
        ({**FORMS["TRL"], "rejected_response": "No."}, "has both 'rejected_response' and 'rejected'"),
        ({**FORMS["TRL"], "rejected": []}, "'chosen', which is half of a pair"),
        ({**FORMS["TRL"], "rejected": [user("No.")]}, "with the rejected answer: 'messages' item 2: a second question"),
        ({**FORMS["TRL"], "rejected": [says(" ")]}, "with the rejected answer: the answer of turn 1 is empty"),
        ({**FORMS["TRL"], "rejected": 5}, "'rejected' is 5; it must be the text or the message"),
        ({**FORMS["RLAIF-V"], "rejected": 5}, "with the rejected answer: 'text' is 5"),
        ({**FORMS["TRL, prompt within"], "rejected": [user("Why?"), says("No.")]}, "differ before their last answer"),
        ({**FORMS["TRL, prompt twice"], "prompt": "Why?"}, "'prompt' is not the first message of 'chosen'"),
        ({"captions": [says(CHOSEN)], "rejected_response": REJECTED, **IMAGES}, "stands beside 'captions'"),
        ({**FORMS["ms-swift"], "rejected_images": ["blue.png"]}, "stands beside 'rejected_images'"),
        (
            {"messages": [user(QUESTION), says("A card."), user("Sure?"), {**says("Yes."), "loss": False}],
             "rejected_response": "No.", **IMAGES},
            "not trained",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_its_line(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"pairs.jsonl:1: .*{said}"):
        read(tmp_path, entry)


def test_a_pair_is_two_rows_with_the_last_answer_trained(tmp_path: Path) -> None:
    first = ("What is it?", "A card.")
    one = Record("1", (image_file(tmp_path / "a.png"),), (first, ("Sure?", "Yes.")), "x.jsonl:1", rejected="No, a cat.")
    for version, before in (("chat", 1), ("base", 0)):
        data = PairDataset([one, one], processor(), version=version)
        assert len(data) == 2
        pair = data[0]
        assert pair.batch_size == 2 and pair.vision_image.shape[0] == 2
        for number, answer in enumerate(("Yes.", "No, a cat.")):
            alone = Record("1", one.images, (first, ("Sure?", answer)), "x.jsonl:1", untrained=(0,))
            row = VLMDataset([alone], processor(), version=version)[0]
            length = row.length
            assert pair.input_ids[number, :length].equal(row.input_ids[0])
            assert pair.labels[number, :length].equal(row.labels[0]) and (pair.labels[number, length:] == IGNORE).all()
            text = bytes(b"".join(processor().tokenizer.token_bytes(t)[0] for t in row.input_ids[0].tolist())).decode()
            assert text.count("A card.") == before and answer in text


def test_each_objective_refuses_the_others_data(tmp_path: Path) -> None:
    image = image_file(tmp_path / "a.png")
    plain, pair = record(1, image), Record("2", (image,), (("What?", "A"),), "x.jsonl:2", rejected="B")
    with pytest.raises(InputError, match=r"x.jsonl:2: it has a rejected answer, which --objective dpo alone"):
        VLMDataset([plain, pair], processor())
    with pytest.raises(InputError, match=r"x.jsonl:1: it has one answer, but --objective dpo learns from pairs"):
        PairDataset([plain, pair], processor())
    assert len(PairDataset([plain, pair], processor(), on_bad="skip")) == 1


def test_answers_that_differ_behind_the_cut_alone_are_refused(tmp_path: Path) -> None:
    long = "word " * 300
    pair = Record("1", (image_file(tmp_path / "a.png"),), (("What?", f"{long}yes"),), "x:1", rejected=f"{long}no")
    with pytest.raises(InputError, match=r"x:1: its two answers are the same \d+ tokens \(cut to max_length 256\)"):
        PairDataset([pair], processor())[0]


def test_the_validator_shows_both_answers(tmp_path: Path) -> None:
    read(tmp_path, FORMS["ms-swift"], {"prompt": "And?", "text": "Nothing.", "image": "red.png"})
    report = validate(tmp_path / "pairs.jsonl", processor())
    assert report.pairs == 1 and report.as_dict()["pairs"] == 1 and len(report.lengths) == 3
    text = report_text(report)
    assert "1 of 2 are pairs of answers" in text
    assert f"«{CHOSEN}</s>»" in text.replace("« ", "«") and f"«{REJECTED}</s>»" in text.replace("« ", "«")
