import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from testing.tiny_models import build_picture

EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_LINES = 80


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(build_picture(48, 64)).save(path)
    return path


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_segment(concat_checkpoint, picture, tmp_path, monkeypatch, capsys):
    overlay = tmp_path / "overlay.png"
    run_example("01_segment.py", monkeypatch, concat_checkpoint, picture, "--output", overlay)
    assert capsys.readouterr().out.endswith(f"saved {overlay}\n")
    assert Image.open(overlay).width >= 64


def test_custom_vocabulary(concat_checkpoint, picture, tmp_path, monkeypatch, capsys):
    overlay = tmp_path / "overlay.png"
    run_example(
        "02_custom_vocabulary.py",
        monkeypatch,
        *(concat_checkpoint, picture, "--threshold", 0.0, "--output", overlay),
    )
    assert f"saved {overlay}" in capsys.readouterr().out
    assert Image.open(overlay).width >= 64


def test_every_example_is_short_and_says_how_to_run_it():
    examples = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert examples
    for path in examples:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_LINES
        assert f"python examples/{path.name}" in text
