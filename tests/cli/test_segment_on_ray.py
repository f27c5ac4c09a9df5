import subprocess
import sys

import pytest

LABELS = ("--labels", "road")
WITHOUT = """
import sys
sys.modules[{package!r}] = None
from zsseg.cli.main import app
app()
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "coco"), "--format belongs to --engine ray"),
        (("--workers", "2"), "--workers belongs to --engine ray"),
        (("--cpus-per-worker", "2"), "--cpus-per-worker belongs to --engine ray"),
        (("--part-size", "2"), "--part-size belongs to --engine ray"),
        (("--image-column", "image"), "--image-column belongs to --engine ray"),
        (("--retry-failed",), "--retry-failed belongs to --engine ray"),
        (("s3://bucket/photos",), "s3://bucket/photos is read by --engine ray alone"),
        (("photos.parquet",), "photos.parquet is read by --engine ray alone"),
        (("--engine", "ray", "--unseen", "road"), "--unseen is for overlays"),
        (("--engine", "ray", "--font", sys.executable), "--font is for overlays"),
        (("--engine", "ray", "--device", "cuda:1"), "--device is cpu or cuda with --engine ray"),
        (("--engine", "ray", "--part-size", "0"), "at least 1"),
        (("--engine", "spark"), "'spark' is not one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, photos, tmp_path, options, message):
    outcome = run("segment", photos, *LABELS, "-m", "unused", "-o", tmp_path / "out", *options)
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.replace("│", "").split())
    assert not (tmp_path / "out").exists()


def test_an_output_in_the_way_is_said_before_a_model_is_loaded(run, photos, finding_checkpoint):
    pytest.importorskip("ray", reason="needs the extra scale")
    outcome = run("segment", photos, *LABELS, "-m", finding_checkpoint, "-o", photos, "--engine", "ray")
    assert outcome.code == 2
    assert "is not empty and holds no batch run" in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["ray", "pyarrow"])
def test_without_the_extra_it_is_named(photos, finding_checkpoint, tmp_path, package):
    options = ("-m", finding_checkpoint, "-o", tmp_path / "out", "--engine", "ray")
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT.format(package=package),
            "segment",
            *map(str, (photos, *LABELS, *options)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert f"this needs the package {package!r}" in ended.stderr
    assert "pip install 'zsseg[scale]'" in ended.stderr
    assert "Traceback" not in ended.stderr
