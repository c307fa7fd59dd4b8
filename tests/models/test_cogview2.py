"""CogView2's three models beside the originals' outputs, and the codes that they write."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import each_folder, reference, tensors

from mixins.grid_window import OUTSIDE, Window, window_scores, window_sum
from sat_models.checkpoint.io import save_checkpoint
from sat_models.errors import ConfigError, InputError
from sat_models.models.build import make_config
from sat_models.sampling.codes import CodeChoice
from sat_models.zoo import load_pretrained
from sat_models.zoo.token_painter import TokenPainter

TOLERANCE = 2e-5
PLACES = {"dsr": "cogview2-dsr", "itersr": "cogview2-itersr", "coglm": "coglm"}
GREEDY = CodeChoice(temperature=0)


def painter(folder: Path, name: str) -> TokenPainter:
    loaded = load_pretrained(folder / PLACES[name], device="cpu", dtype="float32")
    assert isinstance(loaded, TokenPainter)
    return loaded


def whole(one: TokenPainter, golden: dict[str, Tensor], name: str, **how: Any) -> Tensor:
    """Logits [S, V] of a case."""
    ids, positions = golden[f"{name}.ids"][None], golden[f"{name}.position_ids"][None]
    with torch.inference_mode():
        return one.model(input_ids=ids, position_ids=positions, **how)[0][0]


def close(found: Tensor, rows: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(found[rows][:, : golden.shape[1]], golden, atol=TOLERANCE, rtol=0)


@each_folder("cogview2")
def test_coglm(folder: Path) -> None:
    one, golden = painter(folder, "coglm"), tensors(folder)
    for name, weight in (("plain", 0.0), ("attn_plus_1.4", 1.4)):
        logits = whole(one, golden, "coglm", text_weight=weight)
        close(logits, torch.arange(0, len(logits), 7), golden[f"coglm.logits.{name}"])


@each_folder("cogview2")
@pytest.mark.parametrize("name", ["dsr", "itersr"])
def test_super_resolution(folder: Path, name: str) -> None:
    golden = tensors(folder)
    logits = whole(painter(folder, name), golden, name)
    close(logits, torch.arange(0, len(logits), 41), golden[f"{name}.logits"])
    codes = reference(folder)["sizes"]["n_image"]
    assert logits[:, :codes].argmax(-1).equal(golden[f"{name}.argmax"])


@each_folder("cogview2")
@pytest.mark.parametrize("name", PLACES)
def test_names_are_the_originals_and_come_back(folder: Path, name: str, tmp_path: Path) -> None:
    one = painter(folder, name)
    state = one.model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == reference(folder)[f"{name}_names"]
    save_checkpoint(one.model, tmp_path / "saved", one.config, step=1)
    again = load_pretrained(tmp_path / "saved", device="cpu", dtype="float32").model.state_dict()
    assert again.keys() == state.keys() and all(value.equal(again[key]) for key, value in state.items())


@each_folder("cogview2")
def test_the_loop_writes_the_originals_codes(folder: Path) -> None:
    """With a cache, and the text's weight; among the image codes of the set alone."""
    golden, codes = tensors(folder), reference(folder)["sizes"]["n_image"]
    one, length = painter(folder, "coglm"), reference(folder)["coglm"]["context_length"] + 1
    one.model.config.__dict__["image_codes"] = codes
    text, wanted = golden["coglm.ids"][None, :length], golden["coglm.greedy"][length:].tolist()
    written = one.write(text, seed=0, count=len(wanted), text_weight=1.4, choice=GREEDY)
    assert [int(code) for code in written] == wanted
    twice = one.write(text.repeat(2, 1), seed=0, count=5, text_weight=1.4, choice=GREEDY)
    assert [code.tolist() for code in twice] == [[code, code] for code in wanted[:5]]


@each_folder("cogview2")
def test_a_large_image_is_the_likeliest_codes_of_one_forward(folder: Path) -> None:
    golden, start = tensors(folder), reference(folder)["start_of_image"]
    one = painter(folder, "dsr")
    text_end, small_end, _ = one.config.layout
    ids, padding = golden["dsr.ids"][None], reference(folder)["dsr"]["n_pad"]
    large = one.enlarge(ids[:, padding:text_end], ids[:, text_end:small_end], start=start, seed=0, choice=GREEDY)
    assert large.equal(whole(one, golden, "dsr")[small_end:].argmax(-1)[None])


@each_folder("cogview2")
def test_a_pass_makes_its_cells_anew_and_leaves_the_others(folder: Path) -> None:
    golden, start = tensors(folder), reference(folder)["start_of_image"]
    one, padding = painter(folder, "itersr"), reference(folder)["itersr"]["n_pad"]
    first = one.config.first
    text, large = golden["itersr.ids"][None, padding:first], torch.arange(one.config.cells)[None] % 7
    passes = list(one.refine(text, large, start=start, seed=3))
    assert len(passes) == 6 and all(codes.shape == large.shape for codes in passes)
    side = math.isqrt(one.config.cells)
    grids = [codes.view(side, side) for codes in (large, *passes)]
    kept = [int((before == after).sum()) for before, after in itertools.pairwise(grids)]
    assert kept == sorted(kept), "each pass makes fewer cells anew"
    assert all(bool((grid[0::6, 0::6] == grids[0][0::6, 0::6]).all()) for grid in grids), "cells that no pass takes"
    again = list(one.refine(text, large, start=start, seed=3))
    assert passes[-1].equal(again[-1]) and not passes[-1].equal(list(one.refine(text, large, start=start, seed=4))[-1])


def test_windows_see_what_lies_around_a_cell() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 2, 6, 6, 3), torch.randn(1, 2, 2, 2, 3)
    scores = window_scores(queries, keys, Window(3, 1))
    for y in range(6):
        for place, row in enumerate((y // 3 - 1, y // 3, y // 3 + 1)):
            found = scores[0, 1, y, 4, place].item()
            inside = 0 <= row < 2
            assert found == pytest.approx((queries[0, 1, y, 4] @ keys[0, 1, row, 1]).item() if inside else OUTSIDE)
    weights = scores.softmax(-1)
    total = window_sum(weights, keys, Window(3, 1))
    expected = sum(weights[0, 0, 0, 0, place] * keys[0, 0, row, 0] for place, row in ((1, 0), (2, 1)))
    torch.testing.assert_close(total[0, 0, 0, 0], expected)


def test_a_cluster_is_drawn_before_its_code() -> None:
    """Two codes of 0.3 in one cluster beat a single one of 0.4."""
    logits = torch.tensor([[0.4, 0.3, 0.3]]).log().repeat(50, 1)
    choice = CodeChoice(temperature=1.0, best=1, clusters=torch.tensor([0, 1, 1]))
    drawn = choice.draw(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2}
    plain = CodeChoice(temperature=1.0, best=1).draw(logits, torch.Generator().manual_seed(0))
    assert set(plain.tolist()) == {0}
    with pytest.raises(InputError, match="cluster_temperature 0"):
        CodeChoice(cluster_temperature=0)


@each_folder("cogview2")
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    one, short = painter(folder, "dsr"), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(InputError, match="3 codes of a small image were given; this model takes 400"):
        one.enlarge(short, short, start=1, seed=0)
    with pytest.raises(InputError, match="the text has 97 tokens; this model takes 96 at most"):
        one.enlarge(torch.zeros(1, 97, dtype=torch.long), torch.zeros(1, 400, dtype=torch.long), start=1, seed=0)
    with pytest.raises(InputError, match="'write' is not what a DirectSRModel does; its method is 'enlarge'"):
        one.write(short, seed=0)
    with pytest.raises(ValueError, match="3 tokens; a sequence of this model has 4096"):
        one.model(input_ids=short, position_ids=short)
    sizes = one.config.to_dict()
    for change, said in (
        ({"layout": [96, 495, 4096]}, "no square"), ({"layout": [96, 4096]}, "3 ends of parts"),
        ({"kernel_size": 4}, "is odd"), ({"new_sequence_length": 2000}, "leaves 976 positions for 3600 cells"),
        ({"layernorm_order": "pre"}, "these models have 'sandwich'"), ({"image_codes": 481}, "is more than vocab_size"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            make_config({**sizes, **change})
    broken = Path(shutil.copytree(folder / PLACES["coglm"], tmp_path / "broken"))
    data = json.loads((broken / "model_config.json").read_text())
    (broken / "model_config.json").write_text(json.dumps({**data, "num_attention_heads": 3}))
    with pytest.raises(ConfigError, match="hidden_size = 64 is not divisible by 3"):
        load_pretrained(broken, device="cpu")
