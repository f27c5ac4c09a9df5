import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zsseg.cli.ground_truth import LabelSetup, open_coco_panoptic
from zsseg.data.patchwork.dataset import PatchworkDataset

SMALL = ("--scenes", 2, "--size", 32)
WITHOUT_NUMPY = """
import sys
from typer.testing import CliRunner
from zsseg.cli.main import app
for line in ("patchwork --help", "patchwork export --help", "patchwork sheet --help"):
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    heavy = {"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()
    assert not heavy, (line, heavy)
"""


def test_export_is_read_by_the_other_commands_as_it_was_drawn(run, tmp_path):
    folder = tmp_path / "world"
    outcome = run(
        *("patchwork", "export", folder, *SMALL, "--preset", "hard", "--seed", 3, "--split", "seed-2")
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "2 scenes of hard, seed 3, split seed-2, coco-panoptic" in outcome.stdout
    scenes = PatchworkDataset("hard", seed=3, num_scenes=2, split="seed-2", size=32)
    dataset = open_coco_panoptic(
        folder / "panoptic.json", None, None, LabelSetup(unseen=f"@{folder / 'unseen.txt'}")
    )
    assert dataset.vocabulary == scenes.vocabulary
    for example, expected in zip(dataset, scenes, strict=True):
        np.testing.assert_array_equal(np.asarray(example.image), np.asarray(expected.image))
        assert example.target.segments == expected.target.segments


def test_both_formats_and_seen_categories(run, tmp_path):
    outcome = run(
        *("patchwork", "export", tmp_path / "world", *SMALL, "--format", "both", "--categories", "seen")
    )
    assert outcome.code == 0
    assert {path.name for path in (tmp_path / "world").iterdir()} == {"coco-panoptic", "image-captions"}
    content = json.loads((tmp_path / "world" / "coco-panoptic" / "panoptic.json").read_text())
    assert len(content["categories"]) == 48
    lines = (tmp_path / "world" / "image-captions" / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "medium"), "one of ['easy', 'standard', 'hard'], got 'medium'"),
        (("--split", "B"), 'a Patchwork split is "A" or "seed-N" with an integer N ≥ 0, got \'B\''),
        (("--size", 31), "size must be at least 32, got 31"),
        (("--scenes", 0), "num_scenes must be at least 1, got 0"),
        (("--seed", -1), "seed must be at least 0, got -1"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(run, tmp_path, options, message):
    outcome = run("patchwork", "export", tmp_path / "world", *SMALL, *options)
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
    if options[0] in ("--preset", "--split", "--size"):
        outcome = run("patchwork", "sheet", tmp_path / "sheet.png", *options)
        assert (outcome.code, outcome.stderr.count("\n")) == (1, 1)
        assert message in outcome.stderr
        assert not list(tmp_path.iterdir())


def test_what_is_there_already_stays(run, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    outcome = run("patchwork", "export", tmp_path, *SMALL)
    assert outcome.code == 2
    assert outcome.stderr == f"error: {tmp_path} is not empty; name a new folder, or empty this one\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    outcome = run("patchwork", "sheet", tmp_path / "kept.txt")
    assert outcome.code == 2
    assert "kept.txt exists already; name another file, or pass --overwrite\n" in outcome.stderr
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_traceback_shows_all(run, tmp_path):
    with pytest.raises(ValueError, match="'medium'"):
        run("patchwork", "export", tmp_path / "world", *SMALL, "--preset", "medium", "--traceback")


def test_sheets(run, tmp_path):
    pictures = {}
    for name, options in {
        "categories": (),
        "easy": ("--preset", "easy"),
        "hard": ("--preset", "hard"),
    }.items():
        outcome = run("patchwork", "sheet", tmp_path / "new" / f"{name}.png", "--size", 32, *options)
        assert (outcome.code, outcome.stderr) == (0, "")
        pictures[name] = np.asarray(Image.open(tmp_path / "new" / f"{name}.png"))
        assert f"{pictures[name].shape[1]}×{pictures[name].shape[0]}" in outcome.stdout
    assert pictures["easy"].shape == pictures["hard"].shape
    assert not np.array_equal(pictures["easy"], pictures["hard"])
    assert pictures["categories"].shape[1] > 10 * 32
    assert run("patchwork", "sheet", tmp_path / "new" / "easy.png", "--size", 32).code == 2
    assert run("patchwork", "sheet", tmp_path / "new" / "easy.png", "--size", 32, "--overwrite").code == 0
    again = np.asarray(Image.open(tmp_path / "new" / "easy.png"))
    np.testing.assert_array_equal(again, pictures["categories"])


@pytest.mark.parametrize("command", ["export", "sheet"])
def test_the_commands_explain_themselves(run, command):
    outcome = run("patchwork", command, "--help")
    assert outcome.code == 0
    assert f"Example: zsseg patchwork {command}" in outcome.stdout
    assert "--traceback" in outcome.stdout


def test_explaining_needs_no_numpy():
    subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], check=True)
