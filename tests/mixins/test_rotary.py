"""Rotary positions against the originals' tables, and the fast kernel against the plain one."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import SET

from mixins.heads import HeadLayout
from mixins.rotary import RotaryEmbedding, choose_rotate, rotate_half_split, rotate_neighbours
from mixins.rotary_triton import rotate_triton

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(SET.glob("rotary_table_head*_*.safetensors"))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(params=DTYPES)
def name(request: pytest.FixtureRequest) -> str:
    """Each dtype in turn, as the golden file names it."""
    return request.param


class Golden:
    """A table of the originals: its name says the width of a head and the number of rows."""

    def __init__(self, file: Path) -> None:
        self.head_dim, self.rows = map(int, re.fullmatch(r"rotary_table_head(\d+)_(\d+)", file.stem).groups())
        self.tables = load_file(file)

    def check(self, cos: Tensor, sin: Tensor, name: str) -> None:
        assert torch.equal(cos, self.tables[f"cos_{name}"][: len(cos)])
        assert torch.equal(sin, self.tables[f"sin_{name}"][: len(sin)])


@pytest.fixture(params=TABLES or [None], ids=lambda file: file.stem if file else "none")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each table of the set in turn."""
    if request.param is None:
        pytest.skip(f"the set {SET} has no rotary_table_head*")
    return Golden(request.param)


def test_the_table_is_the_originals_bit_for_bit(golden: Golden, name: str) -> None:
    table = RotaryEmbedding(golden.head_dim).to(DTYPES[name]).table(golden.rows)
    assert len(table[0]) == golden.rows
    golden.check(*table, name)


def test_growing_changes_no_row(golden: Golden, name: str) -> None:
    embedding = RotaryEmbedding(golden.head_dim).to(DTYPES[name])
    golden.check(*embedding.table(1), name)
    golden.check(*embedding.table(5), name)
    kept = embedding._table[0]
    golden.check(*embedding.table(3), name)
    assert embedding._table[0] is kept, "a shorter table must not be computed anew"
    golden.check(*embedding.table(golden.rows), name)


def test_casting_the_model_makes_the_table_anew(golden: Golden) -> None:
    embedding = RotaryEmbedding(golden.head_dim)
    golden.check(*embedding.table(golden.rows), "fp32")
    embedding.to(torch.bfloat16)
    # inv_freq goes fp32 -> bf16 once, as when a checkpoint is cast
    golden.check(*embedding.table(golden.rows), "bf16")


def test_bf16_positions_collide_as_the_released_weights_know_them() -> None:
    cos, sin = RotaryEmbedding(128).to(torch.bfloat16).table(2048)
    assert len(torch.unique(torch.cat((cos, sin), dim=1).float(), dim=0)) == 641


def test_an_fp32_table_can_be_asked_for(golden: Golden) -> None:
    embedding = RotaryEmbedding(golden.head_dim, table_dtype=torch.float32).to(torch.bfloat16)
    assert embedding.inv_freq.dtype == torch.bfloat16
    golden.check(*embedding.table(golden.rows), "fp32")
    assert RotaryEmbedding(128).table_dtype is None, "it is never chosen silently"


def test_rows_follow_the_position_ids(golden: Golden) -> None:
    """Image tokens share position 2; rows of a batch may differ."""
    positions = torch.tensor([[0, 1, 2, 2, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    width, middle = golden.head_dim, golden.head_dim // 2
    cos, sin = RotaryEmbedding(width).rows(positions, 6)
    assert cos.shape == sin.shape == (2, 1, 7, width)
    for half, sign in ((slice(middle), -1), (slice(middle, width), 1)):
        assert torch.equal(cos[:, 0, :, half], golden.tables["cos_fp32"][positions])
        assert torch.equal(sin[:, 0, :, half], sign * golden.tables["sin_fp32"][positions])


def test_a_position_beyond_the_stated_bound_is_an_error() -> None:
    with pytest.raises(IndexError):
        RotaryEmbedding(128).rows(torch.tensor([[0, 5]]), 4)


def test_a_table_made_in_inference_mode_serves_training() -> None:
    embedding = RotaryEmbedding(8)
    with torch.inference_mode():
        embedding.table(4)
    x = torch.randn(1, 1, 4, 8, requires_grad=True)
    rotate_half_split(x, embedding.rows(torch.arange(4)[None], 3)).sum().backward()
    assert x.grad is not None


def test_the_table_is_no_part_of_the_checkpoint() -> None:
    embedding = RotaryEmbedding(128)
    embedding.table(4)
    assert list(embedding.state_dict()) == ["inv_freq"]


def test_rotation_is_that_of_complex_numbers() -> None:
    embedding = RotaryEmbedding(16)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 2, 7]])
    angle = positions[..., None].double() * embedding.inv_freq.double()
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    found = rotate_half_split(x.float(), embedding.rows(positions, 7))
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)


def test_scores_depend_on_distance_alone() -> None:
    embedding = RotaryEmbedding(32)
    query, key = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def score(at_query: int, at_key: int) -> Tensor:
        rows = [embedding.rows(torch.tensor([[at]]), at) for at in (at_query, at_key)]
        return (rotate_half_split(query, rows[0]) * rotate_half_split(key, rows[1])).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), atol=1e-4, rtol=0)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_rotation_is_done_in_fp32_and_cast_back(name: str) -> None:
    rows = RotaryEmbedding(64).to(DTYPES[name]).rows(torch.arange(11)[None], 10)
    x = torch.randn(2, 3, 11, 64).to(DTYPES[name])
    found = rotate_half_split(x, rows)
    assert found.dtype == x.dtype
    precise = rotate_half_split(x.float(), (rows[0].float(), rows[1].float()))
    assert torch.equal(found, precise.to(x.dtype))


def test_the_cpu_takes_the_plain_rotation() -> None:
    with torch.inference_mode():
        assert choose_rotate(torch.zeros(1)) is rotate_half_split


@pytest.mark.skipif(rotate_triton is None, reason="no GPU, hence no Triton: torch's GPU builds bring it")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestKernelOnGPU:
    @pytest.mark.parametrize("batch_rows", [1, 2])
    def test_equals_the_plain_rotation(self, name: str, batch_rows: int) -> None:
        rows, x = kernel_case(DTYPES[name], batch_rows, "cuda")
        torch.testing.assert_close(rotate_triton(x, rows), rotate_half_split(x, rows), atol=0, rtol=1.6e-2)

    def test_is_chosen_only_without_gradients(self) -> None:
        x = torch.zeros(1, device="cuda")
        assert choose_rotate(x) is rotate_half_split
        with torch.inference_mode():
            assert choose_rotate(x) is rotate_triton


def kernel_case(dtype: torch.dtype, batch_rows: int, device: str) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows for 1 or 2 batch rows, and a query that is a view, as attention makes it. Head dim is no power of two."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 2, 3], [0, 5, 6, 7, 300]])[:batch_rows]
    rows = RotaryEmbedding(24).to(device=device, dtype=dtype).rows(positions.to(device), 300)
    x = torch.randn(2, 5, 3, 24, generator=generator).to(device=device, dtype=dtype).transpose(1, 2)
    return rows, x


@pytest.mark.skipif(rotate_triton is None, reason="no GPU, hence no Triton: torch's GPU builds bring it")
def test_the_kernel_through_tritons_interpreter() -> None:
    """The kernel's arithmetic and addressing, without a GPU."""
    code = """
import torch
from mixins.rotary import RotaryEmbedding, rotate_half_split
from mixins.rotary_triton import rotate_triton
from test_rotary import kernel_case
for dtype in (torch.float32, torch.float16):
    for batch_rows in (1, 2):
        rows, x = kernel_case(dtype, batch_rows, "cpu")
        torch.testing.assert_close(rotate_triton(x, rows), rotate_half_split(x, rows), atol=1e-6, rtol=1e-3)
"""
    here = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(here)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def turned_one_by_one(x: Tensor, positions: Tensor, pairs: list[tuple[int, int]], width: int, base: float) -> Tensor:
    """The plain formula, number by number: pair i turns by position · base^(-2i/width)."""
    out = x.clone()
    for token, position in enumerate(positions.tolist()):
        for i, (a, b) in enumerate(pairs):
            angle = position * base ** (-2 * i / width)
            first, second = x[..., token, a], x[..., token, b]
            out[..., token, a] = first * math.cos(angle) - second * math.sin(angle)
            out[..., token, b] = second * math.cos(angle) + first * math.sin(angle)
    return out


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("width", [8, 16], ids=["half of the head", "the whole head"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
def test_every_form_of_rotation_is_the_plain_formula(interleaved: bool, width: int, base: float) -> None:
    heads = HeadLayout(
        num_heads=3, num_kv_heads=1, head_dim=16, rope_theta=base, rotary_dim=width, interleaved=interleaved
    )
    x, positions = torch.randn(2, 4, 5, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 37])
    embedding = RotaryEmbedding.of(heads)
    found = choose_rotate(x, heads)(x.float(), embedding.rows(positions[None], 37))
    half = width // 2
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    expected = turned_one_by_one(x, positions, pairs, width, base)
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)
    assert torch.equal(found[..., width:], x[..., width:].float()), "the rest of a head passes"


def test_neighbours_are_rotated_in_fp32_and_cast_back(name: str) -> None:
    rows = RotaryEmbedding(64, interleaved=True).to(DTYPES[name]).rows(torch.arange(11)[None], 10)
    x = torch.randn(2, 3, 11, 64).to(DTYPES[name])
    found = rotate_neighbours(x, rows)
    assert torch.equal(found, rotate_neighbours(x.float(), rows).to(x.dtype)) and found.dtype == x.dtype
