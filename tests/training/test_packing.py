"""Many questions about one image in one row: the losses and gradients of separate rows, for every family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_helpers import GOLDEN, image_file, processor, record, write_jsonl
from finetune_runs import finetune, losses
from packed_rows import both_ways, check_equal, layouts_of

from sat_models.checkpoint.adapter import read_adapter
from sat_models.checkpoint.io import save_checkpoint
from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.processing.packing import common_length, pack
from sat_models.training.data import VLMDataset
from sat_models.training.packing import PackedDataset, check_packs
from sat_models.training.records import Record
from sat_models.zoo import load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from miniatures import MINIATURES, ROOT, Miniature

IMAGE = ROOT / "examples" / "6.png"
LOOKS_BACK = tuple(mini for mini in MINIATURES if not mini.config.sequence_form.prefix_attention)


@pytest.mark.parametrize("mini", LOOKS_BACK, ids=str)
def test_a_packed_row_gives_the_loss_and_gradients_of_separate_rows(mini: Miniature) -> None:
    check_equal(mini.build(), mini.config)


def test_packed_rows_hold_the_image_once_and_every_token_once() -> None:
    config = LOOKS_BACK[0].config
    apart, packed = both_ways(config)
    assert apart.vision_image.shape[0] == 4 and packed.vision_image.shape[0] == 2
    separate, row = layouts_of(config), pack(layouts_of(config))
    common = common_length(row)
    assert common == config.image_length + 5
    assert len(row) == common + sum(len(layout) - common for layout in separate)
    assert int((row.labels >= 0).sum()) == sum(int((layout.labels >= 0).sum()) for layout in separate)
    assert packed.lane_mask.shape == (2, 1, packed.length - common, packed.length)


def test_families_that_look_ahead_cannot_be_packed() -> None:
    (glm,) = (mini for mini in MINIATURES if mini.config.sequence_form.prefix_attention)
    with pytest.raises(ValueError, match="attention looks back alone"):
        pack(layouts_of(glm.config))


def test_a_sample_whose_image_is_followed_by_a_target_at_once_has_nothing_in_common() -> None:
    layout = layouts_of(LOOKS_BACK[0].config)[0]
    first = common_length(layout)
    layout.labels[first] = layout.input_ids[first]
    assert common_length(layout) == 0


QUESTIONS = ("What is it?", "Which colour has it?", "How many are there?", "Where is it?")


def records_of(folder: Path) -> list[Record]:
    """Four questions about a red image and two turns about it, with one about a blue image and one without between."""
    red, blue = image_file(folder / "red.png"), image_file(folder / "blue.png", "blue")
    about_red = [record(number, red, (question, f"answer {number}")) for number, question in enumerate(QUESTIONS)]
    dialogue = record(8, red, ("And is it large?", "yes"), ("Are you sure?", "quite sure"))
    return [*about_red[:2], record(6, blue), *about_red[2:], record(7, None), dialogue]


def sources(data: PackedDataset) -> list[list[str]]:
    """The records of each row, by number."""
    return [[record.id for record, _ in parts] for parts in data._items]


def test_samples_about_an_image_share_rows_of_max_length_in_the_order_of_the_data(tmp_path: Path) -> None:
    records = records_of(tmp_path)
    data = PackedDataset(records, processor(), version="chat")
    assert sources(data) == [["0", "1", "2", "3", "8"], ["6"], ["7"]]
    assert data.samples == 7 and len(data) == len(data.lengths) == 3 and data.with_images() == 2
    row = data[0]
    assert row.vision_image.shape[0] == 1 and row.length <= data.max_length
    apart = VLMDataset(records, processor(), version="chat")
    alone = [apart[number] for number in (0, 1, 3, 4, 6)]
    assert int((row.labels >= 0).sum()) == sum(int((one.labels >= 0).sum()) for one in alone)
    assert row.length == sum(one.length for one in alone) - 4 * (processor().plans(["x"])[0].length + 3)
    short = PackedDataset(records, processor(), version="chat", max_length=row.length - 1)
    assert sources(short) == [["0", "1", "2", "3"], ["6"], ["7"], ["8"]]
    assert all(short[number].length <= row.length - 1 for number in range(4))
    assert short.source(0) == "x.jsonl:0 and 3 more about the same images"


def test_each_turn_of_a_style_without_history_is_a_sample_of_its_own_in_the_row(tmp_path: Path) -> None:
    data = PackedDataset(records_of(tmp_path), processor(), version="vqa")
    assert sources(data) == [["0", "1", "2", "3", "8", "8"], ["6"], ["7"]]


def test_images_in_another_order_or_place_share_nothing(tmp_path: Path) -> None:
    red, blue = image_file(tmp_path / "red.png"), image_file(tmp_path / "blue.png", "blue")
    images = [(red, blue), (blue, red), (red,), (red, blue)]
    records = [replace(record(number, red), images=own) for number, own in enumerate(images)]
    data = PackedDataset(records, processor(), version="chat")
    assert sources(data) == [["0", "3"], ["1"], ["2"]] and data[0].vision_image.shape[0] == 2


def test_an_image_behind_an_answer_is_not_shared(tmp_path: Path) -> None:
    """InternVL reads images where they stand: the second one stands behind an answer that is trained."""
    one, two = image_file(tmp_path / "red.png"), image_file(tmp_path / "blue.png", "blue")
    said = (("<image>\nWhat?", "a"), ("<image>\nAnd this?", "b"))
    late = replace(record(0, one, *said), images=(one, two), placed=tuple(question for question, _ in said))
    first = replace(record(1, one), images=(one, two), placed=("<image><image>What?",))
    data = PackedDataset([late, late, first, first], processor("internvl2-mini"))
    assert sources(data) == [["0"], ["0"], ["1", "1"]]


def test_models_whose_images_see_the_question_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--pack: VisualGLMModel reads its context both ways.*leave it out"):
        check_packs(load_config(GOLDEN / "visualglm-mini"))
    sizes = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 1, "inner_hidden_size": 8}
    text = LLaMAConfig(model_class="LLaMAModel", vocab_size=8, max_sequence_length=8, **sizes)
    with pytest.raises(ConfigError, match=r"--pack: LLaMAModel reads no images.*leave it out"):
        check_packs(text)


def about_one_image(folder: Path) -> Path:
    entries = [{"prompt": asked, "text": f"answer {at}", "image": str(IMAGE)} for at, asked in enumerate(QUESTIONS)]
    return write_jsonl(folder / "data.jsonl", entries)


@pytest.mark.slow
def test_a_packed_run_is_the_run_of_separate_rows_and_resumes(tmp_path: Path) -> None:
    """Four questions are a batch of four or a row: the same losses; and broken off in the middle, to the bit."""
    settings = {"train_data": about_one_image(tmp_path), "train_iters": 4, "learning_rate": 1e-2, "lora_alpha": 8,
                "trainable": "all", "valid_data": about_one_image(tmp_path), "version": "vqa", "max_length": 250,
                "eval_interval": 4, "eval_samples": 1, "eval_tokens": 4}  # fmt: skip
    apart = finetune(tmp_path / "apart", "--no-merge", batch_size=4, **settings)
    straight = finetune(tmp_path / "straight", "--pack", "--no-merge", batch_size=1, **settings)
    assert apart.returncode == straight.returncode == 0, straight.stderr[-3000:]
    assert "4 training sample(s) in 1 rows" in straight.stdout
    expected, curve = losses(tmp_path / "apart"), losses(tmp_path / "straight")
    assert [curve[1], curve[2]] == pytest.approx([expected[1], expected[2]], abs=1e-5)
    assert curve == pytest.approx(expected, abs=2e-3), "AdamW makes rounding larger, step by step"
    assert curve[4] < curve[1] - 0.01
    scores = [
        json.loads((tmp_path / name / "predictions" / "4.jsonl").read_text())["answer"]
        for name in ("apart", "straight")
    ]
    assert scores[0] == scores[1]
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "4")
    resumed = finetune(tmp_path / "resumed", "--pack", "--no-merge", batch_size=1, **settings)
    assert resumed.returncode == 0 and "going on after step 2" in resumed.stderr, resumed.stderr[-3000:]
    assert losses(tmp_path / "resumed") == curve
    one, other = read_adapter(tmp_path / "straight").tensors, read_adapter(tmp_path / "resumed").tensors
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_that_share_a_model_pack_alike(tmp_path: Path) -> None:
    for mini in LOOKS_BACK:
        save_checkpoint(mini.build(), tmp_path / mini.name, mini.config, step=1)
    folders = [str(tmp_path / mini.name) for mini in LOOKS_BACK]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("packed_rows.py"))
    run = subprocess.run([*launch, program, *folders], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
