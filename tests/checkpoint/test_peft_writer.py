"""Adapters written as PEFT has them: PEFT itself reads them, and so do we, bit for bit."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixins.base import ZooModel
from mixins.lora import apply_lora, linear_names
from mixins.lora_settings import LoRASettings
from mixins.ptuning import add_ptuning
from sat_models import runtime
from sat_models.checkpoint.adapter import read_adapter, save_adapter
from sat_models.checkpoint.convert import convert, save_hf
from sat_models.checkpoint.huggingface import read_safetensors
from sat_models.checkpoint.io import save_checkpoint
from sat_models.checkpoint.peft_blocks import read_header, write_header
from sat_models.commands.convert import main
from sat_models.config import read_json
from sat_models.config.language import VisionLanguageConfig
from sat_models.errors import CheckpointError, run_script
from sat_models.models.build import build_model, make_config
from sat_models.processing.example import example_inputs
from sat_models.zoo import load_pretrained

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
FAMILIES = (
    "llava-tiny", "internvl-tiny", "internvl2-tiny", "cogvlm-tiny", "cogagent-tiny", "cogvlm2-tiny", "glm4v-tiny",
    "xcomposer2-tiny",
)  # fmt: skip

LAYOUTS = {"internvl-tiny": "original"}
"""Its pixel shuffle is one that transformers' class does not have."""
TRANSFORMERS = {"llava-tiny": {"num_kv_heads": 2}, "internvl2-tiny": {"image_token_id": 5}}
"""Families with a class there, and what the tests change in their configs."""


def made(name: str, **changes: object) -> tuple[VisionLanguageConfig, ZooModel]:
    """A tiny model of a family with random weights."""
    runtime.init_model_parallel(1)
    config = make_config({**read_json(CONFIGS / f"{name}.json"), **changes})
    torch.manual_seed(0)
    model = build_model(config, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return config, model


def trained(model: ZooModel, folder: Path, base: Path, *, full: tuple[str, ...] = (), **settings: object) -> Path:
    """An adapter of a model, each of its matrices random, the weights whose names start so trained in full."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(full) if full else False)
    targets = settings.pop("targets", None) or linear_names(model)
    apply_lora(model, LoRASettings(**{"targets": tuple(targets), "rank": 3, "alpha": 5, **settings}))
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(model, folder, base_model=str(base), extra={"step": 7, "version": None})
    return folder


def to_peft(source: Path, output: Path, *flags: str) -> Path:
    assert main(["--from", str(source), "--to", "peft", "--output", str(output), *flags]) == 0
    return output


def hub_weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in read_safetensors(file).items()}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_there_and_back(family: str, dora: bool, tmp_path: Path) -> None:
    """The matrices are the same bits; W + scale · B A of each linear by its Hugging Face name is the merged weight."""
    config, model = made(family, **TRANSFORMERS.get(family, {}))
    base = save_hf(model, tmp_path / "base", config=config, layout=LAYOUTS.get(family))
    left = ("plora", *(["lm_head"] if dora else []))  # linears inside of others; one that gathers its output
    targets = [name for name in linear_names(model) if not any(part in name for part in left)]
    full = ("transformer.final_layernorm",)
    ours = trained(model, tmp_path / "ours", base, targets=targets, use_dora=dora, full=full)
    folder = to_peft(ours, tmp_path / "peft")
    wanted, found = read_adapter(ours), read_adapter(folder).on(config)
    assert found.tensors.keys() == wanted.tensors.keys() and found.extra == wanted.extra
    assert all(value.equal(found.tensors[name]) for name, value in wanted.tensors.items())
    assert (found.lora.rank, found.lora.alpha, found.lora.use_dora) == (3, 5, dora)
    merged = hub_weights(convert(base, "hf", tmp_path / "merged", adapter=wanted, layout=LAYOUTS.get(family)))
    settings, before = read_json(folder / "adapter_config.json"), hub_weights(base)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert settings["base_model_name_or_path"] == str(base)
    for module in settings["target_modules"]:
        name = hub_name(f"{module}.weight", merged)
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "AB")
        scale = settings["alpha_pattern"].get(module, 5) / settings["rank_pattern"].get(module, 3)
        weight = before[name].double() + scale * b @ a
        if dora:
            length = tensors[f"base_model.model.{module}.lora_magnitude_vector"].double()
            weight = weight * (length / weight.norm(dim=1))[:, None]
        torch.testing.assert_close(merged[name].double(), weight, atol=1e-6, rtol=1e-6, msg=name)
    assert settings["modules_to_save"] == [name for name in settings["modules_to_save"] if "norm" in name] != []


def hub_name(name: str, weights: dict[str, Tensor]) -> str:
    """A parameter's name in the files: LLaVA's are of the hub, those of transformers in memory differ."""
    from sat_models.models.llava.keys import canonical

    return name if name in weights else canonical(name)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_peft_puts_it_onto_transformers_model(family: str, dora: bool, tmp_path: Path) -> None:
    import peft
    import transformers

    config, model = made(family, **TRANSFORMERS[family])
    base = save_hf(model, tmp_path / "base", config=config)
    full = ("mixins.eva.linear_proj", "transformer.word_embeddings", "mixins.lm")
    chosen = [name for name in linear_names(model) if not name.startswith(full)]
    ours = trained(model, tmp_path / "ours", base, targets=chosen, full=full, use_dora=dora)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        vlm = load_pretrained(ours, device="cpu", dtype="float32")
        inputs = example_inputs(config, 9)
        given = {"input_ids": inputs.input_ids, "pixel_values": inputs.vision_image}
        plain = theirs(**given).logits
        wrapped = peft.PeftModel.from_pretrained(theirs, to_peft(ours, tmp_path / "peft")).eval()
        found = wrapped(**given).logits
        wanted = vlm.model(**inputs.model_kwargs())[0]
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
        assert (found - plain).abs().max() > 0.1
    wrapped.save_pretrained(tmp_path / "again")
    again = read_adapter(tmp_path / "again").on(config)
    assert all(value.equal(again.tensors[name]) for name, value in read_adapter(ours).tensors.items())
    with torch.inference_mode():
        merged = wrapped.merge_and_unload()(**given).logits
    torch.testing.assert_close(merged, wanted, atol=2e-5, rtol=0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says to a user when it refuses; it ends with 2 and leaves nothing."""
    with pytest.raises(SystemExit) as ended:
        run_script(functools.partial(main, list(map(str, arguments))))
    assert ended.value.code == 2
    assert not Path(arguments[arguments.index("--output") + 1]).exists()
    return capsys.readouterr().err


def test_what_peft_has_no_form_for_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, model = made("glm4v-tiny")
    base = save_hf(model, tmp_path / "base", config=config)
    half = trained(model, tmp_path / "half", base, targets=["mixins.mlp.gate_proj.*"])
    command = ("--to", "peft", "--output", tmp_path / "peft")
    assert re.search(
        r"dense_h_to_4h\.weight is one weight in ChatGLMModel, of .*gate_proj.* PEFT adapts it as a whole\. Merge it",
        refused(capsys, "--from", half, *command),
    )
    config, model = made("internvl2-tiny")
    base = save_hf(model, tmp_path / "internvl", config=config)
    scales = trained(
        model, tmp_path / "scales", base, targets=["transformer.*"], full=("mixins.eva.vit_model.mixins.scaled",)
    )
    said = refused(capsys, "--from", scales, *command)
    assert "lambda_1 is no module of its own in InternVLForConditionalGeneration" in said
    config, model = made("internvl2-tiny")
    add_ptuning(model, 4)
    save_adapter(model, tmp_path / "prefix", base_model=str(base))
    assert "holds no LoRA" in refused(capsys, "--from", tmp_path / "prefix", *command)
    apply_lora(model, LoRASettings(targets=("transformer.*",), rank=2))
    save_adapter(model, tmp_path / "both", base_model=str(base))
    assert "p-tuning prefix in every layer" in refused(capsys, "--from", tmp_path / "both", *command)
    assert "holds no adapter; --to peft writes one anew" in refused(capsys, "--from", base, *command)
    assert "--to peft does not read --mp, --verify" in refused(
        capsys, "--from", tmp_path / "both", *command, "--mp", 2, "--verify"
    )
    assert "--to sat does not read --base" in refused(
        capsys, "--from", base, "--to", "sat", "--output", tmp_path / "peft", "--base", base
    )


@pytest.mark.parametrize("family", ["visualglm-tiny", "minigpt4-tiny", "llava-v1.0-tiny", "internvl-tiny"])
def test_families_without_such_names_are_refused(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, model = made(family)
    save_checkpoint(model, tmp_path / "base", config, step=1)
    ours = trained(model, tmp_path / "ours", tmp_path / "base", targets=["transformer.*"])
    command = ("--from", ours, "--to", "peft", "--output", tmp_path / "peft")
    assert f"{tmp_path / 'base'} is no Hugging Face folder" in refused(capsys, *command)
    reason = {
        "visualglm-tiny": "VisualGLMModel has no Hugging Face form; those that have: ",
        "minigpt4-tiny": "MiniGPT4Model has no Hugging Face form; those that have: ",
        "llava-v1.0-tiny": "LLaVA 1.0 (one linear projector, marked pictures) has no form in transformers",
        "internvl-tiny": "pixel shuffle v1",
    }[family]
    assert reason in refused(capsys, *command, "--base", "somebody/model")


def test_another_base_and_outputs_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, model = made("llava-tiny")
    base = save_hf(model, tmp_path / "base", config=config)
    ours = trained(model, tmp_path / "ours", base, targets=["transformer.*"])
    wide, other = made("llava-tiny", inner_hidden_size=96)
    save_hf(other, tmp_path / "wide", config=wide)
    command = ("--from", ours, "--to", "peft", "--output", tmp_path / "peft")
    said = refused(capsys, *command, "--base", tmp_path / "wide")
    assert "mlp.dense_h_to_4h make [128, 64], but its weight is [96, 64]" in said, said
    folder = to_peft(ours, tmp_path / "peft")
    before = sorted((file.name, file.read_bytes()) for file in folder.iterdir())
    with pytest.raises(CheckpointError, match="exists already; name a new folder; or add --overwrite"):
        main([str(part) for part in command])
    assert before == sorted((file.name, file.read_bytes()) for file in folder.iterdir())
    main([str(part) for part in (*command, "--overwrite", "--base", "somebody/llava-tiny")])
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "somebody/llava-tiny"


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    config, model = made("cogvlm-tiny")
    base = save_hf(model, tmp_path / "base", config=config)
    folder = to_peft(trained(model, tmp_path / "ours", base, targets=["transformer.*"]), tmp_path / "peft")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "query_key_value.lora_B" in name)
    tensors[name] += 1
    save_file(tensors, file, write_header({}, read_header(file)["blocks"]))
    with pytest.raises(
        CheckpointError, match=r"says that model\.layers\.0.*query_key_value has blocks of 192, 192, 192 rows, but"
    ):
        load_pretrained(folder, device="cpu")
