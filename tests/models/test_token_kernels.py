"""The C kernels of a decode step against torch, each alone and all together."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.heads import HeadLayout, repeated
from mixins.kv_cache import KVStore, kv_cache
from mixins.rotary import RotaryEmbedding, RotaryRows, choose_rotate, rotate_half_split, widen
from sat_models import c_library
from sat_models.checkpoint.source import Source
from sat_models.errors import ConfigError
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps import kernels as kernel_step
from sat_models.generation.steps import native as token_kernels
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.generation.steps.native import TokenKernels
from sat_models.generation.steps.products import PlainProduct, QuantisedProduct
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def can_compile(folder: Path) -> bool:
    """True if there is a C compiler here that knows OpenMP."""
    (folder / "tried.c").write_text("#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")
    command = ["cc", "-fopenmp", "-shared", "-fPIC", str(folder / "tried.c"), "-o", str(folder / "tried.so")]
    return shutil.which("cc") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> TokenKernels:
    """Where they can be compiled, installing has made them: `pip install -e .` again after a change of the C file."""
    loaded = token_kernels.load()
    if loaded is None and not can_compile(tmp_path_factory.mktemp("compiler")):
        pytest.skip("no C compiler with OpenMP, so no kernels: decoding uses torch's operators")
    assert loaded is not None, "there is a C compiler, but no kernels of this version: pip install -e . makes them"
    return loaded


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


ROWS = [1, 2, 3, 4, 7]


@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm(kernels: TokenKernels, rows: int) -> None:
    x, weight, out = random(rows, 77), random(77), torch.empty(rows, 77)
    kernels.rms_norm(out, x, weight, 1e-5)
    torch.testing.assert_close(out, F.rms_norm(x, (77,), weight, 1e-5), **CLOSE)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [1, 2, 5, 131])
@pytest.mark.parametrize("inputs", [1, 15, 16, 50, 512])
def test_product(kernels: TokenKernels, threads: int, rows: int, outputs: int, inputs: int) -> None:
    weight, x, out = random(outputs, inputs), random(rows, inputs), torch.empty(rows, outputs)
    kernels.product(out, x, weight)
    torch.testing.assert_close(out, x @ weight.T, **CLOSE)
    residual = random(rows, outputs)
    wanted = residual + x @ weight.T
    kernels.product(residual, x, weight, residual=residual)
    torch.testing.assert_close(residual, wanted, **CLOSE)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [1, 3, 8, 129])
@pytest.mark.parametrize("inputs", [7, 64])
def test_gated(kernels: TokenKernels, threads: int, rows: int, outputs: int, inputs: int) -> None:
    gate, up = random(outputs, inputs), random(outputs, inputs) + 1
    x, out = random(rows, inputs), torch.empty(rows, outputs)
    kernels.gated(out, x, gate, up)
    torch.testing.assert_close(out, F.silu(x @ gate.T) * (x @ up.T), **CLOSE)


def turns(rows: int, width: int) -> RotaryRows:
    angles = random(rows, 1, 1, width // 2)
    return widen(angles.cos(), angles.sin())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [6, 16, 24, 64, 72, 128, 256])
@pytest.mark.parametrize("place", [0, 1, 4, 15, 30])
@pytest.mark.parametrize("masked", ["all", "one mask", "a mask for each row"])
def test_attend(kernels: TokenKernels, threads: int, rows: int, width: int, place: int, masked: str) -> None:
    heads, columns = 5, 40
    mixed = 3 * random(rows, 3 * heads * width)
    keys, values = random(rows + 1, heads, columns, width), random(rows + 1, heads, columns, width)
    before, out = [keys.clone(), values.clone()], torch.empty(rows, heads * width)
    may_look = None
    if masked != "all":  # columns of a longer mask, as a lane has it
        lines = rows if masked == "a mask for each row" else 1
        may_look = (random(lines, 1, 1, 50) > 0)[..., : place + 1]
        may_look[..., place] = True

    parts, table = mixed.view(rows, 3 * heads, 1, width), turns(rows, width)
    query, key = rotate_half_split(parts[:, : 2 * heads], table).split(heads, dim=1)
    for cache, new in zip(before, (key, parts[:, 2 * heads :]), strict=True):
        cache[:rows, :, place] = new[:, :, 0]
    wanted = F.scaled_dot_product_attention(query, *(cache[:rows, :, : place + 1] for cache in before), may_look)

    kernels.attend(out, mixed, table, keys, values, place, may_look, torch.empty(rows * heads * columns))
    torch.testing.assert_close(out, wanted.reshape(rows, -1), **CLOSE)
    torch.testing.assert_close(keys, before[0], **CLOSE)
    assert torch.equal(values, before[1]), "nothing else is written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [8, 24], ids=["a third of a head", "whole heads"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("rows, heads, groups", [(1, 6, 2), (3, 6, 2), (1, 6, 1), (2, 4, 4)])
def test_attend_with_shared_keys_and_other_turns(
    kernels: TokenKernels, threads: int, rows: int, heads: int, groups: int, interleaved: bool, turned: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """With fewer groups of queries than threads, and with more."""
    width, columns, place = 24, 40, 29
    layout = HeadLayout(
        num_heads=heads, num_kv_heads=groups, head_dim=width, rotary_dim=turned, interleaved=interleaved
    )
    parts = random(rows, layout.row_heads, 1, width).to(dtype)
    keys, values = (random(rows, groups, columns, width).to(dtype) for _ in range(2))
    before, out = [keys.clone(), values.clone()], torch.empty(rows, heads * width)
    table = RotaryEmbedding.of(layout).rows(torch.arange(rows)[:, None] + 5, 30)

    query, key = choose_rotate(parts, layout)(parts[:, : heads + groups], table).split((heads, groups), dim=1)
    for cache, new in zip(before, (key, parts[:, heads + groups :]), strict=True):
        cache[:, :, place] = new[:, :, 0]
    seen = (repeated(cache[:, :, : place + 1].float(), heads) for cache in before)
    wanted = F.scaled_dot_product_attention(query.float(), *seen)

    kernels.attend(
        out, parts.float().flatten(1), table, keys, values, place, None, torch.empty(rows * heads * columns),
        neighbours=interleaved,
    )  # fmt: skip
    close = CLOSE if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(out, wanted.reshape(rows, -1), **close)
    torch.testing.assert_close(keys.float(), before[0].float(), **close)
    assert torch.equal(values, before[1]), "nothing else is written"


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e4])
def test_weights_of_attention_are_those_of_softmax(kernels: TokenKernels, spread: float) -> None:
    """However far apart the scores lie: the values are unit vectors, so the result shows the weights."""
    width = columns = 256
    keys, values = spread * random(1, 1, columns, width) / 16, torch.eye(width)[None, None].clone()
    mixed, none = random(1, 3 * width), (torch.ones(1, width), torch.zeros(1, width))
    out = torch.empty(1, width)
    kernels.attend(out, mixed, none, keys, values, columns - 1, None, torch.empty(columns))
    scores = (keys[0, 0].double() @ mixed[0, :width].double()) / 16
    wanted = scores.softmax(0)[:-1]  # the last value is the new one, and no unit vector
    wanted = wanted + scores.softmax(0)[-1] * mixed[0, 2 * width : -1].double()
    torch.testing.assert_close(out[0, :-1].double(), wanted, atol=1e-6, rtol=2e-4)


def test_sums_depend_neither_on_the_threads_nor_on_other_rows(kernels: TokenKernels) -> None:
    weight, x = random(101, 300), random(7, 300)
    found, before = [], torch.get_num_threads()
    try:
        for count, rows in ((1, 7), (2, 7), (5, 7), (2, 3), (1, 1)):
            torch.set_num_threads(count)
            found.append(torch.empty(rows, 101))
            kernels.product(found[-1], x[:rows], weight)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0][: len(each)]) for each in found)


def test_what_is_not_a_number_stays_visible(kernels: TokenKernels) -> None:
    """The sampler must see it."""
    for place in (3, 19):
        keys, values, out = random(1, 1, 20, 16), random(1, 1, 20, 16), torch.empty(1, 16)
        keys[0, 0, 1, 3] = math.nan
        kernels.attend(out, random(1, 48), turns(1, 16), keys, values, place, None, torch.empty(20))
        assert out.isnan().all()
    for bad in (math.nan, math.inf):
        weight = random(6, 16)
        weight[2, 2] = bad
        out = torch.empty(1, 6)
        kernels.product(out, random(1, 16), weight)
        assert out[0].isfinite().tolist() == [True, True, False, True, True, True]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")


def step_of(vlm: VLM) -> Any:
    with Engine(vlm.model, eos_id=-5, max_length=64, device="cpu").occupied() as step:
        return step._flat


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_gives_what_torch_gives(kernels: TokenKernels, vlm: VLM, rows: int) -> None:
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        found = []
        for step in (plain, KernelStep.of(plain)):
            store, logits = KVStore(len(vlm.model.transformer.layers), 24), []
            for place in range(20):
                mask = torch.arange(place + 1)[None, None, None] > torch.arange(rows).view(-1, 1, 1, 1)
                ids, at = 5 + place + torch.arange(rows), torch.full((rows, 1), place)
                logits.append(step(ids, at, store, mask if 5 < place < 9 else None, max_position=place))
                store.advance(1)
            found.append((logits, [part[:, :, :20] for part in (*store.keys, *store.values)]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@torch.inference_mode()
def test_what_the_step_behind_it_is_for(kernels: TokenKernels, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full cache is refused, an empty one is begun, and many rows are left to torch."""
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        step, layers = KernelStep.of(plain), len(vlm.model.transformer.layers)
        store = KVStore(layers, 2)
        for place in range(2):
            step(torch.tensor([7]), torch.tensor([[place]]), store, None, max_position=place)
            store.advance(1)
        with pytest.raises(ValueError, match="the cache holds 2 tokens"):
            step(torch.tensor([7]), torch.tensor([[2]]), store, None, max_position=2)
        store.truncate(1)
        monkeypatch.setattr(kernel_step, "MAX_ROWS", 0)
        monkeypatch.setattr(step, "_kernels", None)
        assert step(torch.tensor([7]), torch.tensor([[1]]), store, None, max_position=1).isfinite().all()


def exchange(weight: str, model: Any) -> None:
    """The second layer's query_key_value with another weight."""
    linear = model.transformer.layers[1].attention.query_key_value
    given = linear.weight.detach()
    made = {
        "strides": given.T.contiguous().T,
        "dtype": given.half(),
        "class": given.as_subclass(type("Other", (Tensor,), {})),
    }
    linear.weight = torch.nn.Parameter(made[weight], requires_grad=False)


@pytest.mark.parametrize("weight", ["strides", "dtype", "class"])
def test_unlike_weights_are_left_to_torch(kernels: TokenKernels, weight: str) -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")
    exchange(weight, vlm.model)
    assert type(step_of(vlm)) is TokenStep


def test_wide_heads_and_other_activations_are_left_to_torch(
    kernels: TokenKernels, vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(vlm.model.transformer.layers[0].mlp, "activation_func", F.gelu)
        assert type(step_of(vlm)) is TokenStep
    with monkeypatch.context() as patch:
        patch.setattr(kernel_step, "MAX_HEAD_DIM", 1)
        assert type(step_of(vlm)) is TokenStep
    assert type(step_of(vlm)) is KernelStep


@torch.inference_mode()
@pytest.mark.parametrize(
    "case", ["dtype of the cache", "strides of the cache", "one position for all", "mask", "device"]
)
def test_what_a_caller_may_give(kernels: TokenKernels, vlm: VLM, case: str) -> None:
    """Autocast makes caches of another dtype; the others are what the step behind it takes too."""
    layers, rows = len(vlm.model.transformer.layers), 3
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        logits = []
        for step in (plain, KernelStep.of(plain)):
            store = KVStore(layers, 8)
            for place in range(4):
                at, mask = torch.full((rows, 1), place), None
                if case == "one position for all":
                    at = at[:1]
                if case == "mask":
                    mask = torch.ones(rows, 1, 1, 2 * (place + 1), dtype=torch.bool)[..., ::2]
                with torch.device("meta") if case == "device" and place else nullcontext():
                    found = step(torch.tensor([5, 6, 7], device="cpu"), at, store, mask, max_position=place)
                store.advance(1)
                if case == "strides of the cache" and place == 0:
                    for parts in (store.keys, store.values):
                        parts[:] = [part.mT.contiguous().mT for part in parts]
            logits.append(found)
    torch.testing.assert_close(logits[1], logits[0], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_makes_another_cache(
    kernels: TokenKernels, vlm: VLM, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, found = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu"), []
    prompt = vlm.processor(GOLDEN / "cogvlm-mini" / "image.png", "What is that?", version="chat")
    for loaded in (kernels, None):
        monkeypatch.setattr(kernel_step, "load", lambda loaded=loaded: loaded)
        with torch.autocast("cpu", dtype=dtype):
            found.append(list(engine.tokens(prompt, SamplingOptions(max_new_tokens=20))))
    assert found[0] == found[1]


def test_answers_are_those_of_torch(kernels: TokenKernels, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(step_of(vlm)) is KernelStep
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    prompt = vlm.processor(GOLDEN / "cogvlm-mini" / "image.png", "What is that?", version="chat")
    ids = list(engine.tokens(prompt, SamplingOptions(max_new_tokens=40)))
    monkeypatch.setattr(kernel_step, "load", lambda: None)
    assert type(step_of(vlm)) is TokenStep
    assert list(engine.tokens(prompt, SamplingOptions(max_new_tokens=40))) == ids


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_take_the_kernels_too(bits: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype=dtype, quant=bits)
    assert type(step_of(vlm)) is KernelStep
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    prompt = vlm.processor(GOLDEN / "cogvlm-mini" / "image.png", "What is that?", version="chat")
    options = SamplingOptions(max_new_tokens=40)
    ids = list(engine.tokens(prompt, options))
    assert [row.token_ids for row in engine.answers([Request(prompt, options)] * 3)] == [ids] * 3
    if dtype == "float32":  # the same products of bytes, with torch's operators in between
        vlm.model.quantised_head = False
        ids = list(engine.tokens(prompt, options))
        monkeypatch.setattr(kernel_step, "load", lambda: None)
        assert type(step_of(vlm)) is TokenStep
        assert list(engine.tokens(prompt, options)) == ids


def test_the_output_projection_is_quantised_with_the_linears_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def head(**options: object) -> object:
        vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32", **options)
        return step_of(vlm)._head

    assert isinstance(head(), PlainProduct) and isinstance(head(quant=8, quant_head=False), PlainProduct)
    made = head(quant=4)
    assert isinstance(made, QuantisedProduct) and made.weight.bits == 8
    with pytest.raises(ConfigError, match="quant_head is for models whose linears are quantised"):
        head(quant_head=True)
    with monkeypatch.context() as patch:  # before any weight is read
        patch.setattr(Source, "load", lambda *_: pytest.fail("weights were read"))
        with pytest.raises(ConfigError, match="quant_head is for"):
            head(quant_head=True)


def test_the_output_projection_is_made_once_and_again_when_the_weight_changes() -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32", quant=8)
    first = step_of(vlm)._head.weight
    assert step_of(vlm)._head.weight is first
    with torch.no_grad():
        vlm.model.get_mixin("lm").lm_head.weight.mul_(2)
    assert not step_of(vlm)._head.weight.scales.equal(first.scales)


def test_quantised_linears_with_a_bias_or_a_listener_are_left_to_torch() -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32", quant=8)
    linear = vlm.model.transformer.layers[0].attention.dense
    linear.bias = torch.nn.Parameter(torch.zeros(len(linear.weight)))
    assert type(step_of(vlm)) is TokenStep


def half(x: Tensor) -> Tensor:
    return x.bfloat16().float()


class TestBf16:
    """Weights and caches in bf16; sums in fp32, results rounded."""

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize(("outputs", "inputs"), [(1, 5), (6, 16), (131, 300)])
    def test_products(self, kernels: TokenKernels, threads: int, rows: int, outputs: int, inputs: int) -> None:
        weight, up = random(outputs, inputs).bfloat16(), (random(outputs, inputs) + 1).bfloat16()
        x, residual, out = half(random(rows, inputs)), half(random(rows, outputs)), torch.empty(rows, outputs)
        sums = half(x @ weight.float().T)
        kernels.product(out, x, weight)
        self.same_but_for_the_last_bit(out, sums)
        kernels.product(out, x, weight, residual=residual)
        self.same_but_for_the_last_bit(out, half(residual + sums))
        kernels.gated(out, x, weight, up)
        self.same_but_for_the_last_bit(out, half(half(F.silu(sums)) * half(x @ up.float().T)))

    def test_rms_norm(self, kernels: TokenKernels) -> None:
        x, weight, out = half(random(2, 77)), random(77).bfloat16(), torch.empty(2, 77)
        kernels.rms_norm(out, x, weight, 1e-5)
        self.same_but_for_the_last_bit(out, F.rms_norm(x.bfloat16(), (77,), weight, 1e-5).float())

    @pytest.mark.parametrize("width", [6, 24, 64, 128])
    @pytest.mark.parametrize("place", [0, 15, 30])
    def test_attend(self, kernels: TokenKernels, threads: int, width: int, place: int) -> None:
        rows, heads, columns = 2, 5, 40
        mixed = half(3 * random(rows, 3 * heads * width))
        caches = [random(rows, heads, columns, width).bfloat16() for _ in range(2)]
        parts, table = mixed.view(rows, 3 * heads, 1, width), turns(rows, width)
        query, key = rotate_half_split(parts[:, : 2 * heads].bfloat16(), table).split(heads, dim=1)
        wanted = [cache.clone() for cache in caches]
        for cache, new in zip(wanted, (key, parts[:, 2 * heads :]), strict=True):
            cache[:, :, place] = new[:, :, 0]
        found = F.scaled_dot_product_attention(
            query.float(), *(cache[:, :, : place + 1].float() for cache in wanted)
        ).reshape(rows, -1)
        out, scores = torch.empty(rows, heads * width), torch.empty(rows * heads * columns)
        kernels.attend(out, mixed, table, *caches, place, None, scores, half=True)
        self.same_but_for_the_last_bit(out, half(found), zero=1e-6)
        self.same_but_for_the_last_bit(caches[0].float(), wanted[0].float())
        assert torch.equal(caches[1], wanted[1])

    @staticmethod
    def same_but_for_the_last_bit(a: Tensor, b: Tensor, zero: float = 1e-6) -> None:
        """Sums in another order may fall on the other side of a rounding: rarely, and by one step of bf16."""
        assert torch.equal(a, half(a)), "rounded"
        torch.testing.assert_close(a, b, rtol=2**-7, atol=zero)
        assert (a == b).float().mean() > 0.9 or a.numel() < 20

    def test_rounds_as_torch_does(self, kernels: TokenKernels) -> None:
        """To the nearest, to the even one of two, and to infinity; not a number stays that."""
        x = torch.tensor([1.00390625, 1.01171875, 1.0039063, -1.00390625, 3.4e38, 1e-40, math.inf, math.nan])[:, None]
        out = torch.empty(len(x), 1)
        kernels.product(out, x, torch.ones(1, 1, dtype=torch.bfloat16))
        torch.testing.assert_close(out, half(x), rtol=0, atol=0, equal_nan=True)

    @torch.inference_mode()
    def test_a_step_is_as_near_to_fp32_as_torch_is(self, kernels: TokenKernels, vlm: VLM) -> None:
        other = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="bfloat16").model
        exact = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32").model
        exact.load_state_dict({name: weight.float() for name, weight in other.state_dict().items()})
        exact.get_mixin("rotary").rotary_emb.rows = other.get_mixin("rotary").rotary_emb.rows

        def logits(step: Any, layers: int) -> Tensor:
            store, found = KVStore(layers, 64), []
            for place in range(48):
                ids, at = torch.tensor([5 + 7 * place]), torch.tensor([[place]])
                found.append(step(ids, at, store, None, max_position=place).float())
                store.advance(1)
            return torch.cat(found)

        with kv_cache(exact, 0), kv_cache(other, 0):
            plain = TokenStep.of(other)
            steps = (TokenStep.of(exact), plain, KernelStep.of(plain))
            right, torchs, ours = (logits(step, len(exact.transformer.layers)) for step in steps)
        assert (ours - right).std() < 1.1 * (torchs - right).std() < 0.02 * right.std()

    def test_answers_in_a_batch_are_those_of_one_by_one(self, kernels: TokenKernels) -> None:
        vlm = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="bfloat16")
        assert type(step_of(vlm)) is KernelStep
        engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
        prompt = vlm.processor(GOLDEN / "cogvlm-mini" / "image.png", "What is that?", version="chat")
        options = SamplingOptions(max_new_tokens=40)
        alone = engine.answer(Request(prompt, options))
        assert [row.token_ids for row in engine.answers([Request(prompt, options)] * 3)] == [alone.token_ids] * 3


def test_says_why_there_are_none(
    kernels: TokenKernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    load = token_kernels.load.__wrapped__
    monkeypatch.setattr(c_library, "_source", lambda package, name: b"int other;")
    assert load() is None and "another version" in caplog.text
    (tmp_path / "library.so").write_bytes(b"no library")
    spec = SimpleNamespace(origin=str(tmp_path / "library.so"))
    monkeypatch.setattr(c_library, "find_spec", lambda name: spec)
    assert load() is None and "cannot be loaded" in caplog.text
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(c_library, "find_spec", lambda name: None)
        assert load() is None and "no C kernels" in caplog.text
