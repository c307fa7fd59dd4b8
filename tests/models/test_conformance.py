"""What every model of the zoo must do, over the miniatures of tests/golden.

A new model joins by one line in MINIATURES; a test below fails while a registered model class has none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.io import load_weights
from sat_models.checkpoint.layout import find_checkpoint
from sat_models.models.build import MODEL_CLASSES, build_model, make_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BY_TOKEN = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
PIXELS = {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}


@dataclass(frozen=True)
class Miniature:
    """A folder of tests/golden, and what is particular to its model.

    Attributes:
        mixins: names in order; they and their order are the checkpoint format.
        towers: modules that must not run without a picture.
        classes: every `model_class` that loads these weights.
        frozen: prefixes of parameters that no forward reads, which the class itself takes out of training.
    """

    folder: str
    mixins: tuple[str, ...]
    towers: tuple[str, ...]
    classes: tuple[str, ...]
    frozen: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.folder


_COGVLM_MIXINS = ("lm", "eva", "mlp", "rotary")
_ENCODER = "mixins.encoder.vit.model"
MINIATURES = (
    Miniature(
        "cogvlm-mini", _COGVLM_MIXINS, ("mixins.eva.vit_model",),
        ("CogVLMModel", "FineTuneTrainCogVLMModel", "FineTuneTestCogVLMModel"),
    ),
    Miniature(
        "cogagent-mini", (*_COGVLM_MIXINS, "encoder"), ("mixins.eva.vit_model", "mixins.encoder.vit"),
        ("CogAgentModel", "FineTuneTrainCogAgentModel", "FineTuneTestCogAgentModel"),
        frozen=(f"{_ENCODER}.blocks.2.", f"{_ENCODER}.norm.", f"{_ENCODER}.head."),
    ),
)  # fmt: skip
WITHOUT_A_MINIATURE = {"LLaMAModel": "the base that the others extend"}


@pytest.fixture(scope="module", params=MINIATURES, ids=str)
def mini(request: pytest.FixtureRequest) -> Miniature:
    """Each miniature in turn."""
    return request.param


def build(mini: Miniature, dtype: torch.dtype = torch.float32, model_class: str | None = None) -> ZooModel:
    """The golden weights in a model as its class makes it: in training mode, with its own choice of what trains."""
    runtime.init_model_parallel(1)
    checkpoint = find_checkpoint(GOLDEN / mini.folder)
    config = {**checkpoint.config, "model_class": model_class or checkpoint.config["model_class"]}
    model = build_model(make_config(config), dtype=dtype)
    load_weights(model, checkpoint, device="cpu")
    return model


@pytest.fixture(scope="module")
def model(mini: Miniature) -> ZooModel:
    """For tests that leave it as it is."""
    return build(mini).eval().requires_grad_(False)


def reference(mini: Miniature) -> dict[str, Tensor]:
    return load_file(GOLDEN / mini.folder / "reference.safetensors")


def with_image(mini: Miniature, case: str = "case0") -> dict[str, Tensor]:
    """A golden case as arguments of forward."""
    golden = reference(mini)
    given = {name: golden[f"{case}.{name}"][None] for name in BY_TOKEN}
    return given | {name: golden[key] for name, key in PIXELS.items() if key in golden}


def text_only(length: int = 7) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 3 + length)[None], "position_ids": torch.arange(length)[None]}


def image_only(mini: Miniature) -> dict[str, Tensor]:
    """BOS, the picture, and nothing after it."""
    given = with_image(mini)
    stop = int(given["image_embed_mask"][0].nonzero().max()) + 1
    return {name: value[:, :stop] if name in BY_TOKEN else value for name, value in given.items()}


def stacked(*rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def loss_of(logits: Tensor) -> Tensor:
    targets = torch.arange(logits.shape[0] * logits.shape[1]) % logits.shape[2]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)


def test_every_model_class_has_a_miniature() -> None:
    covered = {name for mini in MINIATURES for name in mini.classes}
    assert covered | set(WITHOUT_A_MINIATURE) == set(MODEL_CLASSES)
    assert len(covered) == sum(len(mini.classes) for mini in MINIATURES)


def test_logits_are_the_originals(mini: Miniature, model: ZooModel) -> None:
    golden = reference(mini)
    for case in json.loads((GOLDEN / mini.folder / "reference.json").read_text())["cases"]:
        with torch.inference_mode():
            logits = model(**with_image(mini, case["key"]))[0]
        torch.testing.assert_close(logits[0], golden[f"{case['key']}.logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_finite(mini: Miniature, dtype: torch.dtype) -> None:
    model = build(mini, dtype).eval()
    given = with_image(mini)
    for name in PIXELS.keys() & given.keys():
        given[name] = given[name].to(dtype)
    for inputs in (given, text_only()):
        with torch.inference_mode():
            logits = model(**inputs)[0]
        assert logits.dtype == dtype
        assert logits.shape == (*inputs["input_ids"].shape, model.config.vocab_size)
        assert torch.isfinite(logits).all()


def test_names_and_shapes_are_those_of_the_checkpoint(mini: Miniature, model: ZooModel) -> None:
    stored = torch.load(
        GOLDEN / mini.folder / "1" / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True
    )["module"]
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in stored.items()
    }


def test_mixins_have_the_names_and_the_order_of_the_sketch(mini: Miniature, model: ZooModel) -> None:
    assert tuple(model.mixins) == mini.mixins


def test_every_class_name_of_a_checkpoint_loads(mini: Miniature, model: ZooModel) -> None:
    with torch.inference_mode():
        expected = model(**with_image(mini))[0]
    for name in mini.classes:
        other = build(mini, model_class=name).eval()
        assert type(other).__name__ == name
        with torch.inference_mode():
            assert torch.equal(other(**with_image(mini))[0], expected)


def test_every_trainable_parameter_gets_a_gradient(mini: Miniature) -> None:
    model = build(mini).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if mini.frozen and name.startswith(mini.frozen)}
    loss_of(model(**with_image(mini))[0]).backward()
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


def vision_experts(name: str) -> bool:
    return ".vision_" in name


@pytest.mark.parametrize(("trains", "inputs"), [(everything, "image"), (everything, "text"), (vision_experts, "image")])
def test_recomputing_activations_changes_nothing(mini: Miniature, trains: Callable[[str], bool], inputs: str) -> None:
    model = build(mini).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))
    given = with_image(mini) if inputs == "image" else text_only()
    assert len(checkpointed_parts(model)) == 1 + len(mini.towers)

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
            model(**text_only())
            assert runs == []
            nothing = torch.zeros(1, 7, dtype=torch.long)
            model(**text_only(), vision_expert_mask=nothing, image_embed_mask=nothing, vision_image=None)
            assert runs == []
            model(**with_image(mini))
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(runs) == sorted(mini.towers)


def test_text_is_the_same_with_and_without_empty_masks(model: ZooModel) -> None:
    nothing = torch.zeros(1, 7, dtype=torch.long)
    with torch.inference_mode():
        plain = model(**text_only())[0]
        assert torch.equal(model(**text_only(), vision_expert_mask=nothing, image_embed_mask=nothing)[0], plain)


def test_an_explicit_causal_mask_is_the_same_as_none(mini: Miniature, model: ZooModel) -> None:
    given = with_image(mini)
    tokens = given["input_ids"].shape[1]
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.long).tril()
    with torch.inference_mode():
        found = model(**given, attention_mask=mask)[0]
        torch.testing.assert_close(found, model(**given)[0], atol=2e-5, rtol=0)


def test_padding_that_sees_nothing_harms_nobody(mini: Miniature, model: ZooModel) -> None:
    """Left-padded rows: a pad may look nowhere, and nobody looks at it."""
    given, pads = with_image(mini), 3
    tokens = given["input_ids"].shape[1]
    padded = {name: nn.functional.pad(value, (pads, 0)) if name in BY_TOKEN else value for name, value in given.items()}
    mask = nn.functional.pad(torch.ones(tokens, tokens, dtype=torch.bool).tril(), (pads, 0, pads, 0))[None, None]
    with torch.inference_mode():
        found = model(**padded, attention_mask=mask)[0]
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[:, pads:], model(**given)[0], atol=2e-5, rtol=0)


def test_the_picture_matters_and_comes_before_the_text(mini: Miniature, model: ZooModel) -> None:
    given = with_image(mini)
    other = {name: value.flip(-1) if name in PIXELS else value for name, value in given.items()}
    short = image_only(mini)
    stop = short["input_ids"].shape[1]
    with torch.inference_mode():
        logits = model(**given)[0]
        assert (model(**other)[0] - logits).abs().max() > 1e-3
        torch.testing.assert_close(model(**short)[0], logits[:, :stop], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["image and text", "image only", "text only"])
def test_a_batch_of_two_equals_each_alone(mini: Miniature, model: ZooModel, kind: str) -> None:
    first = {"image and text": with_image(mini), "image only": image_only(mini), "text only": text_only()}[kind]
    second = {name: value.flip(-1) if name in PIXELS else value.clone() for name, value in first.items()}
    text = second["position_ids"] > 3
    second["input_ids"][text] = second["input_ids"][text].flip(0)
    with torch.inference_mode():
        both = model(**stacked(first, second))[0]
        for row, alone in enumerate((first, second)):
            torch.testing.assert_close(both[row], model(**alone)[0][0], atol=2e-5, rtol=0)
        if kind != "text only":
            assert (both[0] - both[1]).abs().max() > 1e-3


def test_rows_with_and_without_a_picture(mini: Miniature, model: ZooModel) -> None:
    """Mixed rows work, or are refused in words (CogAgent's cross-attention has nothing to read in the text row)."""
    picture = with_image(mini)
    tokens = picture["input_ids"].shape[1]
    text = text_only(tokens) | {name: torch.zeros(1, tokens, dtype=torch.long) for name in BY_TOKEN[2:]}
    both = {name: torch.cat((picture[name], text[name])) for name in BY_TOKEN}
    both |= {name: picture[name] for name in PIXELS if name in picture}
    with torch.inference_mode():
        if "cross_image" in picture:
            with pytest.raises(ValueError, match="Run rows with and without pictures apart"):
                model(**both)
            return
        logits = model(**both)[0]
        torch.testing.assert_close(logits[0], model(**picture)[0][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(logits[1], model(**text)[0][0], atol=2e-5, rtol=0)


def test_the_picture_must_fit_its_slots(mini: Miniature, model: ZooModel) -> None:
    given = with_image(mini)
    given["image_embed_mask"] = given["image_embed_mask"].clone()
    given["image_embed_mask"][0, -1] = 1
    slots = int(given["image_embed_mask"].sum())
    with pytest.raises(ValueError, match=f"image_embed_mask marks {slots} positions, but 1 image"):
        model(**given)
    del given["image_embed_mask"]
    with pytest.raises(ValueError, match="image_embed_mask"):
        model(**given)


def test_a_picture_of_another_size_is_refused(mini: Miniature, model: ZooModel) -> None:
    given = with_image(mini)
    given["vision_image"] = given["vision_image"][..., :-14]
    with pytest.raises(ValueError, match="the vision tower takes pictures"):
        model(**given)
