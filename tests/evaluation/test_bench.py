"""The benchmark: the stock path says what ours says, floors follow from sizes, failures cost one line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixins.base import ZooModel
from sat_models.bench import random_models as bench_models
from sat_models.bench import report as bench_report
from sat_models.bench import suite as bench
from sat_models.bench.profile import profiled
from sat_models.bench.random_models import Floors, config_of_name, config_of_sizes, prompt_of, random_model
from sat_models.bench.rows import BenchSettings, make_row
from sat_models.bench.stock import StockModel, by_boolean_mask, stock_tokens
from sat_models.bench.suite import Bench
from sat_models.errors import ConfigError, InputError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps import triton_step
from sat_models.models.common.quantisation import Quantisation, linears_to_quantise

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIZES = {
    "layers": 2, "hidden_size": 32, "heads": 2, "inner_size": 64, "vocab_size": 100, "image_tokens": 16,
    "vision_layers": 1, "vision_hidden_size": 32, "vision_heads": 2, "vision_inner_size": 64,
}  # fmt: skip
CONFIG = config_of_sizes(**SIZES)


def make(bits: int | None = None) -> ZooModel:
    return random_model(CONFIG, dtype=torch.float32, device=CPU, bits=bits)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[BenchSettings], Bench]:
    """A benchmark of a tiny model with floors that are not measured."""
    floors = Floors(1e9, 1e10, 4_000_000, 2_000_000, 1000, 2, 32, 512, 10_000_000)
    monkeypatch.setattr(Floors, "measure", classmethod(lambda *given: floors))
    return lambda settings: Bench(make, settings, CPU)


@pytest.mark.parametrize("image", [True, False])
def test_the_stock_path_gives_our_tokens(image: bool) -> None:
    model, inputs = make(), prompt_of(CONFIG, 40, image=image)
    ours = list(Engine(model, eos_id=-5, max_length=999, device=CPU).tokens(inputs, SamplingOptions(max_new_tokens=9)))
    stock, times = stock_tokens(model, inputs, 9)
    assert ours == stock
    assert len(set(ours)) > 1
    assert len(times) == 9 and times == sorted(times)
    assert (
        list(Engine(model, eos_id=-5, max_length=999, device=CPU).tokens(inputs, SamplingOptions(max_new_tokens=9)))
        == ours
    )


def test_the_stock_model_has_our_logits_and_gradients() -> None:
    model, inputs = make(), prompt_of(CONFIG, 30, image=True)
    model.requires_grad_(True)
    mask = torch.ones(1, 1, 30, 30).tril()
    given = inputs.model_kwargs()
    logits = {"ours": model(**given)[0], "stock": StockModel(model)(**given | {"attention_mask": mask})[0]}
    torch.testing.assert_close(logits["ours"], logits["stock"], atol=1e-5, rtol=0)
    weight = model.get_mixin("mlp").vision_gate_proj[0].weight
    ours, stock = (torch.autograd.grad(out.square().sum(), weight)[0] for out in logits.values())
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-4)


def test_the_profile_of_a_step_adds_up(
    quick: Callable[[BenchSettings], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_LINES", 3)
    settings = BenchSettings(cases=("profile",), contexts=(30,), text_contexts=(), stock=False)
    whole, *parts, rest, between = quick(settings).run()
    assert whole["what"] == "a decode step, picture, 30 tokens" and whole["value"] > 0
    assert [row["unit"] for row in (whole, *parts, rest, between)] == ["us"] * 6
    assert [row["value"] for row in parts] == sorted((row["value"] for row in parts), reverse=True)
    assert (rest["what"], between["what"]) == ("all others", "C kernels and Python")
    assert sum(row["value"] for row in (*parts, rest, between)) == pytest.approx(whole["value"])


class Backwards:
    """A decode step that likes best what the usual one likes least."""

    def __init__(self, step: Any, record: Any) -> None:
        self.step = step

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return -self.step(*args, **kwargs)


def test_other_kernels_stand_beside_the_usual_step(
    quick: Callable[[BenchSettings], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measurement of decoding names the way that was really gone."""
    settings = BenchSettings(
        cases=("decode", "batch", "profile"), contexts=(30,), text_contexts=(), batches=(2,), new_tokens=4, repeats=1,
        stock=False, kernels=("triton",),
    )  # fmt: skip
    monkeypatch.setattr(triton_step, "TritonStep", Backwards)
    rows = {(row["case"], row["what"]): row for row in quick(settings).run()}
    usual, other = rows["decode", "picture, 30 tokens"], rows["decode", "picture, 30 tokens, through Backwards"]
    assert usual["note"] == "" and other["note"] == "tokens differ from the usual step's"
    assert ("batch", "2 x picture, 30 tokens, through Backwards") in rows
    assert ("profile", "a decode step, picture, 30 tokens, through Backwards") in rows


def test_a_profile_counts_what_runs() -> None:
    x = torch.randn(64, 64)
    parts = {part.name: part for part in profiled(lambda: (x @ x, (x @ x).relu()), 4, CPU)}
    assert parts["aten::mm"].calls == 2 and parts["aten::clamp_min"].calls == 1
    assert sum(part.seconds for part in parts.values()) < 0.1
    seconds = [part.seconds for part in parts.values()]
    assert seconds == sorted(seconds, reverse=True)


def test_experts_by_mask() -> None:
    hidden, mask = torch.arange(6.0).view(1, 3, 2), torch.tensor([[0, 1, 0]])
    assert by_boolean_mask(hidden, mask, lambda x: -x, lambda x: x + 100).tolist() == [[[0, -1], [102, 103], [-4, -5]]]
    assert torch.equal(by_boolean_mask(hidden, None, lambda x: -x, lambda x: x), -hidden)


def test_a_whole_run(quick: Callable[[BenchSettings], Bench], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = BenchSettings(
        contexts=(30,), text_contexts=(10,), batches=(1, 3), new_tokens=4, stock_tokens=3, repeats=1, bits=(8,)
    )
    rows = quick(settings).run()
    assert [row["note"] for row in rows] == [""] * len(rows)
    assert [row["case"] for row in rows] == [
        "vision", "first token", "first token", "decode", "decode", "batch", "batch", "train", "decode",
    ]  # fmt: skip
    for row in rows:
        assert row["value"] > 0
        assert (row["stock"] is not None) == (
            row["case"] in ("first token", "train")
            or row["what"].startswith("text")
            or row["what"] == "picture, 30 tokens"
        )
    table = bench_report.table(rows)
    assert len(table.splitlines()) == len(rows) + 2
    assert "| decode, int8, picture, 30 tokens | " in table


def test_lora_training_and_no_stock(quick: Callable[[BenchSettings], Bench]) -> None:
    settings = BenchSettings(cases=("train",), contexts=(30,), text_contexts=(), train="lora", repeats=1, stock=False)
    runner = quick(settings)
    (row,) = runner.run()
    assert row["stock"] is None and row["value"] > 0
    trained = [name for name, p in runner.model.named_parameters() if p.requires_grad]
    assert trained and all("matrix_" in name for name in trained)


def test_a_case_that_fails_or_is_late_costs_one_line(
    quick: Callable[[BenchSettings], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BenchSettings(cases=("vision", "prefill"), contexts=(30,), text_contexts=(), repeats=1, stock=False)
    runner = quick(settings)
    monkeypatch.setattr(type(runner.model.get_mixin("eva")), "encode_images", lambda *args: 1 / 0)
    (failed, other) = quick(settings).run()
    assert failed["value"] is None and "ZeroDivisionError" in failed["note"]
    assert other["case"] == "prefill" and "ZeroDivisionError" in other["note"]
    (late, _) = quick(replace(settings, seconds=0.0)).run()
    assert "not begun" in late["note"]
    assert "ZeroDivisionError" in bench_report.table([failed])


def test_one_model_at_a_time_is_quantised(
    quick: Callable[[BenchSettings], Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    caplog.set_level(logging.CRITICAL, bench.logger.name)  # pytest keeps errors, and what they were raised over
    settings = BenchSettings(
        cases=("quant",), contexts=(30,), text_contexts=(), repeats=1, new_tokens=3, stock=False, bits=(8, 4)
    )
    runner = quick(settings)
    weights = [weakref.ref(runner.model.transformer.layers[0].attention.dense.weight)]
    make_model = runner.make_model

    def make_again(bits: int | None) -> ZooModel:
        assert weights[-1]() is None, "the model before is gone"
        if bits == 4:
            raise RuntimeError("no kernel")
        return make_model(bits)

    runner.make_model = make_again
    failed, measured = runner.run()
    assert (failed["what"], failed["note"]) == ("int4, picture, 30 tokens", "RuntimeError: no kernel")
    assert measured["what"] == "int8, picture, 30 tokens" and measured["value"] > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_never_whole_in_full_precision(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    drawn: list[weakref.ref[torch.Tensor]] = []
    place = bench_models.Quantiser.place

    def counting(self: Any, model: ZooModel, key: str, part: Any, *given: Any) -> None:
        assert not any(weight() is not None for weight in drawn), "the one before is let go"
        drawn.append(weakref.ref(part(0)))
        place(self, model, key, part, *given)

    monkeypatch.setattr(bench_models.Quantiser, "place", counting)
    model, plain = make(bits), make()
    assert len(drawn) == len(linears_to_quantise(plain, Quantisation(bits=bits)))
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    floors, whole = (Floors.measure(each, CPU) for each in (model, plain))
    assert (floors.token_flops, floors.head_flops, floors.vision_flops) == (
        whole.token_flops, whole.head_flops, whole.vision_flops,
    )  # fmt: skip
    assert floors.token_bytes < whole.token_bytes / 2


def test_every_case_can_be_measured_with_quantised_weights(quick: Callable[[BenchSettings], Bench]) -> None:
    pytest.importorskip("bitsandbytes")
    settings = BenchSettings(
        cases=("prefill", "decode"), contexts=(30,), text_contexts=(), new_tokens=4, repeats=1, stock=False, quant=8
    )
    runner = quick(settings)
    assert runner.model.transformer.layers[0].attention.dense.bits == 8
    rows = runner.run()
    assert [row["case"] for row in rows] == ["first token", "decode"]
    assert all(row["value"] > 0 and row["memory"] > 1e7 for row in rows)
    with pytest.raises(InputError, match="quant is 8, but SAT's own way knows full precision only; add --no-stock"):
        replace(settings, stock=True)
    with pytest.raises(InputError, match="such weights do not train"):
        replace(settings, cases=("train",))


def test_ratios() -> None:
    faster = make_row("first token", "x", 20.0, "ms", 60.0, floor=10.0)
    assert (faster.speedup, faster.share) == (3.0, 0.5)
    more = make_row("decode", "x", 80.0, "tokens/s", 20.0, floor=100.0, peaks=[5, 7])
    assert (more.speedup, more.share, more.memory) == (4.0, 0.8, 7)
    nothing = make_row("batch", "x", 80.0, "tokens/s")
    assert (nothing.stock, nothing.speedup, nothing.floor, nothing.share, nothing.memory) == (None,) * 5


def test_floors_follow_from_sizes() -> None:
    model = make()
    floors = replace(Floors.measure(model, CPU), bandwidth=1e6, arithmetic=1e9)
    layer = 4 * 32 * 32 + 3 * 32 * 64
    assert floors.token_flops == 2 * 2 * layer
    assert floors.head_flops == 2 * 32 * 100
    assert floors.token_bytes == 4 * (2 * (layer + 2 * 32) + 32 + 32 * 100)
    assert floors.decode(50) == pytest.approx((floors.token_bytes + 50 * 2 * 2 * 32 * 4) / 1e6)
    assert floors.decode(50, rows=3) == pytest.approx((floors.token_bytes + 3 * 50 * 512) / 1e6)
    assert replace(floors, bandwidth=1e15).decode(50) == (floors.token_flops + floors.head_flops) / 1e9


def test_prompts_have_the_length_that_was_asked_for() -> None:
    image, text = prompt_of(CONFIG, 40, image=True), prompt_of(CONFIG, 12, image=False)
    assert (image.length, int(image.image_embed_mask.sum()), len(image.vision_image)) == (40, 18, 1)
    assert (text.length, text.vision_image) == (12, None)
    cogagent = config_of_name("cogagent-chat")
    assert prompt_of(cogagent, 300, image=True).cross_image.shape == (1, 3, 1120, 1120)


def test_what_is_refused(quick: Callable[[BenchSettings], Bench]) -> None:
    with pytest.raises(ConfigError, match="image_tokens is 15"):
        config_of_sizes(**{**SIZES, "image_tokens": 15})
    with pytest.raises(InputError, match="unknown case speed; allowed: vision"):
        BenchSettings(cases=("speed",))
    with pytest.raises(InputError, match="train is 'some'"):
        BenchSettings(train="some")
    with pytest.raises(InputError, match="clock is 'sun'; allowed: wall, cpu"):
        BenchSettings(clock="sun")
    with pytest.raises(InputError, match="at least 1"):
        BenchSettings(batches=(0,))
    with pytest.raises(InputError, match="both empty; without a prompt only vision can be measured"):
        BenchSettings(contexts=(), text_contexts=())
    assert BenchSettings(cases=("vision",), contexts=(), text_contexts=()).contexts == ()
    with pytest.raises(InputError, match="visualglm-6b cannot be measured, only a CogVLM or CogAgent: cog"):
        config_of_name("visualglm-6b")
    (row,) = quick(BenchSettings(cases=("decode",), contexts=(18,))).run()
    assert "a context with a picture takes at least 20 tokens" in row["note"]


def test_a_model_made_twice_is_the_same() -> None:
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert bench_models.SEED == 0


def test_the_plot(tmp_path: Path) -> None:
    row = {"case": "decode", "unit": "tokens/s", "stock": 5.0, "floor": 30.0}
    rows = [{**row, "what": f"text, {n} tokens", "value": 20.0 - n / 100} for n in (10, 300)]
    bench_report.plot(rows, tmp_path / "plots" / "decode.png")
    assert (tmp_path / "plots" / "decode.png").stat().st_size > 1000
    with pytest.raises(InputError, match="at least two contexts"):
        bench_report.plot(rows[:1], tmp_path / "decode.png")


def test_the_script(tmp_path: Path) -> None:
    flags = [part for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *flags, "--cases", "decode", "--contexts", "30"]
    command += ["--text-contexts", "10", "--new-tokens", "3", "--stock-tokens", "2", "--repeats", "1"]
    output = tmp_path / "bench.json"
    run = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(output.read_text())
    assert {"date", "device", "torch", "parameters", "bandwidth_gb_s"} <= report["machine"].keys()
    assert [row["what"] for row in report["rows"]] == ["text, 10 tokens", "picture, 30 tokens"]
    assert "| decode, text, 10 tokens | " in run.stdout
