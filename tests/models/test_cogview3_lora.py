"""LoRA on a painter: made, saved, loaded, merged; diffusers on the merged weights gives our output."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, tensors
from painter_golden import given, sat_folder

from mixins.lora import apply_lora
from mixins.lora_settings import LoRASettings
from sat_models.checkpoint.adapter import read_adapter, save_adapter
from sat_models.checkpoint.convert import convert
from sat_models.commands.convert import main
from sat_models.zoo import Painter, load_pretrained

TOLERANCE = 2e-5


def adapted(place: Path, inputs: dict[str, Tensor]) -> tuple[Painter, Tensor]:
    """With matrices drawn at random, after a backward pass that reached them all, and what the model gives then."""
    painter = load_pretrained(place, device="cpu", dtype="float32")
    names = apply_lora(painter.model, LoRASettings(targets=("transformer.layers.*.attention.*",), rank=4, alpha=2.0))
    assert len(names) == 2 * painter.config.num_layers
    weights = {name: weight for name, weight in painter.model.named_parameters() if ".matrix_" in name}
    for weight in weights.values():
        weight.requires_grad_(True)
    painter.model(**inputs).square().mean().backward()
    assert [name for name, weight in weights.items() if weight.grad is None] == []
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in weights.values():
            weight.normal_(std=0.1)
        return painter, painter.model(**inputs)


@each_folder("cogview3-plus")
def test_an_adapter_is_merged_when_it_is_loaded_and_when_it_is_converted(folder: Path, tmp_path: Path) -> None:
    from diffusers import CogView3PlusTransformer2DModel

    place, golden = sat_folder(folder, tmp_path), tensors(folder)
    inputs = given(golden, "case0")
    painter, wanted = adapted(place, inputs)
    assert (wanted - golden["case0.out_sat"]).abs().max() > 100 * TOLERANCE, "the matrices change nothing"
    file = save_adapter(painter.model, tmp_path / "adapter", base_model=str(place), extra={"step": 2})
    with torch.no_grad():
        merged = load_pretrained(file, device="cpu", dtype="float32").model(**inputs)
        torch.testing.assert_close(merged, wanted, atol=TOLERANCE, rtol=0)
        convert(place, "hf", tmp_path / "hub", adapter=read_adapter(file))
        ours = load_pretrained(tmp_path / "hub", device="cpu", dtype="float32").model(**inputs)
        theirs = CogView3PlusTransformer2DModel.from_pretrained(tmp_path / "hub" / "transformer")(
            hidden_states=inputs["latents"], encoder_hidden_states=inputs["text"], timestep=inputs["timestep"],
            original_size=inputs["original_size"], target_size=inputs["target_size"], crop_coords=inputs["crop"],
        ).sample  # fmt: skip
    torch.testing.assert_close(ours, wanted, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(theirs, wanted, atol=TOLERANCE, rtol=0)


@each_folder("cogview3-plus")
def test_peft_and_diffusers_put_an_adapter_onto_their_own_model(folder: Path, tmp_path: Path) -> None:
    """What `--to peft` writes, injected by PEFT, merged by it, and loaded as diffusers' pipelines load LoRA: each gives
    our output; and we read it back."""
    from diffusers import CogView3PlusTransformer2DModel
    from diffusers.loaders.peft import PeftAdapterMixin
    from peft import PeftModel

    class WithLoRA(PeftAdapterMixin, CogView3PlusTransformer2DModel):
        """As diffusers' other transformers are made; this one of theirs lacks the first."""

    place, golden = sat_folder(folder, tmp_path), tensors(folder)
    inputs = given(golden, "case1")
    painter, wanted = adapted(place, inputs)
    save_adapter(painter.model, tmp_path / "adapter", base_model=str(place), extra={"step": 2})
    hub, out = convert(place, "hf", tmp_path / "hub"), tmp_path / "peft"
    assert main(["--from", str(tmp_path / "adapter"), "--to", "peft", "--base", str(hub), "--output", str(out)]) == 0

    def theirs(model: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return model(
                hidden_states=inputs["latents"], encoder_hidden_states=inputs["text"], timestep=inputs["timestep"],
                original_size=inputs["original_size"], target_size=inputs["target_size"], crop_coords=inputs["crop"],
            ).sample  # fmt: skip

    injected = PeftModel.from_pretrained(CogView3PlusTransformer2DModel.from_pretrained(hub / "transformer"), out)
    torch.testing.assert_close(theirs(injected), wanted, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(theirs(injected.merge_and_unload()), wanted, atol=TOLERANCE, rtol=0)
    loaded = WithLoRA.from_pretrained(hub / "transformer")
    assert (theirs(loaded) - wanted).abs().max() > 100 * TOLERANCE
    loaded.load_lora_adapter(out, prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(theirs(loaded), wanted, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        again = load_pretrained(out, device="cpu", dtype="float32").model(**inputs)
    torch.testing.assert_close(again, wanted, atol=TOLERANCE, rtol=0)
