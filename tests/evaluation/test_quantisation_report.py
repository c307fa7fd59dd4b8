"""The report of docs/quantisation.md on the bundled model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from sat_models.bench.quantised import quantisation_report

pytest.importorskip("bitsandbytes")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "quantisation.py"


def test_the_script_prints_a_row_for_each(monkeypatch, capsys):
    flags = ["--count", "1", "--device", "cpu", "--quant-skip", "mixins.eva.*"]
    monkeypatch.setattr("sys.argv", ["quantisation.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not ended.value.code
    header, line, *rows = capsys.readouterr().out.splitlines()
    cells = [re.split(r"\s*\|\s*", row.strip("| ")) for row in (header, *rows)]
    assert set(line) == {"|", "-"} and len({len(row) for row in cells}) == 1
    assert [row[0] for row in cells] == ["weights", "full", "8 bits", "4 bits"]
    megabytes, errors = ([float(row[column]) for row in cells[1:]] for column in (1, 2))
    assert megabytes == sorted(megabytes, reverse=True)
    assert errors == sorted(errors) and errors[0] == 0 < errors[1]
    assert all(0 <= float(share) <= 100 for row in cells[1:] for share in row[3:])


@pytest.mark.slow
def test_answers_stay_right():
    full, eight, four = quantisation_report("cogvlm-tiny", count=500, device="cpu")
    assert eight.right >= full.right - 0.01
    assert four.right >= full.right - 0.03
