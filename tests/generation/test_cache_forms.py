"""Keys and values that are kept in bf16 or in bytes: the forms, the C kernel that reads them, and whole answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.cache_form import CacheForm
from mixins.kv_cache import KVStore, kv_cache
from mixins.rotary import rotate_half_split, widen
from sat_models.errors import ConfigError
from sat_models.generation.answer import Request
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.generation.steps.native import load
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "cogvlm-mini"
FORMS = list(CacheForm)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [3, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_steps_of_the_largest_number_of_their_vector(width: int, dtype: torch.dtype) -> None:
    x = (random(2, 5, width) * torch.logspace(-6, 6, 5)[:, None]).to(dtype)
    read = CacheForm.INT8.read(CacheForm.INT8.kept(x), torch.float32)
    largest = x.float().abs().amax(dim=-1, keepdim=True)
    assert ((read - x.float()).abs() <= largest / 127 * 0.501).all()
    again = CacheForm.INT8.read(CacheForm.INT8.kept(read), torch.float32)
    torch.testing.assert_close(again, read, rtol=1e-6, atol=0)


def test_zeros_and_what_is_no_number() -> None:
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 3] = float("nan"), float("inf")
    for form in FORMS:
        read = form.read(form.kept(x), torch.float32)
        assert not read[0].any() and not read[1].isfinite().all() and not read[2].isfinite().all()
        assert not form.read(form.room(x, 4), torch.float32).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_store_gives_back_what_it_was_given_and_moves_it(form: CacheForm) -> None:
    k, v = random(2, 3, 5, 16), random(2, 3, 5, 16, seed=1)
    store = KVStore(1, 8, form)
    got = store.append(0, k, v)
    store.advance(5)
    tolerance = {CacheForm.MODEL: 0.0, CacheForm.BF16: 2**-8, CacheForm.INT8: 0.02}[form]
    for part, given in zip(got, (k, v), strict=True):
        assert part.dtype == k.dtype
        torch.testing.assert_close(part, given, rtol=tolerance, atol=tolerance)
    more = store.append(0, k[:, :, :1], v[:, :, :1])[0]
    assert more[:, :, :5].equal(got[0])
    taken = store.extract(1, 2, 5, max_length=4)
    assert taken.form is form and form.read(taken.keys[0][:, :, :3], k.dtype).equal(got[0][1:2, :, 2:])
    store.shift(1)
    store.resize(3, 9)
    other = KVStore(1, 9, form)
    other.length = 3
    other.copy_row(0, taken, 0, 3)
    assert form.read(store.keys[0][1:2, :, 3:6], k.dtype).equal(form.read(other.keys[0][:, :, :3], k.dtype))
    assert store.nbytes * 4 == 3 * 3 * 9 * 2 * {"model": 16 * 16, "bf16": 8 * 16, "int8": 4 * 20}[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("width", [6, 24, 64, 72, 128])
@pytest.mark.parametrize(("rows", "heads", "groups"), [(1, 6, 2), (3, 4, 4), (1, 3, 1)])
def test_the_kernel_reads_and_writes_each_form(
    form: CacheForm, half: bool, width: int, rows: int, heads: int, groups: int
) -> None:
    columns, place, dtype = 40, 29, torch.bfloat16 if half else torch.float32
    old = [random(rows, groups, place, width, seed=seed).to(dtype) for seed in (1, 2)]
    stores = [KVStore(1, columns, form) for _ in range(2)]
    for store in stores:
        store.append(0, *old)
        store.advance(place)
    mixed = (2 * random(rows, heads + 2 * groups, 1, width, seed=3)).to(dtype)
    angles = random(rows, 1, 1, width // 2, seed=4)
    table = widen(angles.cos(), angles.sin())
    query, key = rotate_half_split(mixed[:, : heads + groups], table).split((heads, groups), dim=1)
    keys, values = stores[0].append(0, key, mixed[:, heads + groups :])
    each = heads // groups
    wanted = F.scaled_dot_product_attention(
        query.float(), *(part.float().repeat_interleave(each, dim=1) for part in (keys, values))
    )
    out = torch.empty(rows, heads * width)
    store = stores[1]
    load().attend(
        out, mixed.float().flatten(1), table, store.keys[0], store.values[0], place, None,
        torch.empty(rows * heads * columns), half=half,
    )  # fmt: skip
    rough = half or form is not CacheForm.MODEL  # a number may fall on the other side of a rounding
    torch.testing.assert_close(
        out, wanted.reshape(rows, -1), rtol=0.02 if rough else 1e-5, atol=0.02 if rough else 1e-5
    )
    for mine, torchs in ((store.keys, stores[0].keys), (store.values, stores[0].values)):
        assert mine[0][:, :, :place].equal(torchs[0][:, :, :place]), "nothing else is written"
        read = [form.read(part[0][:, :, place], torch.float32) for part in (mine, torchs)]
        torch.testing.assert_close(*read, rtol=0.02 if rough else 1e-5, atol=0.05 if rough else 1e-5)  # a step of bytes
        assert not mine[0][:, :, place + 1 :].any()


def test_the_kernel_keeps_what_is_no_number() -> None:
    store, mixed = KVStore(1, 4, CacheForm.INT8), random(1, 3 * 16)
    store.append(0, random(1, 1, 1, 16), random(1, 1, 1, 16))
    mixed[0, 40] = float("inf")
    out = torch.empty(1, 16)
    turns = torch.ones(1, 16), torch.zeros(1, 16)
    load().attend(out, mixed, turns, store.keys[0], store.values[0], 1, None, torch.empty(4))
    assert not out.isfinite().any()


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quant", [None, 8])
def test_steps_with_and_without_kernels_agree(form: CacheForm, quant: int | None) -> None:
    vlm = load_pretrained(GOLDEN, device="cpu", dtype="float32", quant=quant, quant_head=False if quant else None)
    layers, found = len(vlm.model.transformer.layers), []
    with kv_cache(vlm.model, 0):
        plain = TokenStep.of(vlm.model)
        for step in (plain, KernelStep.of(plain)):
            store, logits = KVStore(layers, 32, form), []
            for place in range(24):
                ids, at = torch.tensor([5 + 7 * place]), torch.tensor([[place]])
                logits.append(step(ids, at, store, None, max_position=place))
                store.advance(1)
            found.append(torch.cat(logits))
            assert store.keys[0].dtype == {"model": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[form]
    assert ((found[0] - found[1]).norm() / found[0].norm()).item() < (0.02 if quant or form != "model" else 1e-5)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "model"),
        ({"quant": 8}, "int8"),
        ({"quant": 4}, "int8"),
        ({"quant": 8, "cache": "model"}, "model"),
        ({"cache": "bf16"}, "bf16"),
    ],
)
def test_bytes_are_usual_where_weights_are_multiplied_as_bytes(options: dict[str, object], form: str) -> None:
    vlm = load_pretrained(GOLDEN, device="cpu", dtype="float32", **options)
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu")
    with engine.occupied():
        assert engine.new_store(4).form == form


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{"cache": "bf16"}, {"cache": "int8"}, {"quant": 4, "cache": "bf16"}])
def test_answers_alone_in_a_batch_and_after_a_kept_prompt_are_the_same(dtype: str, options: dict[str, object]) -> None:
    vlm = load_pretrained(GOLDEN, device="cpu", dtype=dtype, **options)
    prompt, wanted = (
        vlm.processor(GOLDEN / "image.png", "What is that?", version="chat"),
        SamplingOptions(max_new_tokens=24),
    )
    engine = Engine(vlm.model, eos_id=-5, max_length=256, device="cpu", keep_prefixes=2)
    alone = list(engine.tokens(prompt, wanted))
    assert [row.token_ids for row in engine.answers([Request(prompt, wanted)] * 3)] == [alone] * 3
    again = engine.answer(Request(prompt, wanted))
    assert again.cached_tokens > 0 and ("quant" in options or dtype != "float32" or again.token_ids == alone)


def test_an_unknown_form_is_refused_before_weights_are_read() -> None:
    with pytest.raises(ConfigError, match="cache is 'int4'; allowed: auto, model, bf16, int8"):
        load_pretrained(GOLDEN, cache="int4")
