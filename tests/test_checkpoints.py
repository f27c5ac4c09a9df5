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
    with pytest.raises(ValueError, match=r"'scan-patchwork', 'patchwork-clip'\], got 'scan'"):
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


def test_a_wheel_takes_every_file_along():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["zsseg"]
    package = REPOSITORY / "src" / "zsseg"
    packaged_files = {folder / name for folder in PACKAGED_FOLDERS.values() for name in PACKAGED_FILES}
    files = {
        path
        for path in package.rglob("*")
        # Caches of tools begin with a dot.
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and not any(part.startswith(".") for part in path.relative_to(package).parts)
    }
    assert packaged_files < files
    for file in files:
        path = PurePosixPath(file.relative_to(package).as_posix())
        assert any(path.match(pattern) for pattern in patterns), path
