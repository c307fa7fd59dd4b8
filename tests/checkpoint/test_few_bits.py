"""Text encoders in few bits: what is read a linear at a time is what the whole would have become, in less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.checkpoint.few_bits import load_in_few_bits
from sat_models.errors import CheckpointError
from sat_models.models.common.quantised import quantise_linears

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cogview3-plus-mini" / "sat" / "t5-v1_1-xxl"
PEAK = """
import sys
from pathlib import Path
import torch, transformers
from sat_models.checkpoint.few_bits import load_in_few_bits
from sat_models.checkpoint.memory import AnonymousPeak
from sat_models.models.common.quantised import quantise_linears
folder, way, bits = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
quantise_linears(torch.nn.Sequential(torch.nn.Linear(64, 64)), bits)  # what is imported for it stays
sizes = transformers.T5Config.from_pretrained(folder)
with AnonymousPeak() as peak:
    if way == "whole":
        model = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
        quantise_linears(model, bits)
    else:
        model = load_in_few_bits(lambda: transformers.T5EncoderModel(sizes), folder, bits=bits, dtype=torch.float32)
print("peak", peak.bytes, sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()]))
"""


@pytest.mark.parametrize("bits", [8, 4])
def test_it_is_what_the_whole_model_would_have_become(bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import T5Config, T5EncoderModel

    whole = T5EncoderModel.from_pretrained(GOLDEN, dtype=torch.float32)
    quantise_linears(whole, bits, in_8_bits=("*.wo",))
    sizes = T5Config.from_pretrained(GOLDEN)
    made = load_in_few_bits(
        lambda: T5EncoderModel(sizes), GOLDEN, bits=bits, in_8_bits=("*.wo",), dtype=torch.float32
    ).eval()
    ours, theirs = made.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) and value.dtype == theirs[name].dtype for name, value in ours.items())
    ids = torch.arange(2, 14)[None]
    with torch.inference_mode():
        assert made(ids).last_hidden_state.equal(whole.eval()(ids).last_hidden_state)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    data = json.loads((GOLDEN / "config.json").read_text())
    wide = T5Config(**{**data, "d_ff": data["d_ff"] + 32})
    with pytest.raises(CheckpointError, match=r"wi_0.weight is \[.*\], not \[.*\] as its config.json says"):
        load_in_few_bits(lambda: T5EncoderModel(wide), GOLDEN, bits=8, dtype=torch.float32)
    deep = T5Config(**{**data, "num_layers": data["num_layers"] + 1})
    with pytest.raises(CheckpointError, match=f"lacks encoder.block.{data['num_layers']}"):
        load_in_few_bits(lambda: T5EncoderModel(deep), GOLDEN, bits=8, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_the_peak_is_near_what_stays(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import T5Config, T5EncoderModel

    sizes = T5Config(
        vocab_size=64, d_model=1024, d_kv=64, d_ff=2816, num_layers=8, num_heads=16, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(sizes).bfloat16().save_pretrained(tmp_path, max_shard_size="64MB")
    peaks = {}
    for way, bits in (("whole", 8), ("few", 8), ("few", 4)):
        command = [sys.executable, "-c", PEAK, str(tmp_path), way, str(bits)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        said = next(line for line in done.stdout.splitlines() if line.startswith("peak "))
        peaks[way, bits] = tuple(map(int, said.split()[1:]))
    whole = peaks.pop(("whole", 8))[0]
    for (_, bits), (peak, stays) in peaks.items():
        # a run of rows at a time is in work: bitsandbytes takes up to 20 bytes for each of its 2^20 values
        assert peak < stays + 100e6, f"{bits} bits: a peak of {peak:,} for {stays:,} that stay; {peaks}"
        assert peak < whole / 2, (whole, peaks)
