import runpy
import sys
from pathlib import Path

import pytest

from zsseg.models.scan.configuration_scan import SCAN_MODES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scan_ablation.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield runpy.run_path(str(SCRIPT))
    sys.modules.pop("ablation_results", None)


def test_every_row_is_of_a_trained_variant_or_a_packaged_checkpoint(script):
    rows = script["ROWS"]
    ours = [row for row in rows.values() if isinstance(row, script["Row"])]
    assert {row.variant for row in ours} == set(script["VARIANTS"])
    assert {row.mode for row in ours} == set(SCAN_MODES)
    assert {row for row in rows.values() if isinstance(row, str)} == {
        "concat-patchwork",
        "concat-patchwork-inductive",
    }
