"""The C kernels of a decode step against torch, each alone and all together."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.kv_cache import KVStore, kv_cache
from mixins.rotary import RotaryRows, rotate_half_split, widen
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.models import kernel_step, token_kernels
from sat_models.models.kernel_step import KernelStep
from sat_models.models.token_kernels import TokenKernels
from sat_models.models.token_step import TokenStep
from sat_models.vlm import VLM
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def kernels() -> TokenKernels:
    """Where there is a C compiler, installing has made them: `pip install -e .` again after a change of the C file."""
    loaded = token_kernels.load()
    if loaded is None and shutil.which("cc") is None:
        pytest.skip("no C compiler, so no kernels: decoding uses torch's operators")
    assert loaded is not None, "there is a C compiler, but pip installed no kernels"
    return loaded


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_rms_norm(kernels: TokenKernels) -> None:
    x, weight, out = random(77), random(77), torch.empty(77)
    kernels.rms_norm(out, x, weight, 1e-5)
    torch.testing.assert_close(out, F.rms_norm(x, (77,), weight, 1e-5), **CLOSE)


@pytest.mark.parametrize("outputs", [1, 2, 5, 64, 131])
@pytest.mark.parametrize("inputs", [1, 15, 16, 50, 512])
def test_product(kernels: TokenKernels, threads: int, outputs: int, inputs: int) -> None:
    weight, x, out = random(outputs, inputs), random(inputs), torch.empty(outputs)
    kernels.product(out, x, weight)
    torch.testing.assert_close(out, weight @ x, **CLOSE)
    residual = random(outputs)
    wanted = residual + weight @ x
    kernels.product(residual, x, weight, residual=residual)
    torch.testing.assert_close(residual, wanted, **CLOSE)


@pytest.mark.parametrize("outputs", [1, 3, 8, 129])
@pytest.mark.parametrize("inputs", [7, 64])
def test_gated(kernels: TokenKernels, threads: int, outputs: int, inputs: int) -> None:
    gate, up, x, out = random(outputs, inputs), random(outputs, inputs) + 1, random(inputs), torch.empty(outputs)
    kernels.gated(out, x, gate, up)
    torch.testing.assert_close(out, F.silu(gate @ x) * (up @ x), **CLOSE)


def turns(width: int) -> RotaryRows:
    angles = random(width // 2)
    return widen(angles.cos(), angles.sin())


@pytest.mark.parametrize("width", [6, 16, 64, 72, 128, 256])
@pytest.mark.parametrize("place", [0, 1, 4, 30])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_attend(kernels: TokenKernels, threads: int, width: int, place: int, masked: bool) -> None:
    heads, columns = 5, 40
    mixed, keys, values = random(3 * heads * width), random(2, heads, columns, width), random(2, heads, columns, width)
    before, out, scores = [keys.clone(), values.clone()], torch.empty(heads * width), torch.empty(heads * columns)
    may_look = (torch.arange(place + 1) % 3 != 1) | (torch.arange(place + 1) == place) if masked else None

    parts, rows = mixed.view(1, 3 * heads, 1, width), turns(width)
    query, key = rotate_half_split(parts[:, : 2 * heads], rows).split(heads, dim=1)
    for cache, new in zip(before, (key, parts[:, 2 * heads :]), strict=True):
        cache[0, :, place] = new[0, :, 0]
    look = None if may_look is None else may_look[None]
    wanted = F.scaled_dot_product_attention(query, *(cache[:1, :, : place + 1] for cache in before), look)

    kernels.attend(out, mixed, rows, keys, values, place, may_look, scores)
    torch.testing.assert_close(out, wanted.flatten(), **CLOSE)
    torch.testing.assert_close(keys, before[0], **CLOSE)
    assert torch.equal(values, before[1]), "nothing else is written"


def test_sums_do_not_depend_on_the_threads(kernels: TokenKernels) -> None:
    weight, x = random(101, 300), random(300)
    found, before = [], torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(torch.empty(101))
        kernels.product(found[-1], x, weight)
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_not_a_number_stays_visible(kernels: TokenKernels) -> None:
    """The sampler must see it."""
    keys, out = random(1, 1, 4, 16), torch.empty(16)
    keys[0, 0, 1, 3] = math.nan
    kernels.attend(out, random(48), turns(16), keys, random(1, 1, 4, 16), 3, None, torch.empty(4))
    assert out.isnan().all()
    for bad in (math.nan, math.inf):
        weight = random(6, 16)
        weight[2, 2] = bad
        kernels.product(out, random(16), weight)
        assert out[:6].isfinite().tolist() == [True, True, False, True, True, True]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="float32")


def step_of(vlm: VLM) -> Any:
    with Engine(vlm.model, eos_id=-5, max_length=64, device="cpu").occupied() as step:
        return step._flat


@torch.inference_mode()
def test_a_step_gives_what_torch_gives(kernels: TokenKernels, vlm: VLM) -> None:
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        found = []
        for step in (plain, KernelStep.of(plain)):
            store, logits = KVStore(len(vlm.model.transformer.layers), 24), []
            for place in range(20):
                mask = torch.arange(place + 1)[None, None, None] > 1 if 5 < place < 9 else None
                ids, at = torch.tensor([5 + place]), torch.tensor([[place]])
                logits.append(step(ids, at, store, mask, max_position=place))
                store.advance(1)
            found.append((logits, [part[:, :, :20] for part in (*store.keys, *store.values)]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@torch.inference_mode()
def test_a_full_cache_is_refused_and_several_rows_are_taken(kernels: TokenKernels, vlm: VLM) -> None:
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        step, store = KernelStep.of(plain), KVStore(len(vlm.model.transformer.layers), 2)
        for place in range(2):
            step(torch.tensor([7]), torch.tensor([[place]]), store, None, max_position=place)
            store.advance(1)
        with pytest.raises(ValueError, match="the cache holds 2 tokens"):
            step(torch.tensor([7]), torch.tensor([[2]]), store, None, max_position=2)
        stores = [KVStore(len(vlm.model.transformer.layers), 2) for _ in range(2)]
        ids, at = torch.tensor([7, 9]), torch.zeros(2, 1, dtype=torch.long)
        both = [each(ids, at, kept, None, max_position=0) for each, kept in zip((plain, step), stores, strict=True)]
        assert both[0].shape == (2, vlm.model.config.vocab_size)
        torch.testing.assert_close(*both, **CLOSE)


def test_answers_are_those_of_torch(kernels: TokenKernels, vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(step_of(vlm)) is KernelStep
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    prompt = vlm.processor(GOLDEN / "cogvlm-mini" / "image.png", "What is that?", version="chat")
    ids = list(engine.tokens(prompt, SamplingOptions(max_new_tokens=40)))
    monkeypatch.setattr(kernel_step, "load", lambda: None)
    assert type(step_of(vlm)) is TokenStep
    assert list(engine.tokens(prompt, SamplingOptions(max_new_tokens=40))) == ids


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float32", "quant": 8}], ids=["bf16", "8 bits"])
def test_other_weights_are_multiplied_by_torch(options: dict[str, Any]) -> None:
    assert type(step_of(load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", **options))) is TokenStep


def test_says_why_there_are_none(
    kernels: TokenKernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    load = token_kernels.load.__wrapped__
    monkeypatch.setattr(token_kernels, "_LAYOUT", -1)
    assert load() is None and "another version" in caplog.text
    (tmp_path / "library.so").write_bytes(b"no library")
    spec = SimpleNamespace(origin=str(tmp_path / "library.so"))
    monkeypatch.setattr(token_kernels, "find_spec", lambda name: spec)
    assert load() is None and "cannot be loaded" in caplog.text
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(token_kernels, "find_spec", lambda name: None)
        assert load() is None and "no C kernels" in caplog.text
