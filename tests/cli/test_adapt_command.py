import json

import pytest
import torch

from testing.tiny_models import HIDDEN_DIM, build_clip_text_config, build_model, build_processor
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptable")
    model = build_model(text_config=build_clip_text_config())
    model.attach_generator("mlp", noise_dim=4, hidden_dim=16)
    labels = Vocabulary.from_labels(["road", "car"], stuff_labels=["road"])
    model.remember(torch.randn(20, HIDDEN_DIM), torch.arange(20) % 3 - 1, labels)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def test_a_new_checkpoint_is_written_and_the_old_one_stays(run, adaptable, tmp_path):
    weights = (adaptable / "model.safetensors").read_bytes()
    new = tmp_path / "new"
    outcome = run(
        "adapt", adaptable, "--labels", "zebra, giraffe", "--stuff", "savanna", "--output", new, "--steps", 3
    )
    assert outcome.code == 0, outcome.stderr
    assert "learnt zebra, giraffe, savanna" in outcome.stdout
    assert (adaptable / "model.safetensors").read_bytes() == weights
    model = ConcatForPanopticSegmentation.from_pretrained(new)
    assert model.config.known_labels == ["road", "car", "zebra", "giraffe", "savanna"]
    assert model.config.known_stuff_labels == ["road", "savanna"]
    assert ConcatProcessor.from_pretrained(new).tokenizer is not None
    report = json.loads((new / "adaptation.json").read_text())
    assert report["new_labels"] == ["zebra", "giraffe", "savanna"]
    assert report["steps"] == 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "name what is new"),
        (["--labels", "car"], 1, "'car' is already known"),
        (["--labels", "zebra", "--stuff", "zebra"], 1, "unique"),
    ],
)
def test_mistakes_write_nothing(run, adaptable, tmp_path, options, code, message):
    outcome = run("adapt", adaptable, "--output", tmp_path / "new", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_cannot_adapt(run, adaptable, concat_checkpoint, clip_checkpoint, tmp_path):
    for checkpoint, message in (
        (concat_checkpoint, "holds no query generator"),
        (clip_checkpoint, "model type 'clip'"),
        (tmp_path / "nothing", "there is no checkpoint folder"),
    ):
        outcome = run("adapt", checkpoint, "--labels", "zebra", "--output", tmp_path / "new")
        assert outcome.code == 1
        assert message in outcome.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    outcome = run("adapt", adaptable, "--labels", "zebra", "--output", tmp_path / "full")
    assert outcome.code == 2
    assert "is not empty" in outcome.stderr
