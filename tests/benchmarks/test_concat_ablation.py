import csv
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "concat_ablation.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def build_result(script, row, seed, share):
    return {"row": row, "seed": seed, **dict.fromkeys(script["FIGURES"], share)}


def test_the_table_holds_means_and_deviations_in_the_order_of_the_rows(script):
    results = [
        build_result(script, "CONCAT", 0, 0.5),
        build_result(script, "projection only", 1, 0.4),
        build_result(script, "projection only", 0, 0.3),
    ]
    _, _, first, second = script["build_table"](results).splitlines()
    assert first.startswith("| projection only | 2 | 35.0 ± 7.1 |")
    assert second.startswith("| CONCAT | 1 | 50.0 |")


def test_the_csv_holds_every_seed(script, tmp_path):
    results = [build_result(script, "CONCAT", 1, 0.5), build_result(script, "CONCAT", 0, 0.25)]
    script["write_csv"](results, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["row"], row["seed"], row["hPQ"]) for row in rows] == [
        ("CONCAT", "0", "25.00"),
        ("CONCAT", "1", "50.00"),
    ]


def test_every_row_goes_on_from_a_row_of_stage_1(script):
    rows = script["ROWS"]
    bases = {row.base for row in rows.values() if hasattr(row, "base")}
    assert bases
    assert all(isinstance(rows[base], script["Stage1Row"]) for base in bases)
