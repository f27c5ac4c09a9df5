import subprocess
import sys
from pathlib import Path

import pytest

from zsseg import __version__

SCRIPT = Path(sys.executable).with_name("zsseg")
WITHOUT_TORCH = """
import sys
from typer.testing import CliRunner
from zsseg.cli.main import app
for line in ("--help", "--version", "env", "segment --help", "train concat --help", "evaluate --help",
             "evaluate patchwork --help", "demo --help", "export --help",
             "segment x.png --labels road --model /no/such --output out"):
    result = CliRunner().invoke(app, line.split())
    assert "Traceback" not in result.output, result.output
    heavy = {"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()
    assert not heavy, (line, heavy)
"""


def test_the_commands_are_listed(run):
    outcome = run("--help")
    assert outcome.code == 0
    for command in ("segment", "evaluate", "train", "demo", "env"):
        assert command in outcome.stdout
    assert run("--version").stdout == f"zsseg {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [("segment",), ("evaluate",), ("evaluate", "patchwork"), ("train", "concat"), ("demo",), ("export",)],
)
def test_every_command_explains_itself(run, command):
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert "--traceback" in outcome.stdout
    assert "Example: zsseg" in outcome.stdout


def test_nothing_heavy_is_imported_before_it_is_needed():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


def test_a_mistake_ends_a_real_process_without_a_traceback(tmp_path):
    options = ("--labels", "road", "--model", tmp_path / "nowhere", "--output", tmp_path / "out")
    ended = subprocess.run(
        [SCRIPT, "segment", "x.png", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"error: there is no checkpoint folder at {tmp_path / 'nowhere'}; check the path\n"


@pytest.mark.slow
def test_a_real_process_segments(photos, finding_checkpoint, tmp_path):
    ended = subprocess.run(
        [
            *(SCRIPT, "segment", photos, "--labels", "road, car"),
            *("--model", finding_checkpoint, "--output", tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "out" / "street2_overlay.png").is_file()
