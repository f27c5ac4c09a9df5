import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel, CLIPProcessor

from testing.patchwork_reports import build_clip_report
from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg import checkpoints
from zsseg.checkpoints import PACKAGED_FILES, packaged
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.publishing import packaging
from zsseg.publishing.packaging import package_checkpoint, package_patchwork_clip
from zsseg.training.patchwork_report import FIGURES, BenchmarkedModel, PatchworkReport, PatchworkRow
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip


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


def write_report(path, parameters, weights_digest=None):
    row = PatchworkRow("standard", "A", 3, 128, 1_000_000, "own", dict.fromkeys(FIGURES, 0.5))
    model = BenchmarkedModel(
        "trained", "zsseg-concat", parameters, 10, 0.5, 0.5, 0.5, 0, 0, 0, weights_digest=weights_digest
    )
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
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "concat-patchwork", folder)
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


def test_a_report_may_be_of_the_trained_or_of_the_rounded_weights_and_of_no_other(
    checkpoint, report, tmp_path
):
    package_checkpoint(checkpoint, report, tmp_path / "package")
    parameters = PatchworkReport.load(report).model.parameters
    for folder in (checkpoint, tmp_path / "package"):
        digest = compute_weights_digest(AutoModel.from_pretrained(folder))
        named = write_report(tmp_path / "named.json", parameters, digest)
        package_checkpoint(checkpoint, named, tmp_path / "package")
    with pytest.raises(ValueError, match="is of other weights than"):
        package_checkpoint(
            checkpoint, write_report(tmp_path / "named.json", parameters, "a" * 64), tmp_path / "package"
        )


def test_what_is_no_report_is_refused(checkpoint, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="no report of `zsseg evaluate patchwork`"):
        package_checkpoint(checkpoint, tmp_path / "results.json", tmp_path / "package")


def test_a_package_that_is_too_large_leaves_nothing(checkpoint, report, tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", 100_000)
    with pytest.raises(ValueError, match=r"would take 0\.\d MB, but 0\.1 MB are allowed"):
        package_checkpoint(checkpoint, report, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained_clip")
    model, processor = build_patchwork_clip()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def clip_report(tmp_path):
    path = tmp_path / "results.json"
    build_clip_report().save(path)
    return path


def test_a_packaged_clip_is_half_as_large_and_loads_as_float32(clip, clip_report, tmp_path, monkeypatch):
    folder = tmp_path / "package"
    package_patchwork_clip(clip, clip_report, folder)
    monkeypatch.setitem(checkpoints.PACKAGED_FOLDERS, "patchwork-clip", folder)
    assert packaged("patchwork-clip") == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(PACKAGED_FILES)
    assert (folder / "evaluation.json").read_bytes() == clip_report.read_bytes()
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    loaded, original = CLIPModel.from_pretrained(folder), CLIPModel.from_pretrained(clip).state_dict()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original[name].half().float()), name
    processor, trained = CLIPProcessor.from_pretrained(folder), CLIPProcessor.from_pretrained(clip)
    assert processor.tokenizer("a striped star") == trained.tokenizer("a striped star")
    assert processor.image_processor.to_dict() == trained.image_processor.to_dict()


def test_a_checkpoint_that_is_no_clip_is_refused(checkpoint, clip_report, tmp_path):
    with pytest.raises(ValueError, match="model type 'zsseg-concat', but CLIPModel loads 'clip'"):
        package_patchwork_clip(checkpoint, clip_report, tmp_path / "package")


def test_the_report_of_another_kind_or_clip_is_refused(clip, report, tmp_path):
    with pytest.raises(ValueError, match="no report of `zsseg evaluate patchwork-clip`"):
        package_patchwork_clip(clip, report, tmp_path / "package")
    build_clip_report(parameters=5).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"a model with 5 parameters, but .* has 2,540,801"):
        package_patchwork_clip(clip, tmp_path / "other.json", tmp_path / "package")
    assert not (tmp_path / "package").exists()
