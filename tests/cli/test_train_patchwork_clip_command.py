import json

import pytest

from zsseg.layers.vision_language import load_vision_language_teacher

TINY = ("--batch-size", 1, "--num-workers", 0, "--mixed-precision", "no")


@pytest.mark.slow
def test_one_command_makes_a_clip_that_teaches(run, tmp_path, monkeypatch):
    monkeypatch.setattr("zsseg.training.recipes.patchwork_clip.VALIDATION_SCENES", 1)
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"steps": 1, "vision": {"steps": 2}}))
    command = ("train", "patchwork-clip", "-o", tmp_path / "run", "--arguments", arguments, *TINY)
    outcome = run(*command)
    assert outcome.code == 0
    assert f"clip 1 step, vision 2 steps → {tmp_path / 'run'}" in outcome.stdout.splitlines()
    assert load_vision_language_teacher(tmp_path / "run" / "checkpoint").embed_dim == 128
    again = run(*command)
    assert again.code == 2
    assert "is not empty: pass --resume to go on with its run" in again.stderr
    weights = (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes()
    assert run(*command, "--resume").code == 0
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--resume", "--overwrite"), 2, "--resume goes on with a run, --overwrite starts anew; give one of"),
        (("--resume",), 1, "there is nothing to resume"),
        (("--batch-size", 0), 1, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_options_get_one_line(run, tmp_path, options, code, message):
    outcome = run("train", "patchwork-clip", "--output", tmp_path / "run", *options)
    assert outcome.code == code
    assert message in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["vision", "checkpoint"])
def test_what_is_in_the_way_of_a_later_stage_is_named_before_the_first_begins(run, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "notes.txt").write_text("mine")
    outcome = run("train", "patchwork-clip", "--output", tmp_path)
    assert outcome.code == 2
    assert f"{folder} is not empty: pass --resume" in " ".join(outcome.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [folder]
