import runpy
import sys
from pathlib import Path

import pytest

from testing.patchwork_reports import build_report, build_row

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "patchwork_table.py"
DOCUMENT = "before\n<!-- patchwork-table -->\nold\n<!-- /patchwork-table -->\nafter\n"


@pytest.fixture
def run_script(monkeypatch):
    def run_script(*arguments):
        monkeypatch.setattr(sys, "argv", ["patchwork_table.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run_script


@pytest.fixture
def results(tmp_path):
    """One model with the control, one without."""
    own = build_row(preset="standard")
    shuffled = build_row(
        preset="standard", text="shuffled", figures={**own.figures, "hPQ": 0.125, "PQ_unseen": 0.0}
    )
    paths = [tmp_path / "large.json", tmp_path / "small.json"]
    build_report("large", (own, shuffled)).save(paths[0])
    build_report("small", (own, build_row(preset="easy"))).save(paths[1])
    return paths


def read_rows(text):
    """Cells by model and column."""
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    )
    return {cells[0]: dict(zip(header, cells, strict=True)) for cells in rows}


def test_a_row_a_model(run_script, results, capsys):
    run_script(*results)
    text = capsys.readouterr().out
    rows = read_rows(text)
    assert list(rows) == ["large", "small"]
    figures = build_row().figures
    for figure in ("PQ", "SQ", "RQ"):
        assert f"{100 * figures[f'{figure}_stuff']:.1f}" in rows["large"]["stuff"].split(" / ")
    assert rows["large"]["hPQ (shuffled)"] == f"{100 * figures['hPQ']:.1f} (12.5)"
    assert rows["large"]["unseen, shuffled"].startswith("0.0 / ")
    assert rows["small"]["unseen, shuffled"] == "–"
    assert rows["small"]["hPQ (shuffled)"] == f"{100 * figures['hPQ']:.1f} (–)"
    assert rows["small"]["parameters, M (text tower)"] == "0.0 (0.0)"
    assert "on 3 held-out scenes of 64 × 64, split A" in text
    assert text.count("a machine") == 1
    assert "zsseg evaluate patchwork --model large\nzsseg evaluate patchwork --model small" in text


def test_presets_have_rows_of_their_own(run_script, results, capsys):
    run_script(results[1], "--preset", "easy", "--preset", "standard")
    assert list(read_rows(capsys.readouterr().out)) == ["small, easy", "small, standard"]


def test_documents_are_rewritten_between_the_marks_alone(run_script, results, tmp_path, capsys):
    documents = [tmp_path / "README.md", tmp_path / "metrics.md"]
    for document in documents:
        document.write_text(DOCUMENT, encoding="utf-8")
    for _ in range(2):
        run_script(*results, "--write", *documents)
    assert capsys.readouterr().out == ""
    run_script(*results)
    table = capsys.readouterr().out
    for document in documents:
        assert document.read_text(encoding="utf-8") == DOCUMENT.replace("old\n", table)


@pytest.mark.parametrize("text", ["no marks", "<!-- /patchwork-table -->\n<!-- patchwork-table -->"])
def test_documents_without_a_place_for_the_table_are_left_alone(run_script, results, tmp_path, text):
    document = tmp_path / "README.md"
    document.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="must hold the line <!-- patchwork-table --> once"):
        run_script(*results, "--write", document)
    assert document.read_text(encoding="utf-8") == text


def test_tables_that_would_mislead_are_refused(run_script, results, tmp_path):
    with pytest.raises(SystemExit, match="large was not evaluated on preset 'easy': add --preset easy"):
        run_script(*results, "--preset", "easy")
    build_report("other", (build_row(preset="standard", scenes=4),)).save(tmp_path / "other.json")
    with pytest.raises(SystemExit, match="need the same scenes"):
        run_script(*results, tmp_path / "other.json")
    with pytest.raises(SystemExit, match="nowhere"):
        run_script(tmp_path / "nowhere.json")
