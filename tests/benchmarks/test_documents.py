import csv
from pathlib import Path

import concat_ablation
import documents
import pytest
import scan_ablation
from ablation_results import build_table
from transformers import AutoModel

from zsseg.checkpoints import PACKAGED_FOLDERS, packaged
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.training.patchwork_clip_report import PatchworkClipReport
from zsseg.training.patchwork_report import PatchworkReport

PACKAGED_MODELS = ["concat-patchwork", "concat-patchwork-inductive", "scan-patchwork"]
REPOSITORY = Path(__file__).parents[2]
LAST_DIGIT = 0.1
"""In percent: the CSV files hold two decimals, so the first one of a mean of them may round otherwise."""


def copy_documents(root, change=lambda text: text):
    paths = [
        path
        for pattern in ("README.md", "docs/*.md", "model_cards/*.md")
        for path in REPOSITORY.glob(pattern)
    ]
    for path in [*paths, *(folder / "README.md" for folder in PACKAGED_FOLDERS.values())]:
        copy = root / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def test_cards_and_tables_are_what_the_results_give(tmp_path):
    # PQ of concat-patchwork, in tables and cards; the tables of ablations are written by their own scripts.
    copy_documents(
        tmp_path, lambda text: text.replace("64.0 / ", "99.9 / ").replace("value: 64.0", "value: 99.9")
    )
    stale = {
        path: (tmp_path / path).read_text(encoding="utf-8") for path in ("README.md", "docs/patchwork.md")
    }
    written = documents.write_documents(tmp_path)
    assert {Path(path).name for path in written if path.startswith("model_cards")} == {
        path.name for path in (REPOSITORY / "model_cards").iterdir()
    }
    for path in written:
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert text.count("99.9") == 0, path
        assert text == (REPOSITORY / path).read_text(encoding="utf-8"), (
            f"{path} is stale: run `make documents`"
        )
    assert all("99.9" in text for text in stale.values())


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_the_packaged_evaluation_is_the_committed_result(name):
    assert (documents.RESULTS / f"{name}.json").read_bytes() == (
        packaged(name) / "evaluation.json"
    ).read_bytes()


def test_the_packaged_clip_itself_was_measured():
    # So that anybody who has the package can repeat it.
    report = PatchworkClipReport.load(packaged("patchwork-clip") / "evaluation.json")
    assert "--model" not in report.command


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_the_packaged_evaluation_is_of_the_packaged_weights(name):
    digest = compute_weights_digest(AutoModel.from_pretrained(packaged(name)))
    assert PatchworkReport.load(packaged(name) / "evaluation.json").model.weights_digest == digest


ABLATIONS = {"concat": concat_ablation, "scan": scan_ablation}


def read_csv(family, split):
    figures = ABLATIONS[family].FIGURES
    with (REPOSITORY / "benchmarks" / "results" / f"{family}_ablation_{split}.csv").open() as file:
        return [
            {
                "row": row["row"],
                "seed": int(row["seed"]),
                **{name: float(row[name]) / (1 if name == "ms_per_image" else 100) for name in figures},
            }
            for row in csv.DictReader(file)
        ]


def read_rows(table):
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    return {cells[0]: [float(part) for cell in cells[1:] for part in cell.split(" ± ")] for cells in lines}


@pytest.mark.parametrize(
    ("document", "family", "split", "shows_all"),
    [
        ("README.md", "concat", "A", False),
        ("docs/concat.md", "concat", "A", True),
        ("docs/concat.md", "concat", "seed-1", True),
        ("README.md", "scan", "A", False),
        ("docs/scan.md", "scan", "A", True),
    ],
)
def test_tables_of_the_ablation_are_those_of_its_figures(document, family, split, shows_all):
    mark = f"{family}-ablation-{split}"
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    shown = read_rows(text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0])
    ablation = ABLATIONS[family]
    expected = read_rows(build_table(read_csv(family, split), list(ablation.ROWS), ablation.FIGURES))
    assert set(shown) == set(expected) if shows_all else set(shown) <= set(expected)
    for row, numbers in shown.items():
        assert numbers == pytest.approx(expected[row], abs=LAST_DIGIT + 1e-9), row
