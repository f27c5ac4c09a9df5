import shutil
import tomllib
from pathlib import Path, PurePosixPath

import pytest

import zsseg
from zsseg import checkpoints
from zsseg.checkpoints import (
    PACKAGED_FILES,
    PACKAGED_FOLDERS,
    packaged,
    resolve_checkpoint,
)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def installed(concat_checkpoint, tmp_path, monkeypatch):
    """A checkpoint in the place of the packaged one."""
    folder = tmp_path / "packaged"
    shutil.copytree(concat_checkpoint, folder)
    (folder / "README.md").write_text("card", encoding="utf-8")
    (folder / "evaluation.json").write_text("{}", encoding="utf-8")
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "concat-patchwork", folder)
    return folder


def test_no_name_means_the_packaged_checkpoint(installed):
    assert packaged() == installed
    assert resolve_checkpoint() == resolve_checkpoint(None) == str(installed)
    assert zsseg.checkpoints.packaged() == installed


def test_any_name_stays_as_it_is(tmp_path):
    assert resolve_checkpoint("owner/model") == "owner/model"
    assert resolve_checkpoint(tmp_path) == str(tmp_path)


def test_a_packaged_checkpoint_goes_by_its_name_unless_a_folder_does(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("concat-patchwork") == str(installed)
    (tmp_path / "concat-patchwork").mkdir()
    assert resolve_checkpoint("concat-patchwork") == "concat-patchwork"


def test_the_clip_is_beside_it_under_its_name(installed, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    shutil.copytree(installed, folder)
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "patchwork-clip", folder)
    assert packaged("patchwork-clip") == folder
    assert packaged("concat-patchwork") == packaged() == installed
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"tokenizer\.json missing from {folder}; reinstall"):
        packaged("patchwork-clip")


def test_other_packages_there_are_none():
    with pytest.raises(ValueError, match=r"'concat-patchwork-inductive', 'patchwork-clip'\], got 'scan'"):
        packaged("scan")


@pytest.mark.parametrize("name", PACKAGED_FILES)
def test_a_missing_file_is_named_with_the_way_to_get_it_back(installed, name):
    (installed / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"incomplete: {name} missing from .*; reinstall"):
        packaged()


def test_a_missing_folder_is_an_error_too(installed):
    shutil.rmtree(installed)
    with pytest.raises(FileNotFoundError, match=r"README.md, config.json, .* missing from"):
        packaged()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_weights_that_are_cut_off_are_found_before_loading(installed, keep):
    weights = installed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(OSError, match=r"damaged: .*model\.safetensors .*; reinstall"):
        packaged()


def test_a_wheel_takes_the_packaged_files_along():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["zsseg"]
    package = REPOSITORY / "src" / "zsseg"
    templates = list((package / "publishing" / "templates").iterdir())
    assert len(templates) == 2
    packages = [folder / name for folder in PACKAGED_FOLDERS.values() for name in PACKAGED_FILES]
    for file in packages + templates:
        path = PurePosixPath(file.relative_to(package).as_posix())
        assert any(path.match(pattern) for pattern in patterns), path


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_a_pipeline_without_a_model_takes_the_packaged_checkpoint(installed, task, caplog):
    from transformers import pipeline

    segment = pipeline(f"zero-shot-{task}-segmentation", device="cpu")
    assert segment.model.config.name_or_path == str(installed)
    assert segment("tests/testing/none.png", candidate_labels=["road"], on_error="report")["error"]


def test_a_pipeline_without_a_model_says_which_file_is_missing(installed):
    from transformers import pipeline

    (installed / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors missing"):
        pipeline("zero-shot-panoptic-segmentation")


@pytest.mark.parametrize("name", PACKAGED_FOLDERS)
def test_a_packaged_checkpoint_is_whole_and_small(name):
    assert sum(path.stat().st_size for path in packaged(name).iterdir()) <= 16_000_000


def test_the_packaged_checkpoint_segments_a_held_out_scene():
    from transformers import pipeline

    from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset

    scenes = PatchworkDataset("standard", seed=HELD_OUT_SEED, num_scenes=1)
    segment = pipeline("zero-shot-panoptic-segmentation", device="cpu")
    names = scenes.vocabulary.names
    stuff = [names[label_id] for label_id in scenes.vocabulary.stuff_label_ids]
    found = segment(scenes[0].image, candidate_labels=names, stuff_labels=stuff)
    shown = {scenes.vocabulary[s.label_id].name for s in scenes[0].target.segments}
    seen_stuff = {name for name in shown if name in stuff and scenes.vocabulary[names.index(name)].is_seen}
    assert seen_stuff
    assert seen_stuff <= {record["label"] for record in found}


def test_the_packaged_clip_names_a_held_out_segment():
    from transformers import CLIPModel, CLIPProcessor

    from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
    from zsseg.training.patchwork_clip_evaluation import evaluate_patchwork_clip

    folder = packaged("patchwork-clip")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
    scenes = PatchworkDataset("standard", seed=HELD_OUT_SEED, num_scenes=6)
    clip = CLIPModel.from_pretrained(folder)
    averages, _ = evaluate_patchwork_clip(clip, CLIPProcessor.from_pretrained(folder), scenes)
    assert averages["top1"] > 0.7
