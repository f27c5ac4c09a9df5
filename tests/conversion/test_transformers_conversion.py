import pytest
import torch
from convert_mask2former_transformers_to_zsseg import convert
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerForUniversalSegmentation

from testing.tiny_models import save_mask2former
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_a_mask2former_of_transformers_computes_the_same(
    tmp_path, clip_checkpoint, read_report, capsys, backbone
):
    save_mask2former(tmp_path / "mask2former", backbone)
    folder = tmp_path / "converted"
    convert(str(tmp_path / "mask2former"), folder, clip=str(clip_checkpoint), verify=True)
    report = read_report(folder)
    differences = report["verification"]["largest_differences"]
    assert differences.keys() == {"pixel embeddings", "masks", "class logits"}
    assert all(value < 1e-6 for value in differences.values())
    assert report["source"] == {"name": "mask2former", "sha256": None}

    source = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "mask2former").state_dict()
    weights = report["weights"]
    assert weights["used"].keys() | weights["dropped"].keys() == source.keys()
    assert weights["dropped"].keys() == {
        "class_predictor.weight",
        "class_predictor.bias",
        "criterion.empty_weight",
    }
    model = ConcatForPanopticSegmentation.from_pretrained(folder)
    made = [target for targets in weights["used"].values() for target in targets]
    assert sorted([*made, *weights["new"]]) == sorted(model.state_dict())
    assert ConcatProcessor.from_pretrained(folder).image_processor.image_mean == (0.4,) * 3
    assert "saw all 133 classes" in capsys.readouterr().out
    for file in folder.iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes()


def test_checkpoints_of_other_kinds_are_refused(tmp_path, clip_checkpoint, fails):
    message, code = fails(convert, str(clip_checkpoint), tmp_path / "out", clip=str(clip_checkpoint))
    assert code == 1
    assert "is a checkpoint of model type 'clip', but Mask2FormerForUniversalSegmentation loads" in message
    save_mask2former(tmp_path / "mask2former", "resnet")
    path = tmp_path / "mask2former" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.transformer_module.queries_features.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    message, _ = fails(convert, str(tmp_path / "mask2former"), tmp_path / "out", clip=str(clip_checkpoint))
    assert "weights are missing, first ['model.transformer_module.queries_features.weight']" in message
    assert not (tmp_path / "out").exists()


def test_weights_that_the_model_does_not_have_are_refused(tmp_path, clip_checkpoint, fails):
    save_mask2former(tmp_path / "mask2former", "resnet")
    path = tmp_path / "mask2former" / "model.safetensors"
    save_file({**load_file(path), "model.extra.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    message, _ = fails(convert, str(tmp_path / "mask2former"), tmp_path / "out", clip=str(clip_checkpoint))
    assert "holds 1 weights that Mask2FormerForUniversalSegmentation does not have" in message
    assert "['model.extra.weight']" in message
    assert not (tmp_path / "out").exists()
