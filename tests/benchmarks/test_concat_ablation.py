import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "concat_ablation.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_every_row_goes_on_from_a_row_of_stage_1(script):
    rows = script["ROWS"]
    bases = {row.base for row in rows.values() if hasattr(row, "base")}
    assert bases
    assert all(isinstance(rows[base], script["Stage1Row"]) for base in bases)
