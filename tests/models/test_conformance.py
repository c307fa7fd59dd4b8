"""What every model of the zoo must do, over the tiny models of miniatures.py.

A new model joins by one entry there; a test below fails while a registered model class has none.
"""

from __future__ import annotations

import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mixins.base import ZooModel
from sat_models.models.families import model_class, model_names
from sat_models.processing.pixels import planned_pixels

sys.path.insert(0, str(Path(__file__).parent))
from miniatures import MINIATURES, PIXELS, Given, Miniature

WITH_ORIGINALS = tuple(mini for mini in MINIATURES if mini.is_golden)
"""The parity of the others is tested against transformers (test_llava.py, test_minigpt4.py)."""
WITHOUT_A_MINIATURE = {"LLaMAModel": "the base of most others", "ChatGLMModel": "the base of VisualGLM"}


@pytest.fixture(scope="module", params=MINIATURES, ids=str)
def mini(request: pytest.FixtureRequest) -> Miniature:
    """Each miniature in turn."""
    return request.param


@pytest.fixture(scope="module")
def model(mini: Miniature) -> ZooModel:
    """For tests that leave it as it is."""
    return mini.build().eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (1, 300_000), (3000, 7)], ids=str)
def test_a_strip_costs_what_its_pixels_cost(mini: Miniature, size: tuple[int, int]) -> None:
    """However a family pads, cuts or shrinks: nothing grows with the longer side squared."""
    form, image = mini.config.images, Image.new("RGB", size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = form.plan(size)
    tiles = planned_pixels(image, plan, form.processing)
    assert tiles.shape[0] == plan.num_tiles and torch.isfinite(tiles).all()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200, "megabytes"


def stacked(*rows: Given) -> Given:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def loss_of(logits: Tensor) -> Tensor:
    targets = torch.arange(logits.shape[0] * logits.shape[1]) % logits.shape[2]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)


def test_every_model_class_has_a_miniature() -> None:
    covered = {name for mini in MINIATURES for name in mini.classes}
    talking = {name for name in model_names() if model_class(name).config_class.TASK == "dialogue"}
    assert covered | set(WITHOUT_A_MINIATURE) == talking, "those that draw have golden tests of their own"
    assert len(covered) == sum(len(mini.classes) for mini in MINIATURES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_finite(mini: Miniature, dtype: torch.dtype) -> None:
    model = mini.build(dtype).eval()
    given = mini.with_image()
    for name in PIXELS.keys() & given.keys():
        given[name] = given[name].to(dtype)
    for inputs in (given, mini.text_only()):
        with torch.inference_mode():
            logits = model(**inputs)[0]
        assert logits.dtype == dtype
        assert logits.shape == (*inputs["input_ids"].shape, model.config.vocab_size)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("mini", WITH_ORIGINALS, ids=str)
def test_names_and_shapes_are_those_of_the_checkpoint(mini: Miniature) -> None:
    model = mini.build()
    file = mini.folder / "1" / "mp_rank_00_model_states.pt"
    stored = torch.load(file, map_location="cpu", weights_only=True)["module"]
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in stored.items()
    }


def test_mixins_have_the_names_and_the_order_of_the_sketch(mini: Miniature, model: ZooModel) -> None:
    assert tuple(model.mixins) == mini.mixins


def test_every_class_name_of_a_checkpoint_loads(mini: Miniature, model: ZooModel) -> None:
    with torch.inference_mode():
        expected = model(**mini.with_image())[0]
    for name in mini.classes:
        other = mini.build(model_class=name).eval()
        assert type(other).__name__ == name
        with torch.inference_mode():
            assert torch.equal(other(**mini.with_image())[0], expected)


def test_every_trainable_parameter_gets_a_gradient(mini: Miniature) -> None:
    model = mini.build().train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if mini.frozen and name.startswith(mini.frozen)}
    loss_of(model(**mini.with_image())[0]).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in trained.items() if grad is None or not grad.any()] == []
    assert all(torch.isfinite(grad).all() for grad in trained.values())


def checkpointed_parts(model: ZooModel) -> list[nn.Module]:
    """Every stack of layers that can recompute its activations: the language model's and the towers'."""
    return [module for module in model.modules() if hasattr(module, "checkpoint_activations")]


@contextmanager
def counted_layers(model: ZooModel) -> Iterator[list[int]]:
    """Counts how often the language model's first layer runs."""
    count = [0]

    def count_one(*args: object) -> None:
        count[0] += 1

    hook = model.transformer.layers[0].input_layernorm.register_forward_pre_hook(count_one)
    try:
        yield count
    finally:
        hook.remove()


def everything(name: str) -> bool:
    return True


def in_the_middle(name: str) -> bool:
    """Visual experts and a layer: what goes into the first layer needs no gradient then."""
    return ".vision_" in name or name.startswith("transformer.layers.1.")


@pytest.mark.parametrize(("trains", "inputs"), [(everything, "image"), (everything, "text"), (in_the_middle, "image")])
def test_recomputing_activations_changes_nothing(mini: Miniature, trains: Callable[[str], bool], inputs: str) -> None:
    model = mini.build().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))
    given = mini.with_image() if inputs == "image" else mini.text_only()
    assert len(checkpointed_parts(model)) == mini.stacks

    def run() -> tuple[Tensor, dict[str, Tensor | None], int]:
        model.zero_grad()
        with counted_layers(model) as count:
            logits = model(**given)[0]
            loss_of(logits).backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters()}, count[0]

    logits, gradients, once = run()
    for part in checkpointed_parts(model):
        part.checkpoint_activations = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, recomputed, twice = run()
    assert (once, twice) == (1, 2), "the layers were not recomputed, so this tested nothing"
    assert torch.equal(logits, again)
    for name, gradient in gradients.items():
        assert (gradient is None) == (recomputed[name] is None), name
        assert gradient is None or torch.equal(gradient, recomputed[name]), name


def test_text_runs_no_tower(mini: Miniature, model: ZooModel) -> None:
    runs: list[str] = []
    hooks = [
        model.get_submodule(tower).register_forward_hook(lambda *args, tower=tower: runs.append(tower))
        for tower in mini.towers
    ]
    try:
        with torch.inference_mode():
            model(**mini.text_only())
            assert runs == []
            nothing = torch.zeros(1, 7, dtype=torch.long)
            model(**mini.text_only(), vision_expert_mask=nothing, image_embed_mask=nothing, vision_image=None)
            assert runs == []
            model(**mini.with_image())
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(runs) == sorted(mini.towers)


def test_text_is_the_same_with_and_without_empty_masks(mini: Miniature, model: ZooModel) -> None:
    nothing = torch.zeros(1, 7, dtype=torch.long)
    with torch.inference_mode():
        plain = model(**mini.text_only())[0]
        assert torch.equal(model(**mini.text_only(), vision_expert_mask=nothing, image_embed_mask=nothing)[0], plain)


def test_an_explicit_mask_is_the_same_as_none(mini: Miniature, model: ZooModel) -> None:
    given = mini.with_image()
    with torch.inference_mode():
        found = model(**given, attention_mask=mini.mask_of(given))[0]
        torch.testing.assert_close(found, model(**given)[0], atol=2e-5, rtol=0)


def test_padding_that_sees_nothing_harms_nobody(mini: Miniature, model: ZooModel) -> None:
    """Left-padded rows: a pad may look nowhere, and nobody looks at it."""
    given, pads = mini.with_image(), 3
    padded = {name: value if name in PIXELS else nn.functional.pad(value, (pads, 0)) for name, value in given.items()}
    mask = nn.functional.pad(mini.mask_of(given), (pads, 0, pads, 0))
    with torch.inference_mode():
        found = model(**padded, attention_mask=mask)[0]
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[:, pads:], model(**given)[0], atol=2e-5, rtol=0)


def test_the_picture_matters(mini: Miniature, model: ZooModel) -> None:
    given = mini.with_image()
    other = {name: value.flip(-1) if name in PIXELS else value for name, value in given.items()}
    with torch.inference_mode():
        assert (model(**other)[0] - model(**given)[0]).abs().max() > 1e-3


def test_what_comes_after_the_picture_does_not_change_it(mini: Miniature, model: ZooModel) -> None:
    given = mini.with_image()
    stop = int(given["image_embed_mask"][0].nonzero().max()) + 1
    short = {name: value if name in PIXELS else value[..., :stop] for name, value in given.items()}
    with torch.inference_mode():
        difference = (model(**short)[0] - model(**given)[0][:, :stop]).abs().max()
    if mini.config.sequence_form.prefix_attention:
        assert difference > 1e-3, "the context should see itself both ways"
    else:
        assert difference <= 2e-5


@pytest.mark.parametrize("kind", ["image and text", "image only", "text only"])
def test_a_batch_of_two_equals_each_alone(mini: Miniature, model: ZooModel, kind: str) -> None:
    first = {"image and text": mini.with_image(), "image only": mini.image_only(), "text only": mini.text_only()}[kind]
    second = {name: value.flip(-1) if name in PIXELS else value.clone() for name, value in first.items()}
    slots = first.get("image_embed_mask", torch.zeros(1, 1))[0].nonzero()
    text = slice(int(slots.max()) + 1 if len(slots) else 1, -len(mini.config.sequence_form.suffix) or None)
    second["input_ids"][:, text] = second["input_ids"][:, text].flip(1)
    with torch.inference_mode():
        both = model(**stacked(first, second))[0]
        for row, alone in enumerate((first, second)):
            torch.testing.assert_close(both[row], model(**alone)[0][0], atol=2e-5, rtol=0)
        if kind != "text only":
            assert (both[0] - both[1]).abs().max() > 1e-3


def test_rows_with_and_without_a_picture(mini: Miniature, model: ZooModel) -> None:
    """Mixed rows work, or are refused in words (CogAgent's cross-attention has nothing to read in the text row)."""
    image = mini.with_image()
    tokens = image["input_ids"].shape[1]
    text = mini.text_only(tokens)
    text |= {name: torch.zeros_like(text["input_ids"]) for name in image if name.endswith("_mask")}
    both = {name: value if name in PIXELS else torch.cat((value, text[name])) for name, value in image.items()}
    with torch.inference_mode():
        if "cross_image" in image:
            with pytest.raises(ValueError, match="Run rows with and without pictures apart"):
                model(**both)
            return
        logits = model(**both)[0]
        torch.testing.assert_close(logits[0], model(**image)[0][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(logits[1], model(**text)[0][0], atol=2e-5, rtol=0)


def test_the_picture_must_fit_its_slots(mini: Miniature, model: ZooModel) -> None:
    given = mini.with_image()
    given["image_embed_mask"] = given["image_embed_mask"].clone()
    given["image_embed_mask"][0, -1] = 1
    slots = int(given["image_embed_mask"].sum())
    with pytest.raises(ValueError, match=f"image_embed_mask marks {slots} positions, but 1 image"):
        model(**given)
    del given["image_embed_mask"]
    with pytest.raises(ValueError, match="image_embed_mask"):
        model(**given)


def test_slots_without_a_picture_are_refused(mini: Miniature, model: ZooModel) -> None:
    given = {name: value for name, value in mini.with_image().items() if name not in PIXELS}
    slots = int(given["image_embed_mask"].sum())
    with pytest.raises(ValueError, match=f"image_embed_mask marks {slots} positions, but no vision_image was given"):
        model(**given)
    given["image_embed_mask"] = torch.zeros_like(given["image_embed_mask"])
    assert model(**given)[0].isfinite().all()


def test_a_picture_of_another_size_is_refused(mini: Miniature, model: ZooModel) -> None:
    given = mini.with_image()
    given["vision_image"] = given["vision_image"][..., :-14]
    with pytest.raises(ValueError, match="the vision tower takes pictures"):
        model(**given)
