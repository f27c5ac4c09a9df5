import pytest

TINY = ("--batch-size", 1, "--num-workers", 0, "--float32")
STAGES = ("clip-", "vision-", "backbone-", "deepened-", "warmup-", "")
ONE_STEP = sum(((f"--{stage}steps", 1) for stage in STAGES), ())


@pytest.mark.slow
def test_one_command_makes_both_models(run, tmp_path, monkeypatch):
    for module in ("patchwork_clip", "patchwork_concat"):
        monkeypatch.setattr(f"zsseg.training.recipes.{module}.VALIDATION_SCENES", 1)
    outcome = run("train", "patchwork", "--output", tmp_path, *ONE_STEP, *TINY)
    assert outcome.code == 0
    assert (tmp_path / "patchwork-clip" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    again = run("train", "patchwork", "--output", tmp_path, *ONE_STEP, *TINY)
    assert again.code == 1
    assert "is not empty: resume its run, allow overwriting, or choose another folder" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--resume", "--overwrite"),
            "--resume goes on with a run, --overwrite starts anew; give one of them",
        ),
        (("--clip", "somewhere"), "--clip names a trained CLIP; it goes with --part segmentor"),
        (
            ("--part", "segmentor", "--clip", "/nowhere/clip"),
            "there is no checkpoint folder at /nowhere/clip",
        ),
        (("--part", "segmentor"), "the segmentor needs Patchwork's CLIP, but there is none in"),
        (("--clip-steps", 0), "steps must be at least 1, got 0"),
        (("--steps", 0), "steps must be at least 1, got 0"),
        (("--split", "B"), 'a Patchwork split is "A" or "seed-N"'),
    ],
)
def test_bad_options_get_one_line(run, tmp_path, options, message):
    outcome = run("train", "patchwork", "--output", tmp_path / "run", *options)
    assert outcome.code != 0
    assert message in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["segmentor", "patchwork-clip", "checkpoint"])
def test_what_is_in_the_way_of_a_later_stage_is_named_before_the_first_begins(run, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "notes.txt").write_text("mine")
    outcome = run("train", "patchwork", "--output", tmp_path)
    assert outcome.code == 1
    assert f"{folder} is not empty: resume its run" in " ".join(outcome.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [folder]
