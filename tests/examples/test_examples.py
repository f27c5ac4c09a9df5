import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from testing.tiny_models import (
    HIDDEN_DIM,
    build_clip_text_config,
    build_model,
    build_picture,
    build_processor,
)
from zsseg import ConcatForPanopticSegmentation
from zsseg.vocabulary import Vocabulary

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


def test_adapt_by_names(tmp_path, monkeypatch, capsys):
    model = build_model(text_config=build_clip_text_config())
    model.attach_generator("mlp", noise_dim=4, hidden_dim=16)
    known = Vocabulary.from_labels(["road", "car"], stuff_labels=["road"])
    model.remember(torch.randn(20, HIDDEN_DIM), torch.arange(20) % 3 - 1, known)
    model.save_pretrained(tmp_path / "checkpoint")
    build_processor().save_pretrained(tmp_path / "checkpoint")
    run_example(
        "04_adapt_by_names.py",
        monkeypatch,
        *(tmp_path / "checkpoint", "--labels", "zebra", "--stuff", "savanna", "--steps", 2),
        *("--output", tmp_path / "adapted"),
    )
    assert "learnt zebra, savanna" in capsys.readouterr().out
    adapted = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "adapted")
    assert adapted.config.known_labels == ["road", "car", "zebra", "savanna"]


def test_every_example_is_short_and_says_how_to_run_it():
    examples = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert examples
    for path in examples:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_LINES
        assert f"python examples/{path.name}" in text
