"""A Mask2Former and a CLIP put together."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    pipeline,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from testing.model_tester import build_pictures
from testing.tiny_models import build_picture, build_tokenizer
from testing.tiny_scan_run import save_scan_clip
from zsseg import ScanConfig, ScanForSemanticSegmentation, ScanProcessor
from zsseg.models.scan.configuration_scan import choose_scan_sigmas
from zsseg.prompts import VILD_PROMPTS
from zsseg.registration import TASKS

LABELS = ["road", "car|automobile", "something never seen"]
TINY_CLIP = {"shift_layers": (1,), "integration_layers": (1,)}  # it has one block
TRAINABLE = {
    **TINY_CLIP,
    "low_frequency_sigmas": (3.0,),
    "integration_heads": 2,
    "integration_feedforward_dim": 16,
    "proposal_hidden_dim": 16,
}


@pytest.fixture(scope="module")
def folders(mask2former_checkpoint, clip_checkpoint):
    return {"mask2former": str(mask2former_checkpoint), "clip": str(clip_checkpoint)}


@pytest.fixture(scope="module")
def by_clip(folders):
    return ScanForSemanticSegmentation.from_parts(**folders, mode="clip_only", **TINY_CLIP)


@pytest.fixture(scope="module")
def trainable(folders):
    torch.manual_seed(0)
    return ScanForSemanticSegmentation.from_parts(**folders, mode="ensemble", **TRAINABLE)


@pytest.fixture(scope="module")
def processor(folders):
    return ScanProcessor.from_parts(**folders)


def assert_same_weights(module, expected):
    expected = expected.state_dict()
    assert module.state_dict().keys() == expected.keys()
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_the_parts_keep_their_weights(by_clip, trainable, folders):
    mask2former = Mask2FormerForUniversalSegmentation.from_pretrained(folders["mask2former"])
    clip = CLIPModel.from_pretrained(folders["clip"])
    for model in (by_clip, trainable):
        assert_same_weights(model.segmentor, mask2former.model)
        assert_same_weights(model.context_tower.vision_model, clip.vision_model)
        assert_same_weights(model.context_tower.visual_projection, clip.visual_projection)
        assert_same_weights(model.text_model.text_model, clip.text_model)
        assert_same_weights(model.text_model.text_projection, clip.text_projection)
        assert model.shifted_tower is None
        assert not model.training
    assert_same_weights(by_clip.objectness_head, mask2former.class_predictor)
    assert by_clip.proposal_head is by_clip.sim is by_clip.no_object_embedding is None
    assert trainable.objectness_head is None
    own = ScanForSemanticSegmentation.from_parts(
        **folders, mode="clip_only", has_shifted_tower=True, **TINY_CLIP
    )
    assert_same_weights(own.shifted_tower, by_clip.context_tower)


def test_masks_and_no_object_are_those_of_mask2former(by_clip, processor, folders):
    mask2former = Mask2FormerForUniversalSegmentation.from_pretrained(folders["mask2former"]).eval()
    theirs = Mask2FormerImageProcessorPil.from_pretrained(folders["mask2former"])
    pixel_values = theirs(build_pictures(), return_tensors="pt")["pixel_values"]
    inputs = processor(build_pictures(), LABELS)
    torch.testing.assert_close(inputs["pixel_values"], pixel_values)
    with torch.no_grad():
        expected, found = mask2former(pixel_values), by_clip(**inputs)
    torch.testing.assert_close(
        found.masks_queries_logits, expected.masks_queries_logits, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        found.class_queries_logits.softmax(dim=-1)[..., -1],
        expected.class_queries_logits.softmax(dim=-1)[..., -1],
        atol=1e-5,
        rtol=0,
    )


def test_a_mask_of_the_whole_picture_is_named_as_clip_names_it(by_clip, processor, folders):
    clip = CLIPModel.from_pretrained(folders["clip"]).eval()
    picture = build_picture(64, 64)  # its size in the end, so that nothing is resized before CLIP does
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    pixels = torch.nn.functional.interpolate((pixels - 0.45) / 0.25, (32, 32), mode="bicubic").float()
    texts = ["a photo of a road.", "a photo of a tree."]
    tokens = build_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip(pixel_values=pixels, **tokens)
        cosines = expected.image_embeds @ expected.text_embeds.T
    inputs = processor(picture, ["road", "tree"], prompt_templates=["a photo of a {}."])
    by_clip.config.crop_mask_threshold = 0.0
    try:
        with torch.no_grad():
            output = by_clip(**inputs)
    finally:
        by_clip.config.crop_mask_threshold = 0.4
    scores = output.class_queries_logits[0, :, :2].softmax(dim=-1)
    torch.testing.assert_close(scores, (100 * cosines).softmax(dim=-1).expand_as(scores), atol=1e-3, rtol=0)


def test_the_processor_takes_its_settings_from_the_parts(by_clip, trainable, processor, folders):
    assert processor.prompt_templates == list(VILD_PROMPTS)
    assert type(processor.image_processor).__name__ == "ScanImageProcessorPil"
    assert tuple(processor.image_processor.image_mean) == (0.4,) * 3
    assert processor.image_processor.size == {"shortest_edge": 64, "longest_edge": 96}
    for model in (by_clip, trainable):
        config = model.config
        assert tuple(config.pixel_mean) == (0.4,) * 3
        assert tuple(config.pixel_std) == tuple(processor.image_processor.image_std)
        assert tuple(config.clip_mean) == (0.45,) * 3
        assert tuple(config.clip_std) == (0.25,) * 3
    changed = ScanProcessor.from_parts(**folders, prompt_templates=["a {}."], threshold=0.3)
    assert changed.prompt_templates == ["a {}."]
    assert changed.threshold == 0.3


@pytest.mark.parametrize("task", TASKS)
def test_clip_only_runs_untrained(task, by_clip, processor, tmp_path):
    by_clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures = [Image.fromarray(build_picture(*size)) for size in ((64, 96), (80, 50))]
    results = pipeline(task, model=str(tmp_path))(pictures, candidate_labels=LABELS, batch_size=2)
    assert len(results) == 2
    for picture, records in zip(pictures, results, strict=True):
        assert {record["label"] for record in records} <= {"road", "car", "something never seen"}
        if task == "zero-shot-semantic-segmentation":
            covered = sum((np.asarray(record["mask"]) > 0).astype(int) for record in records)
            assert covered.shape == picture.size[::-1]
            assert (covered == 1).all()


def test_neither_origin_nor_classes_are_saved(by_clip, trainable, processor, folders, tmp_path):
    processor.save_pretrained(tmp_path)
    for model in (by_clip, trainable):
        model.save_pretrained(tmp_path)
        saved = (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()
        assert folders["mask2former"] not in saved
        assert folders["clip"] not in saved
        assert "unicorn" not in saved
        loaded = ScanForSemanticSegmentation.from_pretrained(tmp_path)
        assert_same_weights(loaded, model)


def test_ensemble_is_to_be_trained(trainable, processor):
    inputs = processor(build_pictures(), LABELS)
    left = torch.zeros(inputs["pixel_values"].shape[2:], dtype=torch.bool)
    left[:, :48] = True
    output = trainable(
        **inputs,
        mask_labels=[torch.stack([left, ~left])] * 2,
        class_labels=[torch.tensor([0, 2])] * 2,
    )
    output.loss.backward()
    trained = {name for name, parameter in trainable.named_parameters() if parameter.grad is not None}
    # Mask2Former reads Swin's stages, each behind a norm of its own, and leaves the norm of the whole out.
    left_out = ("text_model.", "context_tower.", "segmentor.pixel_level_module.encoder.swin.layernorm.")
    assert trained == {name for name, _ in trainable.named_parameters() if not name.startswith(left_out)}
    assert any(name.startswith("sim.") for name in trained)
    trainable.zero_grad()


def test_a_clip_whose_towers_do_not_know_their_width(by_clip, folders, tmp_path):
    # As those of LAION on the Hub: only the whole says projection_dim, its parts keep the default, 512.
    copy = shutil.copytree(folders["clip"], tmp_path / "clip")
    config = json.loads((copy / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part]["projection_dim"] = 512
    (copy / "config.json").write_text(json.dumps(config))
    model = ScanForSemanticSegmentation.from_parts(
        mask2former=folders["mask2former"], clip=str(copy), mode="clip_only", **TINY_CLIP
    )
    assert_same_weights(model, by_clip)


# --- bad input ------------------------------------------------------------------------------------------


def test_parts_in_each_others_place(folders):
    clip, mask2former = folders["clip"], folders["mask2former"]
    with pytest.raises(ValueError, match=r"model type 'clip', but Mask2Former.* loads 'mask2former'"):
        ScanForSemanticSegmentation.from_parts(mask2former=clip, clip=clip)
    with pytest.raises(ValueError, match="composite checkpoint of model type 'mask2former'"):
        ScanForSemanticSegmentation.from_parts(mask2former=mask2former, clip=mask2former)


def test_siglip_is_refused(folders, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(build_tokenizer()), "projection_size": 16}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'siglip', but CLIPVision.* loads 'clip' or 'clip_vision_model'"):
        ScanForSemanticSegmentation.from_parts(mask2former=folders["mask2former"], clip=str(tmp_path))
    with pytest.raises(ValueError, match=r"that of a CLIP, .* got 'siglip_vision_model'"):
        ScanConfig(vision_config=SiglipVisionConfig(**vision)).check()
    with pytest.raises(ValueError, match=r"that of a CLIP, .* got 'siglip_vision_model'"):
        ScanConfig(vision_config=SiglipVisionConfig(**vision).to_dict()).check()


def test_nothing_there(folders, tmp_path):
    for part in ("mask2former", "clip"):
        with pytest.raises(OSError, match="missing"):
            ScanForSemanticSegmentation.from_parts(**folders | {part: str(tmp_path / "missing")})


@pytest.mark.parametrize("part", ["mask2former", "clip"])
def test_damaged_parts(part, folders, tmp_path):
    copy = shutil.copytree(folders[part], tmp_path / part)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(OSError, match=r"cannot be read .* cut off or damaged"):
        ScanForSemanticSegmentation.from_parts(**folders | {part: str(copy)})


@pytest.mark.parametrize(
    ("part", "weight"),
    [
        ("mask2former", "class_predictor.weight"),
        ("clip", "visual_projection.weight"),
        ("clip", "text_projection.weight"),
    ],
)
def test_parts_without_some_of_their_weights(part, weight, folders, tmp_path):
    copy = shutil.copytree(folders[part], tmp_path / part)
    weights = load_file(copy / "model.safetensors")
    weights.pop(weight)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing, first .*" + weight.replace(".", r"\.")):
        ScanForSemanticSegmentation.from_parts(**folders | {part: str(copy)})


def test_fields_that_do_not_fit_the_parts(folders):
    with pytest.raises(ValueError, match=r"integration_layers must be .* from 1 to 1, got \[6, 9, 12\]"):
        ScanForSemanticSegmentation.from_parts(
            **folders, integration_heads=2, integration_layers=(6, 9, 12), shift_layers=(1,)
        )
    with pytest.raises(ValueError, match=r"shift_layers must be .* from 1 to 1, got \[1, 3, 5\]"):
        ScanForSemanticSegmentation.from_parts(
            **folders, mode="clip_only", integration_layers=(1,), shift_layers=(1, 3, 5)
        )
    with pytest.raises(ValueError, match="reads three blocks of the vision tower, got 1"):
        ScanForSemanticSegmentation.from_parts(**folders, mode="clip_only")


def test_a_misspelt_field_is_refused(folders):
    with pytest.raises(TypeError, match=r"no fields \['crop_mask_treshold'\]: check their spelling"):
        ScanForSemanticSegmentation.from_parts(**folders, **TRAINABLE, crop_mask_treshold=0.2)


def test_sigmas_follow_the_grid_of_other_clips():
    assert choose_scan_sigmas(14) == choose_scan_sigmas(16) == (9.0, 7.0, 3.0)
    assert choose_scan_sigmas(7) == (4.5, 3.5, 1.5)


def test_sigmas_of_a_model_are_those_of_its_clip(mask2former_checkpoint, tmp_path):
    save_scan_clip(tmp_path)
    parts = {"mask2former": str(mask2former_checkpoint), "clip": str(tmp_path)}
    config = ScanForSemanticSegmentation.from_parts(**parts, integration_heads=2).config
    grid_size = config.vision_config.image_size // config.vision_config.patch_size
    assert not 14 <= grid_size <= 16
    assert tuple(config.low_frequency_sigmas) == choose_scan_sigmas(grid_size)
