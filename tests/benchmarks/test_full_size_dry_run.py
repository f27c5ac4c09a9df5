import json
import math
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size_dry_run.py"


@pytest.mark.slow
def test_every_part_of_the_recipe_is_measured(monkeypatch, tmp_path, capsys):
    output = tmp_path / "results" / "dry_run.json"
    options = ["--tiny", "--steps", "2", "--batch-size", "2", "--mixed-precision", "no"]
    monkeypatch.setattr(sys, "argv", ["full_size_dry_run.py", *options, "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads(output.read_text(encoding="utf-8"))
    parts = {part["name"]: part for part in report["parts"]}
    assert list(parts) == ["CLS tokens", "alignment", "queries", "generator", "union"]
    for part in parts.values():
        assert part["seconds"] > 0
        assert part["peak_host_gib"] > 0
    assert [parts[name]["measured"] for name in ("alignment", "generator", "union")] == [2, 2, 2]
    assert [parts[name]["planned"] for name in ("alignment", "generator", "union")] == [
        140_350,
        20_000,
        20_000,
    ]
    alignment = parts["alignment"]
    # A step of two pictures takes an eighth of one of sixteen.
    hours = alignment["seconds"] * 8 * 140_350 / 3600
    assert math.isclose(alignment["projected_hours"], hours, rel_tol=1e-3)
    total = sum(part["projected_hours"] for part in parts.values())
    assert report["projected_hours"] == pytest.approx(total, abs=0.01)
    assert report["parameters"]["model"] > 0
    assert "projected for the whole recipe on this machine" in capsys.readouterr().out
