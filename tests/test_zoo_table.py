"""The table of the zoo: figures come from the configs, and are those of the models."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sat_models import registry
from sat_models.config import read_json
from sat_models.zoo import load_pretrained
from sat_models.zoo import table as zoo_table
from sat_models.zoo.locate import list_models


def _measured(name: str) -> tuple[int, int, int]:
    return zoo_table._measure(json.dumps(read_json(registry.config_path(name))))


def test_figures_are_those_of_the_loaded_model():
    vlm = load_pretrained("cogvlm-tiny", device="cpu", dtype="bfloat16")
    count, bf16, _ = _measured("cogvlm-tiny")
    assert count == sum(p.numel() for p in vlm.model.parameters())
    assert bf16 == sum(t.nbytes for t in [*vlm.model.parameters(), *vlm.model.buffers()])


def test_four_bits_are_those_of_a_quantised_model():
    pytest.importorskip("bitsandbytes")
    vlm = load_pretrained("cogvlm-tiny", device="cpu", dtype="bfloat16", quant=4)
    assert _measured("cogvlm-tiny")[2] == sum(t.nbytes for t in [*vlm.model.parameters(), *vlm.model.buffers()])


def test_the_released_model_counted_by_hand():
    hidden, inner, vision, vision_inner = 4096, 11008, 1792, 15360
    expert = 4 * hidden**2 + 3 * hidden * inner
    language = 32 * (2 * expert + 2 * hidden) + 2 * 32000 * hidden + hidden
    block = 4 * vision**2 + 4 * vision + 2 * vision * vision_inner + vision_inner + vision + 4 * vision
    tower = 63 * block + (3 * 14 * 14 + 1) * vision + 1226 * vision + vision
    projector = vision * hidden + 3 * hidden * inner + 2 * hidden + 2 * hidden
    count, bf16, int4 = _measured("cogvlm-chat")
    assert count == language + tower + projector
    assert 2 * count <= bf16 < 2 * count + 10_000
    assert int4 < 10.0e9, "4 bits must leave room for a picture's keys and values on a card of 12 GB"


def test_rows(capsys, monkeypatch, tmp_path):
    (tmp_path / "cogvlm-chat").mkdir()
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    specs = [registry.resolve(name) for name in ("cogvlm-tiny", "cogvlm-chat", "cogvlm-grounding-base")]
    later = dataclasses.replace(specs[1], name="later-vlm", aliases=(), available=False)
    monkeypatch.setitem(registry._TABLE, later.name, later)
    monkeypatch.setattr(registry, "specs", lambda: iter([*specs, later]))
    monkeypatch.setattr(zoo_table, "_measure", lambda config: (1_234_567, 7_600_000_000, 0))
    assert zoo_table.main([]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("name ") and header.endswith("what for") and "int4" in header
    assert [line.split()[0] for line in lines] == [*(spec.name for spec in specs), "later-vlm"]
    assert "1.2 M" in lines[0] and "7.6 GB" in lines[0] and "bundled" in lines[0]
    assert str(tmp_path / "cogvlm-chat") in lines[1] and "Apache-2.0" in lines[1]
    assert " download " in lines[2] and " not yet " in lines[3]
    assert lines[3].split()[1] == "-"


def test_help_is_help(capsys):
    with pytest.raises(SystemExit) as ended:
        zoo_table.main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("usage:") and "List the models of the zoo" in said
    with pytest.raises(SystemExit) as ended:
        zoo_table.main(["--nonsense"])
    assert ended.value.code == 2


def test_every_model_that_can_run_has_sizes():
    for name in list_models(available_only=True):
        assert registry.config_path(name).is_file(), name
