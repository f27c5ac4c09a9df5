import pytest

from testing.tiny_models import build_picture
from zsseg.publishing.exported_model import ExportedModel

SIZE = ("--size", 64, 96)


@pytest.mark.slow
def test_a_checkpoint_becomes_a_file_that_runs(run, finding_checkpoint, tmp_path):
    out = tmp_path / "exported"
    options = ("--labels", "road, car|automobile, tree", "--stuff", "road", *SIZE, "--output", out)
    outcome = run("export", finding_checkpoint, "--format", "onnx", *options)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    lines = outcome.stdout.splitlines()
    assert lines[0] == f"{finding_checkpoint}: pictures of 1 × 3 × 64 × 96, 3 labels of its own"
    assert lines[1].startswith("class_queries_logits differ from the checkpoint's by at most ")
    assert lines[3].startswith(f"wrote {out / 'model.onnx'} (")
    labels = {segment.label for segment in ExportedModel(out).segment(build_picture(48, 64)).segments}
    assert labels
    assert labels <= {"road", "car", "tree"}
    again = run("export", finding_checkpoint, "--format", "torch", *options)
    assert again.code == 2
    assert "is not empty" in again.stderr
    replaced = run("export", finding_checkpoint, "--format", "torch", *options, "--overwrite")
    assert replaced.code == 0, replaced.stderr
    assert {path.name for path in out.iterdir()} == {"export.json", "model.pt2"}


MISTAKES = {
    "format": (["--format", "tflite", *SIZE], 2, "--format must be onnx or torch, got 'tflite'"),
    "size": (["--format", "torch", "--size", 60, 96], 1, "height must be a multiple of 32"),
    "stuff": (["--format", "torch", *SIZE, "--stuff", "road"], 2, "--labels, which is missing"),
    "tolerance": (["--format", "torch", *SIZE, "--tolerance", -1], 2, "--tolerance"),
    "labels": (["--format", "torch", *SIZE, "--labels", "road, road"], 2, "unique"),
}


@pytest.mark.parametrize(("options", "code", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_write_nothing(run, finding_checkpoint, tmp_path, options, code, message):
    outcome = run("export", finding_checkpoint, "--output", tmp_path / "exported", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(run, finding_checkpoint, clip_checkpoint, tmp_path, monkeypatch):
    arguments = ("--format", "onnx", *SIZE, "--output", tmp_path / "exported")
    for checkpoint, message in (
        (clip_checkpoint, "model type 'clip'"),
        (tmp_path / "nothing", "there is no checkpoint folder"),
    ):
        outcome = run("export", checkpoint, *arguments)
        assert outcome.code == 1
        assert message in outcome.stderr
    monkeypatch.setattr("zsseg.publishing.exporting.ONNX_PACKAGES", ("no_such_runtime",))
    outcome = run("export", finding_checkpoint, *arguments)
    assert outcome.code == 2
    assert "needs no_such_runtime, not installed: pip install 'zsseg[export]'" in outcome.stderr
    assert not list(tmp_path.iterdir())
