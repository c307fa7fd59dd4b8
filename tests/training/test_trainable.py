"""What trains: groups that cover every model, the documented table, and the checks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.base import ZooModel
from mixins.lora import lora_layers, lora_state_dict
from sat_models import runtime
from sat_models.config import read_json
from sat_models.errors import ConfigError, UnknownNameError
from sat_models.models.build import build_model, make_config
from sat_models.registry import config_path
from sat_models.training.groups import group_of, named_groups, select_parameters
from sat_models.training.trainable import (
    GradientWatch,
    TrainablePlan,
    apply_plan,
    parameter_groups,
    plan_of,
    trainable_table,
)
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VISION = {"vit", "projector", "vision_expert"}
COGVLM = {*VISION, "language", "embeddings", "head"}


def _model(name: str = "cogvlm-mini") -> ZooModel:
    return load_pretrained(GOLDEN / name, device="cpu", dtype="float32").model


def _meta(name: str) -> ZooModel:
    runtime.init_model_parallel(1)
    return build_model(make_config(read_json(config_path(name))))


def _loss(model: ZooModel, *, image: bool = True) -> Tensor:
    data = load_file(GOLDEN / "cogvlm-mini" / "reference.safetensors")
    inputs = {name: data[f"train0.{name}"] for name in ("input_ids", "position_ids")}
    if image:
        inputs |= {name: data[f"train0.{name}"] for name in ("vision_expert_mask", "image_embed_mask")}
        inputs["vision_image"] = data["pixels.vision"]
    logits = model(**inputs)[0]
    return torch.nn.functional.cross_entropy(logits[0, :-1], data["train0.labels"][0, 1:])


def _trained_groups(model: ZooModel) -> set[str]:
    return {group_of(name) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cogvlm-base-490", COGVLM), ("cogagent-chat", {*COGVLM, "encoder", "cross_attention"})],
)
def test_every_parameter_of_the_released_models_is_in_one_group(name: str, expected: set[str]) -> None:
    model = _meta(name)
    counts = Counter(group_of(name) for name, _ in model.named_parameters())
    assert set(counts) == expected
    total = {"cogvlm-base-490": "17,639,685,376", "cogagent-chat": "18,291,033,280"}[name]
    assert trainable_table(model).splitlines()[-1].split()[:2] == ["all", total]


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(
        KeyError, match=r"'mixins.new.weight' belongs to 0 groups \[\]; see `groups` of its family's entry"
    ):
        group_of("mixins.new.weight")


def test_the_documented_table() -> None:
    model = _model()
    everything = [name for name, _ in model.named_parameters()]
    assert apply_plan(model, plan_of("all", -1)) == everything

    model = _model()
    trains = apply_plan(model, plan_of("expert", -1))
    assert trains == [n for n in everything if ".vision_" in n and n.split(".")[1] in ("mlp", "rotary")]
    assert len(trains) == 15

    model = _model()
    trains = apply_plan(model, plan_of("expert", 4))
    assert trains == [n for n in dict(model.named_parameters()) if n in lora_state_dict(model)]
    assert len(lora_layers(model)) == 15 and _trained_groups(model) == {"vision_expert"}

    model = _model()
    apply_plan(model, plan_of("all", 4))
    assert _trained_groups(model) == {*VISION, "language"}
    assert len(lora_layers(model)) == 3 * (5 + 5) + 2 * 4 + 4
    assert all(layer.settings.rank == 4 and layer.scale == 0.25 for layer in lora_layers(model).values())


def test_cogagent_trains_its_cross_attention_but_never_what_no_forward_reads() -> None:
    model = _model("cogagent-mini")
    apply_plan(model, plan_of("all", 2))
    assert "cross_attention" in _trained_groups(model) and "encoder" not in _trained_groups(model)
    model = _model("cogagent-mini")
    trains = apply_plan(model, plan_of("all", -1))
    tower = [name for name, _ in model.named_parameters() if name.startswith("mixins.encoder.vit.model.")]
    unread = [name for name in tower if name not in trains]
    assert unread and all(".head." in n or ".norm." in n or ".blocks." in n for n in unread)


def test_groups_patterns_layers_and_prefix_together() -> None:
    model = _model()
    plan = TrainablePlan(
        full=("projector", "transformer.layers.2.input_layernorm.weight"),
        lora=("vision_expert", "transformer.layers.*.attention.dense"),
        rank=2,
        layer_range=(0, 2),
        prefix_length=3,
    )
    trains = apply_plan(model, plan)
    assert {group_of(name) for name in trains} == {"projector", "language", "vision_expert", "prefix"}
    assert not any(".1." in name for name in lora_layers(model))
    assert sum("ptuning" in name for name in trains) == 3
    watch = GradientWatch(model)
    _loss(model).backward()
    watch.check()


def test_a_model_without_vision() -> None:
    runtime.init_model_parallel(1)
    sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "inner_hidden_size": 24, "vocab_size": 32}
    model = build_model(make_config({"model_class": "LLaMAModel", "max_sequence_length": 8, **sizes}), device="cpu")
    with pytest.raises(ConfigError, match=r"no parameters of the group 'vision_expert'; it has: .*language"):
        apply_plan(model, plan_of("expert", -1))
    apply_plan(model, plan_of("all", 2))
    assert _trained_groups(model) == {"language"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (TrainablePlan(full=("encoder",)), "no parameters of the group 'encoder'; it has: head"),
        (
            TrainablePlan(full=("vision_exprt",)),
            "'vision_exprt' fits no parameter of this model. Did you mean vision_expert",
        ),
        (
            TrainablePlan(full=("mixins.mpl.vision_*",)),
            "fits no parameter of this model. Did you mean mixins.mlp.vision_",
        ),
        (
            TrainablePlan(lora=("head", "embeddings")),
            "no parameters of the group 'embeddings'.*LoRA adapts linears only",
        ),
        (TrainablePlan(lora=("mixins.lm.lm_hed",)), "fits no linear; did you mean mixins.lm.lm_head"),
        (TrainablePlan(lora=("vision_expert",), rank=0), "rank of LoRA must be a positive integer"),
        (TrainablePlan(lora=("vit",), full=("vit",)), "in full and by LoRA, such as mixins.eva.vit_model"),
        (TrainablePlan(), "nothing would train; name groups"),
    ],
)
def test_plans_that_cannot_be(plan: TrainablePlan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_plan(_model(), plan)


def test_words_and_ranks_of_the_command_are_checked() -> None:
    with pytest.raises(ConfigError, match="TRAINABLE must be expert, attention or all, got 'experts'"):
        plan_of("experts", 8)
    for rank in (0, -2, 1.5):
        with pytest.raises(ConfigError, match="LORA_RANK must be a positive integer, or -1"):
            plan_of("all", rank)
    with pytest.raises(UnknownNameError, match=r"Unknown parameter group 'vitt'\. Did you mean vit\?"):
        plan_of("all", 8, rate_scales={"vitt": 0.1})
    with pytest.raises(ConfigError, match="scale of 'vit' must be positive, got 0"):
        plan_of("all", 8, rate_scales={"vit": 0})


def test_optimiser_groups_have_their_rates_and_vectors_do_not_decay() -> None:
    model = _model()
    apply_plan(model, plan_of("all", -1))
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.1, rate_scales={"vit": 0.1})
    assert {group["name"]: group["lr"] for group in groups} == {**dict.fromkeys(COGVLM, 1e-3), "vit": 1e-4}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    still = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        vector = "norm" in name or name.endswith((".bias", "boi", "eoi")) or name.endswith("word_embeddings.weight")
        assert (id(parameter) in still) == vector, name
    torch.optim.AdamW(groups)
    model = _model()
    apply_plan(model, plan_of("expert", -1))
    with pytest.raises(ConfigError, match="scale is given for vit, of which nothing trains"):
        parameter_groups(model, learning_rate=1e-3, rate_scales={"vit": 0.1})


def test_the_table_says_what_trains() -> None:
    model = _model()
    apply_plan(model, TrainablePlan(lora=("vision_expert",), rank=2, full=("head",)))
    lines = [line.split() for line in trainable_table(model).splitlines()]
    rows = {line[0]: line for line in lines}
    assert lines[0][:2] == ["group", "parameters"]
    assert list(rows)[1:] == [group for group in named_groups() if group in COGVLM] + ["all"]
    adapters = sum(value.numel() for value in lora_state_dict(model).values())
    assert rows["vision_expert"][-2:] == [f"{adapters:,}", "LoRA"]
    assert rows["head"][-3:] == [f"{488 * 64:,}", "in", "full"]
    assert rows["vit"][-2:] == ["0", "frozen"]
    total = sum(p.numel() for p in model.parameters())
    assert rows["all"][1] == f"{total:,}" and rows["all"][4] == f"{adapters + 488 * 64:,}"


def test_missing_gradients_are_named() -> None:
    model = _model()
    apply_plan(model, plan_of("all", -1))
    watch = GradientWatch(model)
    _loss(model).backward()
    watch.check()

    model = _model()
    apply_plan(model, plan_of("all", 2))
    watch = GradientWatch(model)
    _loss(model, image=False).backward()
    watch.check(had_images=False)
    with pytest.raises(ConfigError, match=r"parameters shall train, but got no gradient: mixins\.eva.* and \d+ more"):
        watch.check()


def test_selection_keeps_the_models_order() -> None:
    names = [name for name, _ in _model().named_parameters()]
    chosen = select_parameters(names, ["language", "head"])
    assert chosen == [name for name in names if group_of(name) in ("head", "language")]
