import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from testing.tiny_models import build_clip_text_config, build_model, build_picture, build_processor
from zsseg import ConcatForPanopticSegmentation
from zsseg.publishing.half_precision import save_half_precision


@pytest.fixture(scope="module", params=["resnet", "swin"])
def model(request):
    return build_model(request.param, text_config=build_clip_text_config())


def test_loading_gives_float32_of_the_rounded_numbers(model, tmp_path):
    save_half_precision(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} <= {torch.float16, torch.int64}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    originals = model.state_dict()
    for dtype in (None, "auto"):
        loaded = ConcatForPanopticSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.state_dict().keys() == originals.keys()
        for name, tensor in loaded.state_dict().items():
            original = originals[name]
            expected = original.half().float() if original.is_floating_point() else original
            assert torch.equal(tensor, expected), name
    outputs = loaded(**build_processor()([build_picture(64, 64)], ["road", "car"]))
    assert torch.isfinite(outputs.class_queries_logits).all()
    assert torch.isfinite(outputs.masks_queries_logits).all()


def test_the_model_itself_keeps_its_numbers(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_half_precision(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.dtype == before[name].dtype


def test_a_pipeline_runs_it_in_float32(model, tmp_path):
    save_half_precision(model, tmp_path)
    build_processor().save_pretrained(tmp_path)
    assert pipeline("zero-shot-panoptic-segmentation", model=str(tmp_path)).model.dtype == torch.float32


def test_numbers_beyond_float16_are_refused(tmp_path):
    model = build_model()
    with torch.no_grad():
        model.no_object_embedding[0] = 70_000.0
    with pytest.raises(ValueError, match=r"'no_object_embedding'.*largest 70000 \(limit 65504\)"):
        save_half_precision(model, tmp_path)


def test_only_float32_models_are_taken(tmp_path):
    with pytest.raises(ValueError, match=r"expected a float32 model, got torch\.bfloat16"):
        save_half_precision(build_model().to(torch.bfloat16), tmp_path)
