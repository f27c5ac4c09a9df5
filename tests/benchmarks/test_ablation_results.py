import csv
import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablation_results.py"
ROWS = ("start", "better", "best")
FIGURES = ("PQ_seen", "hPQ")
SETUPS = {"start": "no steps", "better": "10 steps"}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def build_result(row, seed, share):
    return {"row": row, "seed": seed, "setup": "", **dict.fromkeys(FIGURES, share)}


def test_the_table_holds_means_and_deviations_in_the_order_of_the_rows(script):
    results = [build_result("best", 0, 0.5), build_result("start", 1, 0.4), build_result("start", 0, 0.3)]
    head, _, first, second = script["build_table"](results, ROWS, FIGURES).splitlines()
    assert head == "| | seeds | PQ seen | hPQ |"
    assert first == "| start | 2 | 35.0 ± 7.1 | 35.0 ± 7.1 |"
    assert second == "| best | 1 | 50.0 | 50.0 |"


def test_the_csv_holds_every_seed(script, tmp_path):
    results = [build_result("best", 1, 0.5), build_result("best", 0, 0.25)]
    script["write_csv"](results, ROWS, FIGURES, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["row"], row["seed"], row["hPQ"]) for row in rows] == [
        ("best", "0", "25.00"),
        ("best", "1", "50.00"),
    ]


def test_a_stopped_run_goes_on_with_what_is_missing(script, tmp_path):
    path = tmp_path / "results.json"
    measured = []

    def measure(row, seed):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((row, seed))
        return {"hPQ": len(measured) / 10}

    with pytest.raises(KeyboardInterrupt):
        script["run_missing"](path, SETUPS, (0, 1), measure)
    last = json.loads(path.read_text())[-1]
    assert last == {"row": "start", "seed": 1, "setup": "no steps", "hPQ": 0.3}
    results = script["run_missing"](path, SETUPS, (0, 1), lambda row, seed: {"hPQ": 0.9})
    assert [(result["row"], result["seed"], result["hPQ"]) for result in results] == [
        ("start", 0, 0.1),
        ("better", 0, 0.2),
        ("start", 1, 0.3),
        ("better", 1, 0.9),
    ]


def test_results_of_another_setup_are_not_taken_for_those_of_this_one(script, tmp_path):
    path = tmp_path / "results.json"
    script["run_missing"](path, SETUPS, (0,), lambda row, seed: {"hPQ": 0.1})
    kept = path.read_bytes()
    with pytest.raises(SystemExit, match="'better' of another setup, 10 steps, not 20 steps"):
        script["run_missing"](path, SETUPS | {"better": "20 steps"}, (0, 1), lambda row, seed: {"hPQ": 0.2})
    assert path.read_bytes() == kept
