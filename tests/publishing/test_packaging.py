import pytest
from transformers import AutoModel

from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg import checkpoints
from zsseg.checkpoints import PACKAGED_FILES, packaged
from zsseg.publishing import packaging
from zsseg.publishing.packaging import package_checkpoint
from zsseg.training.patchwork_report import FIGURES, BenchmarkedModel, PatchworkReport, PatchworkRow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model = build_model(text_config=build_clip_text_config())
    # As a text tower's config says that was loaded from a folder.
    model.config.text_config._name_or_path = "/home/somebody/clip"
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "optimizer.pt").write_bytes(b"large")
    return folder


def write_report(path, parameters):
    row = PatchworkRow("standard", "A", 3, 128, 1_000_000, "own", dict.fromkeys(FIGURES, 0.5))
    model = BenchmarkedModel("trained", "zsseg-concat", parameters, 10, 0.5, 0.5, 0.5)
    PatchworkReport("zsseg evaluate patchwork", "a machine", model, [row]).save(path)
    return path


@pytest.fixture
def report(checkpoint, tmp_path):
    parameters = sum(parameter.numel() for parameter in AutoModel.from_pretrained(checkpoint).parameters())
    return write_report(tmp_path / "results.json", parameters)


def test_a_package_is_what_the_installation_expects(checkpoint, report, tmp_path, monkeypatch):
    folder = tmp_path / "package"
    package_checkpoint(checkpoint, report, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGED_FILES)
    assert (folder / "evaluation.json").read_bytes() == report.read_bytes()
    monkeypatch.setattr(checkpoints, "PACKAGED_FOLDER", folder)
    assert packaged() == folder
    for path in folder.iterdir():
        assert b"/home/somebody" not in path.read_bytes(), path
        assert str(checkpoint).encode() not in path.read_bytes(), path
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    package_checkpoint(checkpoint, report, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_the_report_of_another_model_is_refused(checkpoint, tmp_path):
    report = write_report(tmp_path / "results.json", 5)
    with pytest.raises(ValueError, match=r"a model with 5 parameters, but .* evaluate this checkpoint"):
        package_checkpoint(checkpoint, report, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_what_is_no_report_is_refused(checkpoint, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="no report of `zsseg evaluate patchwork`"):
        package_checkpoint(checkpoint, tmp_path / "results.json", tmp_path / "package")


def test_a_package_that_is_too_large_leaves_nothing(checkpoint, report, tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", 100_000)
    with pytest.raises(ValueError, match=r"would take 0\.\d MB, but 0\.1 MB are allowed"):
        package_checkpoint(checkpoint, report, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
