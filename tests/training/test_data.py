"""Samples token by token, batches that depend on (seed, step) alone, and what happens to bad samples."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import image_file, processor, record, write_json, write_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_case, tensors

from sat_models.errors import ConfigError, InputError, UnknownNameError
from sat_models.processing.layout import IGNORE, collate
from sat_models.training.batches import batches, evaluation_batches
from sat_models.training.data import VLMDataset
from sat_models.training.formats import read_records
from sat_models.training.sampler import LengthGroupedSampler
from sat_models.training.split import group_by_common, load_train_valid, split_records, validation_beside
from sat_models.zoo.load import load_processor

TURNS = [("What is it?", "A dog."), ("Where?", "On the left."), ("Colour?", "red")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return image_file(tmp_path / "1.png")


@pytest.fixture
def dialogue(tmp_path: Path) -> Path:
    """A folder in the form of CogVLM-SFT-311K with one dialogue."""
    said = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TURNS]
    write_json(tmp_path / "sft" / "labels" / "1.json", {"conversations": list(chain(*said))})
    image_file(tmp_path / "sft" / "images" / "1.jpg")
    return tmp_path / "sft"


@pytest.mark.parametrize("version", ["chat", "chat_old"])
def test_a_dialogue_is_one_sample_with_every_answer_trained(dialogue: Path, version: str) -> None:
    tokenizer = processor().tokenizer
    (sample,) = VLMDataset(read_records(dialogue), processor(), version=version)
    ids, labels = sample.input_ids[0].tolist(), sample.labels[0].tolist()
    template = {"chat": (" [INST] ", " [/INST] ", ""), "chat_old": ("Question: ", " Answer: ", "\n")}[version]
    before, after, between = template
    history = "".join(before + q + after + a + between for q, a in TURNS[:-1])
    last = before + TURNS[-1][0] + (after if version == "chat" else " Answer:")
    prompt = tokenizer.encode(history + last)
    answer = tokenizer.encode(TURNS[-1][1])
    head = [tokenizer.bos_id] + [0] * 18
    assert ids == [*head, *prompt, *answer, tokenizer.eos_id]

    expected = [IGNORE] * len(ids)
    text = ""
    for question, said in TURNS[:-1]:
        text += before + question + after
        start = len(head) + len(tokenizer.encode(text.rstrip(" ")))
        start += tokenizer.token_bytes(ids[start])[0] == b" "  # a space of its own is the template's
        text += said
        end = len(head) + len(tokenizer.encode(text))
        expected[start:end] = ids[start:end]
        assert tokenizer.decode(ids[start:end]).strip() == said
        expected[end] = tokenizer.eos_id  # the target, although the input goes on with the next turn
        assert ids[end] != tokenizer.eos_id
        text += between
    expected[-len(answer) - 1 :] = [*answer, tokenizer.eos_id]
    assert labels == expected and labels.count(tokenizer.eos_id) == 3


@pytest.mark.parametrize("version", ["base", "vqa"])
def test_without_history_each_turn_is_a_sample(dialogue: Path, version: str) -> None:
    tokenizer = processor().tokenizer
    dataset = VLMDataset(read_records(dialogue), processor(), version=version)
    assert len(dataset) == 3
    for sample, (question, said) in zip(dataset, TURNS, strict=True):
        asked = question if version == "base" else f"Question: {question} Short answer:"
        head = [tokenizer.bos_id] + [0] * 18 + tokenizer.encode(asked)
        answer = [*tokenizer.encode(said), tokenizer.eos_id]
        assert sample.input_ids[0].tolist() == head + answer
        assert sample.labels[0].tolist() == [IGNORE] * len(head) + answer


@each_case("cogvlm", kind="train_cases", wanted=lambda case: case["prompt"] == "CAPTCHA:")
def test_a_captcha_is_the_golden_training_sample(folder: Path, case: dict[str, Any], tmp_path: Path) -> None:
    expected, own = tensors(folder), load_processor(folder)
    (tmp_path / f"{case['answer']}.png").write_bytes((folder / "image.png").read_bytes())
    records = read_records(tmp_path)
    (sample,) = VLMDataset(records, own, version=case["version"], max_length=case["max_length"])
    padded = collate([sample], own.tokenizer.pad_id, case["max_length"])
    for field in ("input_ids", "labels", "position_ids", "image_embed_mask", "vision_expert_mask"):
        assert torch.equal(getattr(padded, field), expected[f"{case['key']}.{field}"]), field
    assert torch.equal(padded.vision_image, expected["pixels.vision"])


def test_a_batch_is_padded_to_its_longest_without_a_mask(image: Path) -> None:
    records = [record(1, image, ("Why?", "word " * n)) for n in (1, 9, 4)]
    dataset = VLMDataset(records, processor("cogagent-mini"), version="base")
    batch = next(batches(dataset, batch_size=3))
    lengths = [dataset[i].length for i in batch.indices]
    assert batch.inputs.length == max(lengths) < dataset.max_length
    assert batch.inputs.attention_mask is None and batch.inputs.batch_size == 3
    assert batch.inputs.vision_image.shape[0] == 3 and batch.inputs.cross_image.shape[0] == 3
    for row, (index, length) in enumerate(zip(batch.indices, lengths, strict=True)):
        assert torch.equal(batch.inputs.labels[row, :length], dataset[index].labels[0])
        assert (batch.inputs.labels[row, length:] == IGNORE).all()
    assert int(batch.inputs.input_ids.max()) < dataset.processor.tokenizer.vocab_size


def test_text_and_pictures_in_one_batch(image: Path) -> None:
    dataset = VLMDataset([record(1, None), record(2, image), record(3, None)], processor())
    inputs = next(batches(dataset, batch_size=3)).inputs
    assert inputs.vision_image.shape[0] == 1 and sorted(inputs.image_embed_mask.sum(1).tolist()) == [0, 0, 18]


# bad samples


def test_a_question_that_does_not_fit(image: Path) -> None:
    records = [record(1, image), record(2, image, ("long " * 60, "x")), record(3, image)]
    with pytest.raises(
        InputError, match=r"x\.jsonl:2: the question alone takes \d+ tokens.*max_length 64 leaves 54.*skip"
    ):
        VLMDataset(records, processor(), version="base", max_length=64)
    dataset = VLMDataset(records, processor(), version="base", max_length=64, on_bad="skip")
    assert len(dataset) == 2 and list(dataset.bad) == ["x.jsonl:2"]
    with pytest.raises(InputError, match="no usable sample in 1 record"):
        VLMDataset(records[1:2], processor(), max_length=64, on_bad="skip")
    with pytest.raises(InputError, match="nothing to read"):
        VLMDataset([], processor())


def test_an_unreadable_picture(tmp_path: Path, image: Path) -> None:
    broken = tmp_path / "2.png"
    broken.write_bytes(image.read_bytes()[:40])
    records = [record(1, image), record(2, broken), record(3, image), record(4, broken)]
    with pytest.raises(InputError, match=r"x\.jsonl:[24]: '.*2\.png' is not a picture"):
        list(islice(batches(VLMDataset(records, processor()), batch_size=4), 1))
    dataset = VLMDataset(records, processor(), on_bad="skip")
    assert len(dataset) == 4
    assert [dataset.take(i).index for i in range(4)] == [0, 2, 2, 0]
    assert torch.equal(dataset[1].input_ids, dataset[2].input_ids)
    assert sorted(dataset.bad) == ["x.jsonl:2", "x.jsonl:4"] and "2.png" in dataset.bad["x.jsonl:2"]
    rows = [next(batches(dataset, batch_size=2, rank=rank, world=2)).inputs.batch_size for rank in (0, 1)]
    assert rows == [2, 2]
    nothing = VLMDataset([records[1], records[3]], processor(), on_bad="skip")
    with pytest.raises(InputError, match="none of the 2 samples can be read"):
        nothing.take(0)


def test_bad_choices(image: Path) -> None:
    with pytest.raises(ConfigError, match="error, skip"):
        VLMDataset([record(1, image)], processor(), on_bad="ignore")
    with pytest.raises(UnknownNameError):
        VLMDataset([record(1, image)], processor(), version="chatt")
    with pytest.raises(IndexError):
        VLMDataset([record(1, image)], processor()).take(1)


# order


def many(count: int) -> VLMDataset:
    return VLMDataset([record(i, None, ("Q?", "word " * (1 + i * 7 % 11))) for i in range(count)], processor())


def test_ranks_share_an_epoch() -> None:
    lengths = [5 + i * 13 % 17 for i in range(30)]
    samplers = [LengthGroupedSampler(lengths, batch_size=3, seed=1, rank=rank, world=2) for rank in (0, 1)]
    assert samplers[0].steps_per_epoch == 5
    for epoch in range(2):
        steps = [[s.batch(epoch * 5 + step) for step in range(5)] for s in samplers]
        assert all(len(batch) == 3 for rank in steps for batch in rank)
        first, second = (list(chain(*rank)) for rank in steps)
        assert not set(first) & set(second) and sorted(first + second) == list(range(30))
    assert [samplers[0].batch(i) for i in range(5)] != [samplers[0].batch(i) for i in range(5, 10)]


@pytest.mark.parametrize(("count", "batch_size", "world"), [(1, 4, 2), (7, 2, 2), (10, 3, 1), (3, 1, 4)])
def test_no_batch_is_ever_short(count: int, batch_size: int, world: int) -> None:
    samplers = [LengthGroupedSampler([1] * count, batch_size=batch_size, rank=r, world=world) for r in range(world)]
    steps = samplers[0].steps_per_epoch
    taken = [sampler.batch(step) for sampler in samplers for step in range(steps)]
    assert {len(batch) for batch in taken} == {batch_size}
    assert set(chain(*taken)) == set(range(count))


def test_grouping_saves_padding_and_the_longest_comes_first() -> None:
    lengths = [10 + i * 37 % 101 for i in range(256)]

    def padding(group: bool) -> int:
        sampler = LengthGroupedSampler(lengths, batch_size=8, group=group)
        rows = [[lengths[i] for i in sampler.batch(step)] for step in range(sampler.steps_per_epoch)]
        assert group is False or max(rows[0]) == max(lengths)
        return sum(len(row) * max(row) - sum(row) for row in rows)

    assert padding(True) < padding(False) / 3


def test_the_position_of_a_sampler_is_restored() -> None:
    lengths = list(range(20))
    straight = LengthGroupedSampler(lengths, batch_size=2, seed=3)
    wanted = list(islice(straight, 25))
    assert straight.step == 25
    resumed = LengthGroupedSampler(lengths, batch_size=2, seed=3, start_step=13)
    assert list(islice(resumed, 12)) == wanted[13:]


def test_sampler_refuses_nonsense() -> None:
    for options in ({"batch_size": 0}, {"batch_size": 1, "rank": 1}, {"batch_size": 1, "start_step": -1}):
        with pytest.raises(ConfigError, match="at least 1"):
            LengthGroupedSampler([1], **options)
    with pytest.raises(ConfigError, match="no samples"):
        LengthGroupedSampler([], batch_size=1)


def test_batches_resume_exactly_and_threads_change_nothing() -> None:
    dataset = many(10)
    straight = list(islice(batches(dataset, batch_size=3, seed=4), 9))
    assert [batch.step for batch in straight] == list(range(9))
    for start, workers in ((5, 0), (0, 2), (5, 3)):
        again = list(islice(batches(dataset, batch_size=3, seed=4, start_step=start, workers=workers), 4))
        for a, b in zip(straight[start:], again, strict=False):
            assert (a.step, a.indices, a.sources) == (b.step, b.indices, b.sources)
            assert torch.equal(a.inputs.input_ids, b.inputs.input_ids)
    assert straight[0].sources[0] == dataset.source(straight[0].indices[0])
    other = list(islice(batches(dataset, batch_size=3, seed=5), 9))
    assert [batch.indices for batch in other] != [batch.indices for batch in straight]


@pytest.mark.parametrize(("count", "world"), [(10, 2), (3, 2), (8, 1), (1, 3)])
def test_evaluation_counts_every_sample_once(count: int, world: int) -> None:
    dataset = many(count)
    ranks = [list(evaluation_batches(dataset, batch_size=2, rank=rank, world=world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    trained: Counter[int] = Counter()
    for batch in chain(*ranks):
        assert batch.inputs.batch_size == 2
        for row, index in enumerate(batch.indices):
            trained[index] += bool((batch.inputs.labels[row] != IGNORE).any())
    assert trained == dict.fromkeys(range(count), 1)
    assert len(list(evaluation_batches(dataset, batch_size=1, limit=1))) == 1


def test_evaluation_does_not_count_a_stand_in(tmp_path: Path, image: Path) -> None:
    (tmp_path / "2.png").write_bytes(b"x")
    dataset = VLMDataset([record(1, image), record(2, tmp_path / "2.png")], processor(), on_bad="skip")
    (batch,) = evaluation_batches(dataset, batch_size=2)
    assert batch.indices == (0, 0) and (batch.inputs.labels[1] == IGNORE).all()


# validation data


def pairs(count: int, per_image: int = 2) -> list:
    return [record(i, Path(f"{i // per_image}.png")) for i in range(count)]


def test_a_share_is_held_out_picture_by_picture() -> None:
    records = pairs(40)
    train, valid = split_records(records, share=0.1, seed=7)
    assert len(valid) == 4 and sorted(train + valid, key=records.index) == records
    assert not {r.images for r in train} & {r.images for r in valid}
    assert split_records(records, share=0.1, seed=7) == (train, valid)
    assert split_records(records, share=0.1, seed=8)[1] != valid
    assert split_records(records, share=0) == (records, [])
    assert split_records(records[:2], share=0.5) == (records[:2], [])  # one picture: nothing can be held out
    assert [len(part) for part in split_records(pairs(4), share=0.01)] == [2, 2]


def test_chained_pictures_stay_together() -> None:
    assert group_by_common("abcd", [(1, 2), (3,), (2, 4), (4, 5)]) == [["a", "c", "d"], ["b"]]


def test_where_validation_data_come_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("split/train/1.png", "split/train/2.png", "split/valid/3.png", "elsewhere/4.png"):
        image_file(tmp_path / name)
    for data in (tmp_path / "split" / "train", tmp_path / "split"):
        train, valid = load_train_valid(data)
        assert [[r.turns[0][1] for r in part] for part in (train, valid)] == [["1", "2"], ["3"]]
    train, valid = load_train_valid(tmp_path / "split" / "train", valid_data=str(tmp_path / "elsewhere"))
    assert [r.turns[0][1] for r in valid] == ["4"]
    train, valid = load_train_valid([tmp_path / "elsewhere", tmp_path / "split" / "train"])
    assert len(train) == 3 and len(valid) == 1
    with caplog.at_level(logging.WARNING):
        load_train_valid(tmp_path / "elsewhere", valid_data=tmp_path / "elsewhere")
    assert "1 picture(s) of the validation data are trained on" in caplog.text
    with pytest.raises(ConfigError, match="share is 1"):
        load_train_valid(tmp_path / "elsewhere", share=1)


def test_validation_beside_files(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [])
    assert validation_beside(train) is None
    valid = write_jsonl(tmp_path / "valid.jsonl", [])
    assert validation_beside(train) == valid and validation_beside(valid) is None
    (tmp_path / "valid").mkdir()
    assert validation_beside(train) == tmp_path / "valid" and validation_beside(tmp_path / "valid") is None


def test_bad_records_are_skipped_with_a_count(tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [{"prompt": "a", "text": "b", "image": "1.png"}, "{", {"prompt": "a", "text": "", "image": "1.png"}]
    path = write_jsonl(tmp_path / "x.jsonl", entries)
    with pytest.raises(InputError, match=r"x\.jsonl:2"):
        load_train_valid(path)
    with caplog.at_level(logging.WARNING):
        train, valid = load_train_valid(path, on_bad="skip")
    assert len(train) == 1 and not valid
    assert "2 bad record(s) left out (1 json, 1 empty)" in caplog.text
