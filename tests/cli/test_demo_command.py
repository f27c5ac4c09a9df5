import json
import shutil

import pytest
import torch
from PIL import Image

from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg import checkpoints
from zsseg.cli.commands.demo import DEFAULT_SCENE
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset


def build_scenes(num_scenes, size=512):
    return PatchworkDataset("standard", seed=HELD_OUT_SEED, num_scenes=num_scenes, size=size)


def names_in(scenes, index):
    return {scenes.vocabulary[label_id].name for label_id in scenes.label_ids(index)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """CONCAT of random weights that finds something in the demonstration's scene."""
    folder = tmp_path_factory.mktemp("demo")
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    with torch.no_grad():
        outputs = model(**processor(build_scenes(DEFAULT_SCENE + 1)[DEFAULT_SCENE].image, ["road"]))
        # No-object points away from all queries, so that it never wins.
        model.no_object_embedding.copy_(-outputs.semantic_embeds.mean(dim=(0, 1)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def installed(checkpoint, tmp_path, monkeypatch):
    """That checkpoint in the place of the packaged one."""
    folder = tmp_path / "packaged"
    shutil.copytree(checkpoint, folder)
    for name in ("README.md", "evaluation.json"):
        (folder / name).write_text("", encoding="utf-8")
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "concat-patchwork", folder)
    return folder


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_default_scene_shows_an_unseen_thing_and_something_seen():
    scenes = build_scenes(DEFAULT_SCENE + 1)
    shown = [scenes.vocabulary[label_id] for label_id in scenes.label_ids(DEFAULT_SCENE)]
    assert any(not category.is_seen and category.is_thing for category in shown)
    assert any(category.is_seen for category in shown)


def test_without_options_the_packaged_checkpoint_segments_the_default_scene(
    run, installed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outcome = run("demo")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["overlay.png", "segments.json"]
    picture = Image.open(tmp_path / "demo" / "overlay.png")
    assert picture.width > 1024
    assert picture.height > 512
    records = read_json(tmp_path / "demo" / "segments.json")
    assert records["model"] == str(installed)
    assert (records["scene"]["seed"], records["scene"]["index"]) == (HELD_OUT_SEED, DEFAULT_SCENE)
    shown = names_in(build_scenes(DEFAULT_SCENE + 1), DEFAULT_SCENE)
    assert {segment["label"] for segment in records["scene"]["segments"]} == shown
    assert len(records["labels"]) == 60
    assert sum(not label["isthing"] for label in records["labels"]) == 20
    assert sum(not label["is_seen"] for label in records["labels"]) == 12
    assert records["segments"]
    for name in shown:
        assert name in outcome.stdout
    for text in (str(installed), "60 labels, 20 of them stuff, 12 unseen", "demo/overlay.png"):
        assert text in outcome.stdout


def test_seed_and_preset_choose_the_scene(run, checkpoint, tmp_path):
    options = ("--seed", 2, "--preset", "hard", "--labels", "plain disc, red brick")
    assert run("demo", "-m", checkpoint, "-o", tmp_path / "out", *options).code == 0
    scene = read_json(tmp_path / "out" / "segments.json")["scene"]
    assert (scene["index"], scene["preset"]) == (2, "hard")
    expected = PatchworkDataset("hard", seed=HELD_OUT_SEED, num_scenes=3, size=512)[2].target.segments
    assert [segment["area"] for segment in scene["segments"]] == [segment.area for segment in expected]


def test_labels_are_words_also_those_of_other_worlds(run, checkpoint, tmp_path):
    labels = "striped star|starfish, zebra, plain disc, red brick"
    outcome = run("demo", "-m", checkpoint, "-o", tmp_path / "out", "--labels", labels)
    assert outcome.code == 0
    assert "no label of Patchwork: zebra." in outcome.stderr
    assert "4 labels, 1 of them stuff, 2 unseen" in outcome.stdout
    assert read_json(tmp_path / "out" / "segments.json")["labels"] == [
        {"name": "striped star", "isthing": True, "is_seen": False},
        {"name": "zebra", "isthing": True, "is_seen": False},
        {"name": "plain disc", "isthing": True, "is_seen": True},
        {"name": "red brick", "isthing": False, "is_seen": True},
    ]


def test_a_demo_replaces_a_demo_and_nothing_else(run, checkpoint, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    for name in ("overlay.png", "segments.json"):
        (output / name).write_text("of an earlier demo")
    options = ("demo", "-m", checkpoint, "--labels", "plain disc", "-o", output)
    assert run(*options).code == 0
    assert read_json(output / "segments.json")["labels"][0]["name"] == "plain disc"
    (output / "thesis.txt").write_text("mine")
    outcome = run(*options)
    assert outcome.code == 2
    assert "is not empty" in outcome.stderr
    assert run(*options, "--overwrite", "--seed", 1).code == 0
    assert (output / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--preset", "brutal"), 1, "one of ['easy', 'standard', 'hard'], got 'brutal'"),
        (("--seed", "-1"), 2, "greater than or equal to 0"),
        (("--labels", " "), 2, "holds no label"),
        (("--labels", "plain disc, plain disc"), 2, "more than once"),
        (("--model", "/no/such"), 1, "no checkpoint folder at /no/such"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(run, options, code, message, tmp_path):
    outcome = run("demo", "-o", tmp_path / "out", "--model", "/no/such", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_package_file_is_one_line(run, installed, tmp_path):
    (installed / "tokenizer.json").unlink()
    outcome = run("demo", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.stderr.startswith("error: the packaged checkpoint is incomplete: tokenizer.json missing")
    assert outcome.stderr.count("\n") == 1


def test_pictures_are_segmented_by_the_packaged_checkpoint_unless_another_is_named(
    run, installed, photos, tmp_path
):
    outcome = run("segment", photos / "street0.png", "--labels", "road", "-o", tmp_path / "out")
    assert outcome.code == 0
    assert "no --model, so the packaged checkpoint" in outcome.stderr
    assert read_json(tmp_path / "out" / "segments.json")["model"] == str(installed)


def test_the_real_demonstration_names_what_the_scene_shows(run, tmp_path):
    assert run("demo", "-o", tmp_path / "out").code == 0
    records = read_json(tmp_path / "out" / "segments.json")
    shown = {segment["label"] for segment in records["scene"]["segments"]}
    found = {segment["label"] for segment in records["segments"]}
    unseen = {label["name"] for label in records["labels"] if not label["is_seen"]}
    assert shown - unseen <= found
