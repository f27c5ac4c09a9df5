import csv

import pytest
from PIL import Image

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.checkpoints import packaged
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.training.patchwork_benchmark import evaluate_patchwork
from zsseg.training.patchwork_report import FIGURES, PatchworkReport

SMALL = ("--scenes", 1, "--size", 64)


def write_report(run, finding_checkpoint, folder, *options):
    outcome = run("evaluate", "patchwork", "-m", finding_checkpoint, *SMALL, "-o", folder, *options)
    assert outcome.code == 0
    return outcome


@pytest.mark.slow
def test_everything_is_written_and_told(run, finding_checkpoint, tmp_path):
    output = tmp_path / "scores"
    outcome = write_report(
        *(run, finding_checkpoint, output, "--preset", "easy", "--preset", "hard", "--preset", "easy"),
        *("--shuffled-text", "--overlays", 1, "--overlap-mask-area-threshold", "0.1"),
    )
    assert "Patchwork, split A, 1 held-out scene of 64 × 64 · 60 labels (12 unseen)" in outcome.stdout
    assert "labels do not occur in these scenes" in outcome.stderr

    report = PatchworkReport.load(output / "results.json")
    assert report.command == (
        f"zsseg evaluate patchwork --model {finding_checkpoint} --split A --scenes 1 --size 64 --preset easy "
        "--preset hard --overlap-mask-area-threshold 0.1 --shuffled-text"
    )
    assert (report.model.name, report.model.overlap_mask_area_threshold) == (finding_checkpoint.name, 0.1)
    assert [(row.preset, row.text) for row in report.rows] == [
        *(("easy", "own"), ("easy", "shuffled"), ("hard", "own"), ("hard", "shuffled")),
    ]
    expected = evaluate_patchwork(
        ConcatForPanopticSegmentation.from_pretrained(finding_checkpoint),
        ConcatProcessor.from_pretrained(finding_checkpoint),
        PatchworkDataset("hard", seed=HELD_OUT_SEED, num_scenes=1, size=64),
        overlap_mask_area_threshold=0.1,
        progress=False,
    )
    timeless = set(FIGURES) - {"ms_per_image"}
    hard = report.rows[2]
    assert {name: hard.figures[name] for name in timeless} == {
        name: expected.row.figures[name] for name in timeless
    }

    with (output / "per_class.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 60
    line = next(each for each in lines if (each["preset"], each["label"]) == ("hard", "striped star"))
    assert (line["text"], line["kind"], line["training"]) == ("own", "thing", "unseen")
    assert float(line["PQ"]) == expected.per_class["striped star"]["PQ"]

    pictures = sorted(path.relative_to(output) for path in output.glob("overlays/**/*.png"))
    assert [str(path) for path in pictures] == ["overlays/easy/00000000.png", "overlays/hard/00000000.png"]
    assert Image.open(output / pictures[0]).width > 3 * 64


def test_the_table_shows_groups_and_the_control_beside_them(run, finding_checkpoint):
    outcome = run(
        "evaluate", "patchwork", "-m", finding_checkpoint, *SMALL, "--shuffled-text", "--threshold", "1"
    )
    lines = outcome.stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["standard,", "%"])
    rows = [line.split("  ")[1].strip() for line in lines[start + 1 : start + 13]]
    assert rows == [
        *("all", "things", "stuff", "seen", "seen things", "seen stuff"),
        *("unseen", "unseen, names shuffled", "unseen things", "unseen stuff"),
        *("harmonic", "harmonic, names shuffled"),
    ]
    # At a threshold of 1 no query is kept; the mean IoU knows no threshold.
    assert lines[start + 1].split()[:5] == ["all", "60", "0.0", "0.0", "0.0"]
    assert lines[start + 6].split()[:3] == ["seen", "stuff", "16"]
    assert "ms an image" in outcome.stdout


def test_calibration_has_a_row_of_its_own_beside_the_plain_one(run, tmp_path):
    checkpoint = packaged("concat-patchwork")
    plain, both = tmp_path / "plain", tmp_path / "both"
    write_report(run, checkpoint, plain)
    outcome = write_report(run, checkpoint, both, "--seen-penalty", 1000)
    (expected,) = PatchworkReport.load(plain / "results.json").rows
    report = PatchworkReport.load(both / "results.json")
    own, calibrated = report.rows
    timeless = set(FIGURES) - {"ms_per_image"}
    assert {name: own.figures[name] for name in timeless} == {
        name: expected.figures[name] for name in timeless
    }
    assert (own.is_plain, calibrated.is_plain) == (True, False)
    assert (own.seen_penalty, calibrated.seen_penalty) == (0.0, 1000.0)
    assert calibrated.variant == "own names, seen labels lowered by 1000"
    assert report.command.endswith("--preset standard --seen-penalty 1000.0")
    for name in ("PQ_seen", "mIoU_seen"):
        assert own.figures[name] > calibrated.figures[name] == 0.0

    labels = {line.split("  ")[1].strip() for line in outcome.stdout.splitlines() if line.startswith("  ")}
    assert {"unseen", "unseen, calibrated by 1000", "harmonic, calibrated by 1000"} <= labels
    with (both / "per_class.csv").open(encoding="utf-8") as file:
        penalties = [(line["text"], float(line["seen_penalty"])) for line in csv.DictReader(file)]
    assert penalties == [("own", 0.0)] * 60 + [("own", 1000.0)] * 60


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--preset", "brutal"), 1, "one of ['easy', 'standard', 'hard'], got 'brutal'"),
        (("--split", "B"), 1, 'split is "A" or "seed-N" with an integer N ≥ 0, got \'B\''),
        (("--scenes", "0"), 1, "num_scenes must be at least 1, got 0"),
        (("--size", "31"), 1, "size must be at least 32, got 31"),
        (("--overlays", "2"), 2, "--overlays needs --output"),
    ],
)
def test_mistakes_are_said_in_one_line(run, finding_checkpoint, options, code, message):
    outcome = run("evaluate", "patchwork", "-m", finding_checkpoint, *options)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert message in outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1


def test_a_full_folder_is_left_alone(run, finding_checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    outcome = run("evaluate", "patchwork", "-m", finding_checkpoint, *SMALL, "-o", tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--overwrite" in outcome.stderr
    write_report(run, finding_checkpoint, tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_options_before_the_benchmark_are_refused(run, finding_checkpoint):
    outcome = run("evaluate", "--threshold", "0.5", "patchwork", "-m", finding_checkpoint)
    assert outcome.code == 2
    assert "--threshold stands before 'patchwork'" in outcome.stderr


def test_the_benchmark_is_found_and_the_model_still_required(run):
    assert "patchwork" in run("evaluate", "--help").stdout
    for command in (("evaluate",), ("evaluate", "patchwork")):
        outcome = run(*command)
        assert outcome.code == 2
        assert "Missing option '--model'" in outcome.stderr
