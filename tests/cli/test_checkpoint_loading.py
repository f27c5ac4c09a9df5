import pytest

from zsseg.checkpoints import packaged
from zsseg.cli.checkpoint_loading import find_checkpoint, load_pipeline


def test_a_folder_with_a_checkpoint_passes(concat_checkpoint):
    assert find_checkpoint(str(concat_checkpoint)) == str(concat_checkpoint)


@pytest.mark.parametrize("name", ["model", "owner/model"])
def test_what_may_be_on_the_hub_passes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(name) == name


def test_a_packaged_checkpoint_goes_by_its_name():
    assert find_checkpoint("patchwork-clip") == str(packaged("patchwork-clip"))


@pytest.mark.parametrize("name", ["/no/such", "./model", "../model", "~/model", "a/b/c", "runs/model"])
def test_paths_that_do_not_exist_are_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        find_checkpoint(name)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        find_checkpoint(str(tmp_path / "model.safetensors"))


def test_a_folder_around_a_checkpoint_gets_a_hint(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean .*best\?"):
        find_checkpoint(str(tmp_path))


def test_a_checkpoint_of_another_family_is_refused(mask2former_checkpoint):
    with pytest.raises(ValueError, match="model type 'mask2former', not one of zsseg"):
        load_pipeline("panoptic", str(mask2former_checkpoint))


def test_the_hub_that_cannot_be_reached_is_an_os_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="nobody/no-model"):
        load_pipeline("panoptic", "nobody/no-model")
