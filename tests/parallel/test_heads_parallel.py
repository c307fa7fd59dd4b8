"""A LLaMA whose queries share keys, from transformers' files: in every form, in two processes and in four as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from heads_worker import LORA, PROMPT, gradient, loaded, logits, low_rank_gradients, prefixed, widths

from mixins.lora import apply_lora, lora_state_dict
from sat_models import runtime
from sat_models.checkpoint.adapter import read_adapter, save_adapter
from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.find import find_checkpoint
from sat_models.errors import ConfigError
from sat_models.models.common.quantisation import Quantisation
from sat_models.zoo import load_pretrained

transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "models"))
from peers import their_model  # noqa: E402

CLOSE = {"atol": 2e-5, "rtol": 0}
FORMS = ("one", "two", "four", "hf")


@pytest.fixture(scope="module")
def theirs() -> Any:
    runtime.init_model_parallel(1)
    return their_model("llama")


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of transformers as "hf", read from there in one part, two and four (which share two heads), with LoRA
    merged, in 8 and 4 bits."""
    out = tmp_path_factory.mktemp("heads")
    theirs.save_pretrained(out / "hf")
    convert(out / "hf", "sat", out / "one", verify=True)
    convert(out / "one", "sat", out / "two", size=2)
    convert(out / "two", "sat", out / "four", size=4, verify=True)
    for bits in (8, 4):
        convert(out / "one", "sat", out / f"q{bits}", quantisation=Quantisation(bits=bits), size=2)
    return out


@pytest.fixture(scope="module")
def wanted(theirs: Any, folder: Path) -> dict[str, Any]:
    """What one process finds; its LoRA is written as an adapter, and merged into "merged"."""
    with torch.no_grad():
        found: dict[str, Any] = {"logits": theirs(PROMPT).logits}
    model = loaded(folder / "one")
    found["gradient"] = gradient(model)
    apply_lora(model, LORA)
    for number, (name, value) in enumerate(lora_state_dict(model).items()):
        if ".matrix_B." in name:
            value.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    found["matrices"], found["lora"] = lora_state_dict(model), logits(model)
    found["prefix"] = prefixed(loaded(folder / "one"))
    save_adapter(model, folder / "adapter", base_model="one")
    convert(folder / "one", "sat", folder / "merged", adapter=read_adapter(folder / "adapter"))
    found["low rank"] = low_rank_gradients(model)
    for bits in (8, 4):
        found[f"quant {bits}"] = logits(loaded(folder / "one", bits))
    return found


def test_files_of_transformers_give_its_logits(wanted: dict[str, Any], folder: Path) -> None:
    for name in ("hf", "one", "two", "four"):
        torch.testing.assert_close(logits(loaded(folder / name)), wanted["logits"], **CLOSE)


@pytest.mark.parametrize("parts", ["two", "four"])
def test_what_is_written_for_transformers_is_what_it_wrote(
    theirs: Any, folder: Path, parts: str, tmp_path: Path
) -> None:
    convert(folder / parts, "hf", tmp_path / "back", verify=True)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is type(theirs)
    own, found = theirs.state_dict(), back.state_dict()
    assert own.keys() == found.keys() and all(value.equal(found[name]) for name, value in own.items())
    for key in ("num_key_value_heads", "head_dim", "hidden_size", "num_attention_heads"):
        assert getattr(back.config, key) == getattr(theirs.config, key)
    assert back.config.rope_parameters["rope_theta"] == 500000.0


def test_lora_changes_keys_and_values_of_their_own_size(wanted: dict[str, Any], folder: Path) -> None:
    rows = [
        value.shape[0] for name, value in wanted["matrices"].items() if "layers.0.attention.query_key" in name
        and ".matrix_B." in name
    ]  # fmt: skip
    assert rows == [4 * 32, 2 * 32, 2 * 32]
    assert (wanted["lora"] - wanted["logits"]).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded(folder / "merged")), wanted["lora"], **CLOSE)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_come_back_from_files(wanted: dict[str, Any], folder: Path, bits: int) -> None:
    off = (wanted[f"quant {bits}"] - wanted["logits"]).norm() / wanted["logits"].norm()
    assert 0 < off < {8: 0.02, 4: 0.2}[bits]
    torch.testing.assert_close(logits(loaded(folder / f"q{bits}")), wanted[f"quant {bits}"], **CLOSE)


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes(wanted: dict[str, Any], folder: Path, size: int) -> None:
    """Of four, two hold each key and value."""
    torch.save(wanted, folder / "wanted.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    command += [str(Path(__file__).with_name("heads_worker.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    for rank in range(size):
        report = json.loads((folder / f"{rank} of {size}.json").read_text())
        for name in (*FORMS, "stepwise", "prefix", "lora", "merged", "gradient", "low rank"):
            assert report[name] <= 2e-5, name
        for bits in widths(size):
            assert report[f"quant {bits}"] <= 1e-4 and report[f"stored {bits}"]
    torch.testing.assert_close(logits(loaded(folder / f"saved of {size}")), wanted["logits"], **CLOSE)
    for bits in widths(size):
        torch.testing.assert_close(logits(loaded(folder / f"saved{bits} of {size}")), wanted[f"quant {bits}"], **CLOSE)
    written = read_adapter(folder / f"adapter of {size}").tensors
    assert all(value.equal(written[name]) for name, value in wanted["matrices"].items())


def test_a_language_model_alone_is_refused_by_the_front_door(folder: Path) -> None:
    with pytest.raises(ConfigError, match="LLaMAModel is a language model alone"):
        load_pretrained(folder / "hf", device="cpu")


def test_more_parts_than_heads_of_queries_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model-parallel size 8 does not divide num_attention_heads = 4"):
        convert(folder / "one", "sat", tmp_path / "eight", size=8)


def test_each_part_holds_the_heads_that_its_queries_read(folder: Path) -> None:
    name = "transformer.layers.1.attention.query_key_value.weight"
    (whole,), parts = (find_checkpoint(folder / place).read() for place in ("one", "four"))
    heads = whole[name].unflatten(0, (8, 32))
    for rank, part in enumerate(parts):
        assert part[name].equal(heads[[rank, 4 + rank // 2, 6 + rank // 2]].flatten(0, 1))
