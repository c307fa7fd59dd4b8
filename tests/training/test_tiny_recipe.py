"""The recipe of the bundled model: what its names mean, exact resume, milestones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sat_models
from mixins.packed_attention import PackedLanesMixin
from sat_models import runtime
from sat_models.config import read_json
from sat_models.errors import ConfigError
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.processing.tokens import SentencePieceTokenizer, Tokenizer
from sat_models.shapes import questions, training
from sat_models.shapes.mentions import find_mentions
from sat_models.shapes.milestones import share_right
from sat_models.shapes.objective import TinyObjective, parameter_groups, prepare_for_training
from sat_models.shapes.packing import LaneBatch, LaneShape
from sat_models.shapes.recipe import TinyRecipe, batch_of_step
from sat_models.shapes.scenes import Background, Scene, ShapeObject
from sat_models.shapes.training import export_tiny, train_tiny
from sat_models.zoo import load_pretrained

RED_CIRCLE = ShapeObject("red", "circle", "large", (10, 20, 50, 60), (255, 0, 0), digit=7)
RED_SQUARE = ShapeObject("red", "square", "small", (60, 10, 80, 30), (220, 20, 40))
BLUE_SQUARE = ShapeObject("blue", "square", "small", (120, 60, 140, 80), (0, 0, 255))
SCENE = Scene(200, 100, Background("solid", ((255, 255, 255),)), (RED_CIRCLE, RED_SQUARE, BLUE_SQUARE))
QUICK = TinyRecipe(
    steps=6,
    tower_steps=2,
    decay_steps=2,
    tower_batch=2,
    batch=2,
    lookup_steps=2,
    lanes=LaneShape(2, 128),
    digit_share=0.5,
)
TOKENIZER_FILE = Path(sat_models.__file__).parent / "assets" / "cogvlm-tiny" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer.from_file(TOKENIZER_FILE)


@pytest.fixture(scope="module")
def config() -> CogVLMConfig:
    """The bundled model's, much smaller."""
    runtime.init_distributed(torch.device("cpu"))
    runtime.init_model_parallel(1)
    sizes = read_json(Path(__file__).parents[2] / "configs/models/cogvlm-tiny.json")
    sizes |= {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "inner_hidden_size": 64}
    sizes["eva_args"] |= {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "inner_hidden_size": 64}
    return CogVLMConfig.from_dict(sizes)


def meanings(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, ...]]]:
    ids = tokenizer.encode(text)
    return [(tokenizer.decode(ids[: m.index + 1]).split()[-1], m.classes) for m in find_mentions(tokenizer, ids, SCENE)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What color is the circle?", [("circle", (1, 1, 2, 8))]),
        ("What color is the square?", []),  # there are two
        ("What shape is the blue object?", [("object", (3, 2, 1, 0))]),
        ("What shape is the red object?", []),
        ("Is there a green square?", [("square", (0, 0, 0, 0))]),
        ("Is there a triangle?", []),
        (
            "Is the red square left or right of the blue square?",
            [("square", (1, 2, 1, 0)), ("square", (3, 2, 1, 0))],
        ),
        ("How many red shapes are there?", []),
        ("Answer in [[x0,y0,x1,y1]] format.", []),
        ("What is at [[045,205,255,590]]?", [("[[045,205,255,590]]", (1, 1, 2, 8))]),
        ("What is at [[500,205,700,590]]?", []),
    ],
)
def test_what_a_name_or_a_box_means(tokenizer: Tokenizer, text: str, expected: list) -> None:
    assert [(word.rstrip("?"), classes) for word, classes in meanings(tokenizer, text)] == expected


def test_a_mention_knows_the_place(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Is the blue square above or below the red circle?")
    first, second = find_mentions(tokenizer, ids, SCENE)
    assert (first.box, second.box) == (SCENE.box_999(BLUE_SQUARE), SCENE.box_999(RED_CIRCLE))
    assert first.index < second.index == len(ids) - 2


def test_mentions_stand_in_the_batch_where_the_names_are(tokenizer: Tokenizer) -> None:
    batch = batch_of_step(dataclasses.replace(QUICK, batch=6), tokenizer, 3)
    told = batch.mention_classes[..., 0] >= 0
    assert told.sum() > 40 and not told[:, :67].any()
    ends = {
        tokenizer.encode(word)[-1]
        for word in ("circle", "square", "triangle", "object", "shape", "[[000,000,000,000]]")
    }
    assert set(batch.input_ids[told].tolist()) <= ends
    circles = told & (batch.input_ids == tokenizer.encode("circle")[-1])
    assert set(batch.mention_classes[circles][:, 1].tolist()) <= {0, 1}
    there = batch.mention_classes[..., 0] > 0
    assert (batch.mention_box[there][:, 2] > batch.mention_box[there][:, 0]).all()


def test_lookups_come_first_and_about_several_objects(tokenizer: Tokenizer) -> None:
    recipe = TinyRecipe()
    assert [recipe.stage(step) for step in (0, 499, 500)] == ["tower", "tower", "full"]
    early, late = recipe.mix(500), recipe.mix(500 + recipe.lookup_steps)
    assert early.caption == early.chat == 0 < late.caption and early.vqa > late.vqa
    assert all(weights[0] <= weights[1] for weights in map(recipe.object_weights, (500, 5000)))
    rates = [recipe.learning_rate_at(step) for step in (0, 100, 499, 500, 600, 1999, 4999)]
    assert rates[0] < rates[1] > rates[2] and rates[3] < rates[4] == rates[5] > 20 * rates[6]


def test_a_resumed_run_is_the_same_run(
    tokenizer: Tokenizer, config: CogVLMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(folder: str, stop_at: int | None = None, every: int = 1, **change: float) -> Any:
        def data(recipe: TinyRecipe, tokenizer: Tokenizer, step: int) -> LaneBatch:
            if step == stop_at:
                raise KeyboardInterrupt
            return batch_of_step(recipe, tokenizer, step)

        monkeypatch.setattr(training, "batch_of_step", data)
        recipe = dataclasses.replace(QUICK, **change)
        cpu = torch.device("cpu")
        return train_tiny(config, tokenizer, recipe, tmp_path / folder, device=cpu, save_every=every, log_every=1)

    whole = go("whole")
    for step in (1, 3):  # stopped in each stage
        with pytest.raises(KeyboardInterrupt):
            go("part", step)
    with pytest.raises(KeyboardInterrupt):
        go("part", 5, every=4)  # step 5 is logged and lost
    part = go("part")
    for (name, a), b in zip(whole.module.named_parameters(), part.module.parameters(), strict=True):
        assert torch.equal(a, b), name
    lines = [json.loads(line) for line in (tmp_path / "part" / "milestones.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5, 6] and 0 <= lines[-1]["above_below"] <= 1
    with pytest.raises(ConfigError, match=r"another recipe: mention_weight 0\.3 instead of 0\.0, seed 0 instead of 1"):
        go("part", seed=1, mention_weight=0.0)
    with pytest.raises(ConfigError, match="steps 6 instead of 9"):  # its rate has fallen
        go("part", steps=9)
    for name in ("metrics.jsonl", "milestones.jsonl"):
        runs = [(tmp_path / folder / name).read_text().splitlines() for folder in ("whole", "part")]
        assert [_timeless(line) for line in runs[0]] == [_timeless(line) for line in runs[1]]
    saved = export_tiny(part, config, TOKENIZER_FILE, tmp_path / "part")
    about = json.loads((saved / "training.json").read_text())
    assert about["recipe"]["seed"] == 0 and about["seconds"] > 0 and about["milestone"] == lines[-1]
    vlm = load_pretrained(saved, device="cpu", dtype="float32")
    assert not any("head" in name for name, _ in vlm.model.named_parameters() if "lm_head" not in name)


def _timeless(line: str) -> dict[str, float]:
    return {name: value for name, value in json.loads(line).items() if name != "seconds"}


def test_every_weight_is_trained_and_matrices_are_bounded(tokenizer: Tokenizer, config: CogVLMConfig) -> None:
    model = CogVLMModel(config)
    prepare_for_training(model, 0)
    model.add_mixin("packed", PackedLanesMixin())
    objective = TinyObjective(model, QUICK)
    loss, parts = objective(batch_of_step(dataclasses.replace(QUICK, batch=6), tokenizer, 4), "full")
    loss.backward()
    assert {"vqa", "mention_form", "mention_box", "digit", "box"} <= set(parts)
    without = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    last = f".{config.num_layers - 1}."  # nothing is read from the image tokens after the last layer's keys
    assert all(last in name and "vision" in name for name in without), without
    decayed = [group for group in parameter_groups(objective) if group["weight_decay"]]
    assert decayed and all(group["muon"] for group in decayed)


def test_bf16_changes_the_loss_by_rounding_only(tokenizer: Tokenizer, config: CogVLMConfig) -> None:
    model = CogVLMModel(config)
    prepare_for_training(model, 0)
    model.add_mixin("packed", PackedLanesMixin())
    batch = batch_of_step(QUICK, tokenizer, 4)
    losses = [
        float(
            TinyObjective(model, dataclasses.replace(QUICK, bf16=bf16, dense_weight=0, mention_weight=0))(
                batch, "full"
            )[0]
        )
        for bf16 in (False, True)
    ]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_milestones_tell_right_from_wrong(tokenizer: Tokenizer) -> None:
    vlm = load_pretrained("cogvlm-tiny", device="cpu", dtype="float32")
    vlm.model.add_mixin("packed", PackedLanesMixin())
    right = share_right(vlm.model, tokenizer, count=12, batch=6)
    assert set(right) == {*questions.VQA_KINDS, "caption", "rec", "reg"}
    assert right["form"] > 0.8 and right["count"] > 0.8 and right["reg"] > 0.6
    with torch.no_grad():
        vlm.model.get_mixin("eva").vit_model.transformer.position_embeddings.weight.zero_()
    assert share_right(vlm.model, tokenizer, count=12, batch=6)["reg"] < right["reg"]
