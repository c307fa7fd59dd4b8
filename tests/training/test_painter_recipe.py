"""The recipe of the bundled painter: its data, its losses, exact resume, milestones, and what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from planned_painter import SIZES, small_config, small_model

from sat_models.errors import ConfigError
from sat_models.processing.image_codec import to_images
from sat_models.processing.plans import read_plan
from sat_models.shapes import painter_training
from sat_models.shapes.looking import look, scores_of
from sat_models.shapes.painter_recipe import (
    PainterBatch,
    PainterRecipe,
    batch_of_step,
    painter_config,
    pixels_of,
    plan_of,
)
from sat_models.shapes.painter_training import (
    PainterObjective,
    export_painter,
    parameter_groups,
    share_right,
    train_painter,
)
from sat_models.shapes.prompts import sample_scene_of, sample_wish
from sat_models.zoo import load_pretrained

QUICK = PainterRecipe(steps=5, codec_steps=2, decay_steps=2, batch=2)


def test_a_plan_says_what_is_drawn() -> None:
    rng, config = random.Random(0), small_config()
    for kind in ("one", "places", "three"):
        scene = sample_scene_of(sample_wish(rng, kind=kind), rng)
        ground, things = read_plan(config, plan_of(config, scene))
        assert [(thing.color, thing.form) for thing in things] == [(o.color, o.form) for o in scene.objects]
        assert [(thing.left, thing.top, thing.right) for thing in things] == [o.box[:3] for o in scene.objects]
        assert ground in config.backgrounds


def test_a_batch_is_the_steps_own_and_holds_prompt_plan_and_image() -> None:
    config = small_config()
    codec, codes = (batch_of_step(QUICK, config, step) for step in (0, 3))
    assert torch.equal(codes.told, batch_of_step(QUICK, config, 3).told) and not torch.equal(codec.told, codes.told)
    assert codes.told.shape == (2, config.image_start + 1 + config.plan_length)
    assert codes.pixels.shape == (2, 3, 96, 96) and -1 <= float(codes.pixels.min()) < float(codes.pixels.max()) <= 1
    assert all(len(look(image)) == 3 for image in to_images(codec.pixels)), "the codec learns from three at a time"
    assert (codes.told[:, config.image_start] == config.start).all()


def test_the_rate_falls_at_the_end_of_each_stage() -> None:
    recipe = PainterRecipe()
    assert [recipe.stage(step) for step in (0, recipe.codec_steps - 1, recipe.codec_steps)] == ["codec"] * 2 + ["codes"]
    first = [recipe.learning_rate_at(step) for step in (0, 100, recipe.codec_steps - 1)]
    assert first[0] < first[1] > 20 * first[2]
    second = [recipe.learning_rate_at(step) for step in (recipe.codec_steps, 3000, 4000, recipe.steps - 1)]
    assert second[0] < second[1] == second[2] > 20 * second[3]
    assert recipe.rate_of({"muon": True}, 3000) == recipe.muon_rate * second[1]


def test_every_weight_learns_in_one_of_the_stages_and_matrices_are_bounded() -> None:
    objective = PainterObjective(small_model(), dataclasses.replace(QUICK, batch=4))
    seen: set[str] = set()
    for step, parts in ((0, {"psnr"}), (3, {"plan_names", "plan_places", "codes", "shape_codes", "shape_codes_right"})):
        loss, named = objective(batch_of_step(objective.recipe, objective.model.config, step), QUICK.stage(step))
        assert set(named) == parts and loss.requires_grad
        objective.zero_grad()
        loss.backward()
        seen |= {name for name, parameter in objective.named_parameters() if parameter.grad is not None}
    assert seen == {name for name, _ in objective.named_parameters()}
    groups = {(group["stage"], group["muon"]): group for group in parameter_groups(objective)}
    for stage, own, other in (("codec", 0, 3), ("codes", 3, 0)):
        assert groups[stage, True]["weight_decay"] > 0 == groups[stage, False]["weight_decay"]
        assert all(parameter.ndim == 2 for parameter in groups[stage, True]["params"])
        assert QUICK.rate_of(groups[stage, True], own) > 0 == QUICK.rate_of(groups[stage, True], other)


def test_bf16_changes_the_losses_by_rounding_only() -> None:
    model = small_model()
    batch = batch_of_step(QUICK, model.config, 3)
    for stage in ("codec", "codes"):
        losses = [
            float(PainterObjective(model, dataclasses.replace(QUICK, bf16=bf16))(batch, stage)[0].detach())
            for bf16 in (False, True)
        ]
        assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.03)


def test_milestones_tell_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a codec that gives the image of the prompt, all is right; of random weights nothing is."""
    model = small_model().eval()
    assert share_right(model, count=5)["all"] < 0.5
    real = [
        sample_wish(random.Random(f"milestone/painter/0/{n}"), kind=kind)
        for n, kind in enumerate(painter_training.KINDS)
    ]
    images = to_images(pixels_of([sample_scene_of(wish, random.Random(0)) for wish in real]))
    assert all(scores_of(wish, image)["right"] for wish, image in zip(real, images, strict=True))
    monkeypatch.setattr(painter_training, "images_of", lambda model, codes: images)
    assert share_right(model, count=5) == dict.fromkeys((*painter_training.KINDS, "all"), 1.0)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = painter_config(**SIZES), torch.device("cpu")
    codecs: list[torch.Tensor] = []

    def milestone(model: Any) -> dict[str, float]:
        codecs.append(torch.cat([p.detach().flatten().clone() for p in model.get_mixin("codec").parameters()]))
        return share_right(model, count=2)

    monkeypatch.setattr(painter_training, "share_right", milestone)

    def go(folder: str, stop_at: int | None = None, every: int = 1, **change: Any) -> Any:
        def data(recipe: PainterRecipe, config: Any, step: int) -> PainterBatch:
            if step == stop_at:
                raise KeyboardInterrupt
            return batch_of_step(recipe, config, step)

        monkeypatch.setattr(painter_training, "batch_of_step", data)
        recipe = dataclasses.replace(QUICK, **change)
        return train_painter(config, recipe, tmp_path / folder, device=cpu, save_every=every, log_every=1)

    whole = go("whole")
    assert len(codecs) == 3 and torch.equal(codecs[0], codecs[2]), "what the codes mean stays as it is"
    for step in (1, 3):  # stopped in each stage
        with pytest.raises(KeyboardInterrupt):
            go("part", step)
    with pytest.raises(KeyboardInterrupt):
        go("part", 4, every=3)  # step 4 is logged and lost
    part = go("part")
    for (name, a), b in zip(whole.module.named_parameters(), part.module.parameters(), strict=True):
        assert torch.equal(a, b), name
    for file in ("metrics.jsonl", "milestones.jsonl"):
        runs = [(tmp_path / folder / file).read_text().splitlines() for folder in ("whole", "part")]
        assert [_timeless(line) for line in runs[0]] == [_timeless(line) for line in runs[1]]
    with pytest.raises(ConfigError, match=r"another recipe: plan_weight 4\.0 instead of 1\.0"):
        go("part", plan_weight=1.0)
    saved = export_painter(part, config, tmp_path / "part")
    about = json.loads((saved / "training.json").read_text())
    assert about["recipe"]["steps"] == 5 and about["milestone"]["step"] == 5 and about["seconds"] > 0
    painter = load_pretrained(saved, device="cpu", dtype="float32", task="drawing")
    assert painter.draw("a red circle", seed=0).size == (96, 96)


def _timeless(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name != "seconds"}
