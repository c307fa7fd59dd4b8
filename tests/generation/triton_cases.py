"""Triton's kernels and the step through them against torch: on a GPU, or on a CPU in Triton's interpreter.

`test_triton.py` runs this file in a process of its own, since the interpreter must be asked for before Triton is first
imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from miniatures import MINIATURES, perturbed

from mixins.cache_form import CacheForm
from mixins.heads import HeadLayout, repeated
from mixins.kv_cache import KVStore, kv_cache
from mixins.lora import apply_lora
from mixins.lora_settings import LoRASettings
from mixins.rotary import RotaryEmbedding, choose_rotate
from sat_models import runtime
from sat_models.bench import triton_tiles
from sat_models.bench.random_models import random_model
from sat_models.bench.triton_tiles import report
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps import triton_step
from sat_models.generation.steps import triton_tuning as tuning
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.graphs import record_on_gpu
from sat_models.generation.steps.triton_attention import attend, parts_room
from sat_models.generation.steps.triton_products import NF4, Weight, product
from sat_models.generation.steps.triton_step import TritonStep
from sat_models.generation.steps.triton_tuning import Tiles
from sat_models.models.build import build_model
from sat_models.models.common.quantised import _QuantisedLinear, quantise
from sat_models.models.common.quantised_kernels import scale_table
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLOSE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 5e-2, "rtol": 1.6e-2},  # tensor cores take rounded weights and inputs
    torch.float16: {"atol": 5e-3, "rtol": 2e-3},
}
DTYPES = pytest.mark.parametrize("dtype", CLOSE, ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def meant(codes: Tensor, scales: Tensor, block: int | None) -> Tensor:
    """What a quantised weight stands for, after `quantised.py`."""
    if codes.dtype == torch.int8:
        return codes.float() * scales.float()[:, None] / 127
    table = torch.tensor(NF4, device=codes.device)
    numbers = torch.stack((table[(codes >> 4).long()], table[(codes & 15).long()]), dim=-1).flatten(1)
    return numbers * scale_table().to(codes.device)[scales.long()].repeat_interleave(block, dim=1)


def weight_of(outputs: int, inputs: int, bits: int, dtype: torch.dtype, **bias: Tensor) -> tuple[Weight, Tensor]:
    """A weight, and what it stands for in fp32."""
    values = random(outputs, inputs) * inputs**-0.5
    if bits == 16:
        return Weight(values.to(dtype), **bias), values.to(dtype).float()
    block = {96: 32, 192: 64}.get(inputs) if bits == 4 else None
    codes, scales = quantise(values, bits, block=block)
    return Weight(codes, scales, block or 0, **bias), meant(codes, scales, block)


@DTYPES
@pytest.mark.parametrize("bits, inputs", [(16, 640), (8, 70), (4, 96), (4, 192)], ids=lambda n: str(n))
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_products(rows: int, bits: int, inputs: int, dtype: torch.dtype) -> None:
    """Alone; with a bias; behind a norm; added to what is there; two in one behind a norm. Sizes are odd."""
    outputs = 45
    x, norm, bias = random(rows, inputs).to(dtype), random(inputs).abs().to(dtype), random(outputs).to(dtype)
    before = random(rows, outputs).to(dtype)
    (weight, stands_for), (up, up_stands_for) = weight_of(45, inputs, bits, dtype), weight_of(45, inputs, bits, dtype)
    normed = F.rms_norm(x.float(), (inputs,), norm.float(), 1e-5)
    plain, gate = x.float() @ stands_for.T, normed @ stands_for.T
    out = torch.full((rows, outputs), torch.nan, dtype=dtype, device=DEVICE)
    product(out, x, weight)
    torch.testing.assert_close(out.float(), plain, **CLOSE[dtype])
    product(out, x, weight._replace(bias=bias))
    torch.testing.assert_close(out.float(), plain + bias.float(), **CLOSE[dtype])
    product(out, x, weight, norm=norm, epsilon=1e-5)
    torch.testing.assert_close(out.float(), gate, **CLOSE[dtype])
    product(out, x, weight, up=up, norm=norm, epsilon=1e-5)
    torch.testing.assert_close(out.float(), F.silu(gate) * (normed @ up_stands_for.T), **CLOSE[dtype])
    out.copy_(before)
    product(out, x, weight, residual=out)
    torch.testing.assert_close(out.float(), plain + before.float(), **CLOSE[dtype])


def test_codes_are_those_of_bitsandbytes() -> None:
    """A weight that goes through its quantiser comes back as near as 4 bits with our scales are."""
    values = random(8, 128)
    codes, scales = quantise(values, 4, block=64)
    error = (meant(codes, scales, 64) - values).norm() / values.norm()
    assert error < 0.12


BEST = Tiles(16, 32, 2, 3)
CASES = [
    # rows, queries, key/value heads, head dim, of it turning, neighbours, columns in use, columns, masked
    (1, 4, 4, 24, 24, False, 0, 300, False),
    (1, 4, 4, 24, 24, False, 130, 300, True),
    (3, 6, 2, 20, 8, True, 200, 300, True),
    (2, 4, 1, 16, 16, False, 5, 9, False),
    (2, 2, 2, 32, 32, False, 299, 300, False),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    rows, queries, groups, width, turning, neighbours, length, columns, masked = case
    heads = HeadLayout(
        num_heads=queries, num_kv_heads=groups, head_dim=width, rotary_dim=turning, interleaved=neighbours
    )
    rotary, positions = RotaryEmbedding.of(heads).to(DEVICE, dtype), torch.arange(7, 7 + 3 * rows, 3, device=DEVICE)
    mixed = random(rows, heads.row_size).to(dtype)
    cache = [random(rows + 1, groups, columns, width).to(dtype) for _ in range(2)]
    keys, values = (part.clone() for part in cache)
    may_look = None
    if masked:
        may_look = random(rows, length + 1) > 0
        may_look[:, -1] = True
    out = torch.empty(rows, heads.context_size, dtype=dtype, device=DEVICE)
    attend(
        out, mixed, heads, rotary.table(64), positions, torch.tensor([length], device=DEVICE), *cache,
        parts_room(rows, heads, columns, mixed.device), may_look,
    )  # fmt: skip
    cut = mixed.view(rows, heads.row_heads, 1, width)
    with torch.enable_grad():  # torch's own rotation
        turned = choose_rotate(mixed, heads)(cut[:, : queries + groups], rotary.rows(positions[:, None], 63))
    keys[:rows, :, length], values[:rows, :, length] = turned[:, queries:, 0], cut[:, queries + groups :, 0]
    torch.testing.assert_close(cache[0].float(), keys.float(), **CLOSE[dtype])
    assert torch.equal(cache[1], values), "one column is written, and nothing else"
    seen = [repeated(part[:rows, :, : length + 1].float(), queries) for part in (keys, values)]
    mask = None if may_look is None else may_look[:, None, None]
    wanted = F.scaled_dot_product_attention(turned[:, :queries].float(), *seen, attn_mask=mask)
    torch.testing.assert_close(out.float(), wanted.flatten(1), **CLOSE[dtype])


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of one layer, which says as much as three and costs the interpreter a third."""
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    model = perturbed(build_model(replace(config_of(name), num_layers=1), dtype=dtype, device="cpu"))
    return model.to(DEVICE).eval().requires_grad_(False)


def config_of(name: str) -> Any:
    return next(miniature for miniature in MINIATURES if miniature.name == name).config


def multiply_what_is_meant(self: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    weight = meant(self.weight, self.quant_scale, self.block).to(x.dtype)
    return F.linear(x, weight, bias)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, each of which takes the interpreter a millisecond: the table's own sizes are `test_products`'."""
    monkeypatch.setattr(tuning, "PRODUCTS", dict.fromkeys(tuning.PRODUCTS, Tiles(256, 64, 4, 1)))


def both(
    model: Any, *, rows: int = 1, steps: int = 4, hidden: tuple[int, ...] = (), set_back: int | None = None,
    record: Any = None, columns: int = 80,
) -> tuple[Tensor, Tensor, TritonStep]:  # fmt: skip
    """Logits [steps, B, V] of a `TokenStep` and of a `TritonStep`, which are given the same tokens.

    Args:
        hidden: steps behind a mask that hides some of the first columns.
        set_back: the step before which both caches are moved to the left.
    """
    with torch.inference_mode(), kv_cache(model, 0):
        plain = TokenStep.of(model)
        step = TritonStep(plain, record)
        stores, found = [KVStore(len(model.transformer.layers), columns) for _ in range(2)], []
        ids = torch.arange(5, 5 + rows, device=DEVICE)
        for place in range(steps + 5):
            if place == set_back:
                for store in stores:
                    store.shift(-3)
            length = stores[0].length
            mask = None
            if place in hidden:
                mask = torch.arange(length + 1, device=DEVICE)[None] > torch.arange(rows, device=DEVICE)[:, None] % 3
                mask = mask[:, None, None]
            at = torch.full((rows, 1), place, device=DEVICE)
            first = plain(ids, at, stores[0], mask, max_position=place)
            other = (step if place >= 5 else plain)(ids, at, stores[1], mask, max_position=place)
            found.append((first.clone(), other.clone()))
            ids = first.argmax(dim=-1)
            for store in stores:
                store.advance(1)
    usual, triton = (torch.stack(part[5:]) for part in zip(*found, strict=True))
    return usual, triton, step


def equal(usual: Tensor, triton: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(triton, usual, **(tolerance or {"atol": 2e-5, "rtol": 1e-5}))
    assert torch.equal(triton.argmax(dim=-1), usual.argmax(dim=-1))


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize(
    "name, rows",
    [("llava-tiny", 1), ("llava-tiny", 17), ("cogvlm-mini", 1), ("cogvlm2-tiny", 2), ("glm4v-tiny", 1),
     ("glm4v-tiny", 3), ("internvl2-tiny", 2), ("xcomposer2-tiny", 1)],
)  # fmt: skip
def test_a_step_gives_what_torch_gives(name: str, rows: int) -> None:
    usual, triton, step = both(model_of(name), rows=rows, steps=3, hidden=(6,) if rows > 1 else ())
    assert step._launches is not None, "the kernels ran"
    equal(usual, triton)


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("name, bits, rows", [("llava-tiny", 8, 1), ("cogvlm-mini", 4, 1), ("cogvlm2-tiny", 4, 2)])
def test_quantised_weights(name: str, bits: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the numbers that the weights stand for: the usual step's products are approximations of their own."""
    config = replace(config_of(name), num_layers=1)
    model = random_model(config, dtype=torch.float32, device=torch.device(DEVICE), bits=bits)
    monkeypatch.setattr(_QuantisedLinear, "product", multiply_what_is_meant)
    equal(*both(model, rows=rows, steps=3)[:2])


@pytest.mark.usefixtures("large_tiles")
def test_bf16() -> None:
    usual, triton, _ = both(model_of("cogvlm-mini", torch.bfloat16), rows=1)
    scale = usual.float().abs().max()
    assert (usual.float() - triton.float()).abs().max() < 0.03 * scale


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("hidden", [(), tuple(range(40))], ids=["without a mask", "with one"])
def test_recorded_once_it_serves_every_length(hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph; without a GPU the launches of one moment, run again on the same buffers."""
    made: list[Callable[[], None]] = []

    def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
        made.append(action)
        if device.type == "cuda":
            return record_on_gpu(action, device)
        action()  # as on a GPU, to warm it up; twice is once
        return action

    monkeypatch.setattr(triton_step, "RECORD_AFTER", 2)
    equal(*both(model_of("llava-tiny"), steps=6, hidden=hidden, set_back=8, record=record)[:2])
    assert len(made) == 1


@pytest.mark.usefixtures("large_tiles")
def test_what_cannot_be_recorded_is_launched(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(triton_step, "RECORD_AFTER", 1)
    equal(*both(model_of("llava-tiny"), steps=2, record=record)[:2])
    assert "slower: operation not permitted when stream is capturing" in caplog.text


def test_what_the_step_behind_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room, caches in bytes, more rows than the kernels take."""
    model, asked = model_of("llava-tiny"), []
    with torch.inference_mode(), kv_cache(model, 0):
        plain = TokenStep.of(model)
        monkeypatch.setattr(TokenStep, "__call__", lambda self, ids, *args, **kwargs: asked.append(len(ids)))
        step = TritonStep(plain)
        for rows, form in ((1, CacheForm.MODEL), (1, CacheForm.INT8), (40, CacheForm.MODEL)):
            store = KVStore(1, 8, form)
            if rows == 40 or form is CacheForm.INT8:
                heads = model.config.heads
                store.append(0, *torch.zeros(2, rows, heads.num_kv_heads, 1, heads.head_dim, device=DEVICE))
            step(
                torch.zeros(rows, dtype=torch.long), torch.zeros(rows, 1, dtype=torch.long), store, None, max_position=0
            )
    assert asked == [1, 1, 40]


def test_the_search_for_tiles_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "PRODUCTS", {(4, 1): Tiles(8, 64, 1, 1), (16, 16): Tiles(16, 128, 1, 1)})
    monkeypatch.setattr(triton_tiles, "walk", lambda seconds, start, rows: {start: seconds(start), BEST: 1e-9})
    head, four, sixteen = report(24, 128, torch.device(DEVICE), moved=1)
    assert head.startswith("| weight, rows |")
    assert four.startswith("| 4 bits, 1 | ") and four.endswith("|  | `(4, 1): Tiles(16, 32, 2, 3),` |")
    assert sixteen.startswith("| 16 bits, 16 | ") and "GB/s | `(16, 16): Tiles(16, 32, 2, 3),` |" in sixteen


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(GOLDEN / "cogvlm-mini", device=DEVICE, dtype="float32")


def answers(vlm: VLM, kernels: str | None) -> tuple[list[list[int]], str]:
    """Ids of answers one by one and together, and the way of a step."""
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device=DEVICE, kernels=kernels, graphs=False)
    image = GOLDEN / "cogvlm-mini" / "image.png"
    prompts = [vlm.processor(image if n else None, text, version="chat") for n, text in enumerate(("Hello", "Who?"))]
    options = SamplingOptions(max_new_tokens=4)
    ids = [row.token_ids for row in engine.answers([Request(prompt.to(DEVICE), options) for prompt in prompts])]
    with engine.occupied() as stepper:
        return ids, stepper.way


@pytest.mark.usefixtures("large_tiles")
def test_an_engine_that_is_asked_decodes_with_them(vlm: VLM) -> None:
    usual, triton = answers(vlm, None), answers(vlm, "triton")
    assert usual[0] == triton[0]
    assert triton[1] == "TritonStep" != usual[1]


@pytest.mark.usefixtures("large_tiles")
def test_a_model_that_they_do_not_serve_is_decoded_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device=DEVICE, dtype="float32")
    apply_lora(vlm.model, LoRASettings(targets=("transformer.layers.*",), rank=2, seed=1))
    with caplog.at_level(logging.WARNING):
        assert answers(vlm, "triton") == answers(vlm, None)
    said = [entry.getMessage() for entry in caplog.records if "Triton's kernels" in entry.getMessage()]
    assert len(said) == 1 and "neither bare nor quantised" in said[0]
