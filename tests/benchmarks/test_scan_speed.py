import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scan_speed.py"


@pytest.mark.slow
def test_every_part_is_measured_against_its_peer(monkeypatch, tmp_path, capsys):
    output = tmp_path / "times.csv"
    options = ["--tiny", "--size", "64", "--rounds", "1", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["scan_speed.py", *options, "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    peers = {row["what"] for row in rows if row["what"] == row["peer"]}
    assert {row["peer"] for row in rows} == peers
    assert [float(row["ratio_to_peer"]) for row in rows if row["what"] in peers] == [1.0] * len(peers)
    assert {row["part"] for row in rows} == {"crops", "modes", "labels"}
    assert "847 labels" in capsys.readouterr().out
