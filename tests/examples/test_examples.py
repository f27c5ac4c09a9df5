import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from testing.evaluation_reports import write_evaluation
from testing.official_layouts import write_coco_panoptic
from testing.tiny_models import (
    HIDDEN_DIM,
    build_clip_text_config,
    build_model,
    build_picture,
    build_processor,
)
from testing.tiny_scan_run import save_scan_clip
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor, ScanForSemanticSegmentation
from zsseg.data import CocoPanopticDataset, mark_unseen
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.patchwork.export import export_coco_panoptic
from zsseg.training.evaluation import evaluate_model
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


@pytest.mark.slow
def test_finetune(concat_checkpoint, tmp_path, monkeypatch, capsys):
    world = PatchworkDataset("easy", num_scenes=6, size=64)
    export_coco_panoptic(world, tmp_path / "world")
    broken = tmp_path / "world" / "images" / world[0].file_name
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    arguments = ("--checkpoint", concat_checkpoint, "--steps", 1, "--size", 64, "--output", tmp_path / "run")
    with pytest.raises(SystemExit, match=rf"{broken.name}: cannot load the image .*cut off or broken"):
        run_example("03_finetune.py", monkeypatch, tmp_path / "world", *arguments)
    assert "5 pictures, 60 labels, 1 problems" in capsys.readouterr().out
    broken.write_bytes(whole)
    run_example("03_finetune.py", monkeypatch, tmp_path / "world", *arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("6 pictures, 60 labels, 0 problems\n")
    assert "on 2 held-out pictures" in printed
    start = ConcatForPanopticSegmentation.from_pretrained(concat_checkpoint).state_dict()
    tuned = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "run" / "checkpoint").state_dict()
    assert any(not torch.equal(start[name], tuned[name]) for name in start)


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


def test_evaluate(concat_checkpoint, tmp_path, monkeypatch, capsys):
    write_coco_panoptic(tmp_path)
    annotations = tmp_path / "annotations" / "panoptic_val2017.json"
    run_example(
        "05_evaluate.py",
        monkeypatch,
        *(concat_checkpoint, annotations, tmp_path / "val2017", "--unseen", "cow"),
    )
    printed = capsys.readouterr().out
    dataset = CocoPanopticDataset(annotations, tmp_path / "val2017")
    dataset.vocabulary = mark_unseen(dataset.vocabulary, ["cow"])
    figures = evaluate_model(
        ConcatForPanopticSegmentation.from_pretrained(concat_checkpoint),
        ConcatProcessor.from_pretrained(concat_checkpoint),
        dataset,
        task="semantic",
    )
    assert f"mIoU      {100 * figures['mIoU']:6.1f} %" in printed
    assert "2 pictures" in printed
    assert {line.split(",")[0] for line in printed.splitlines() if line.startswith("hard")} == {
        *("hard: car", "hard: cow", "hard: grass"),
    }


def test_publish(concat_checkpoint, hub, tmp_path, monkeypatch, capsys):
    evaluation = write_evaluation(tmp_path / "results.json", concat_checkpoint)
    run_example(
        "06_publish.py",
        monkeypatch,
        *(concat_checkpoint, "user/name", "--evaluation", evaluation, "--training-data", "Streets."),
    )
    assert capsys.readouterr().out.endswith("the model from the Hub gives the same bits\n")
    assert hub.repositories["model", "user/name"].private
    assert "evaluation/street.json" in hub.get_files("user/name")


def test_training_free(mask2former_checkpoint, picture, tmp_path, monkeypatch, capsys):
    save_scan_clip(tmp_path / "clip")
    run_example(
        "07_training_free.py",
        monkeypatch,
        *(picture, "--labels", "road", "car", "--stuff", "road", "--threshold", 0.0),
        *("--mask2former", mask2former_checkpoint, "--clip", tmp_path / "clip", "--save", tmp_path / "saved"),
    )
    assert "segments by zsseg" in capsys.readouterr().out
    assert ScanForSemanticSegmentation.from_pretrained(tmp_path / "saved").config.mode == "clip_only"


def test_every_example_is_short_and_says_how_to_run_it():
    examples = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert examples
    for path in examples:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_LINES
        assert f"python examples/{path.name}" in text
