import ast
import inspect
import io
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    SwinConfig,
    SwinForImageClassification,
)

from testing.tiny_scan_run import save_scan_clip
from zsseg import ScanForSemanticSegmentation
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.models.scan.configuration_scan import choose_scan_layers
from zsseg.training.optimization import compute_learning_rate_factor
from zsseg.training.recipes import coco_scan
from zsseg.training.recipes.coco_scan import (
    COCO_SHIFT,
    build_coco_scan,
    build_coco_scan_config,
    build_coco_scan_stages,
)
from zsseg.training.recipes.scan import build_scan_transform, train_scan
from zsseg.training.recipes.scan_stages import ProposalStage

TINY_SWIN = SwinConfig(
    embed_dim=8,
    depths=[1] * 4,
    num_heads=[1, 1, 2, 2],
    window_size=4,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
TINY_SEGMENTOR = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "decoder_layers": 2,
    "num_queries": 12,
    "train_num_points": 64,
}
CLIPS = {
    "B": ({"patch_size": 16, "projection_dim": 512}, {}),
    "L": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "projection_dim": 768,
        },
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768},
    ),
}
DOCUMENT = Path(__file__).parents[3] / "docs" / "training_coco_scan.md"


@pytest.mark.parametrize(
    ("size", "trained", "total"), [("B", 135_647_801, 371_461_178), ("L", 158_671_673, 890_254_394)]
)
def test_the_model_has_the_weights_of_the_paper(size, trained, total):
    vision, text = CLIPS[size]
    config = build_coco_scan_config(
        vision_config=CLIPVisionConfig(**vision),
        text_config=CLIPTextConfig(**text),
        projection_dim=vision["projection_dim"],
        **choose_scan_layers(vision.get("num_hidden_layers", 12)),
    )
    with torch.device("meta"):
        model = ScanForSemanticSegmentation(config)
    counts = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        # Transformers' Swin has a norm behind its last stage that no backbone runs.
        if not name.endswith(("encoder.swin.layernorm.weight", "encoder.swin.layernorm.bias"))
    }
    assert sum(counts.values()) == total
    assert sum(count for name, count in counts.items() if ProposalStage().is_trainable(name)) == trained
    assert len(model.segmentor.transformer_module.decoder.layers) == 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_scan_clip(folder)
    return folder


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    torch.manual_seed(1)
    SwinForImageClassification(TINY_SWIN).save_pretrained(folder)
    return folder


def test_backbone_and_both_towers_come_with_their_weights(clip, swin):
    model, processor = build_coco_scan(str(clip), backbone=str(swin), segmentor_config=TINY_SEGMENTOR)
    classifier = SwinForImageClassification.from_pretrained(swin).state_dict()
    encoder = model.segmentor.pixel_level_module.encoder
    for name, weights in encoder.state_dict().items():
        if name.startswith("swin."):
            torch.testing.assert_close(weights, classifier[name], rtol=0, atol=0)
    assert encoder.config.drop_path_rate == 0.3
    expected = CLIPModel.from_pretrained(clip)
    for name, weights in model.context_tower.state_dict().items():
        torch.testing.assert_close(weights, expected.state_dict()[name], rtol=0, atol=0)
    text = processor.encode_labels(["red", "blue"])
    words = text["input_ids"].flatten(0, 1), text["attention_mask"].flatten(0, 1)
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(expected.get_text_features(*words).pooler_output, dim=-1)
    means = embeds.view(2, len(processor.prompt_templates), -1).mean(dim=1)
    actual = model.encode_text(text["input_ids"], text["attention_mask"])
    torch.testing.assert_close(actual, torch.nn.functional.normalize(means, dim=-1), rtol=1e-5, atol=1e-5)
    assert len(processor.prompt_templates) == 14


@pytest.mark.parametrize(
    ("num_processes", "accumulation", "batch_sizes"), [(1, 1, (32, 64)), (8, 1, (4, 8)), (8, 4, (1, 8))]
)
def test_schedules_are_those_of_the_paper_on_any_number_of_gpus(
    tmp_path, num_processes, accumulation, batch_sizes
):
    stages = build_coco_scan_stages(
        tmp_path, num_processes=num_processes, gradient_accumulation_steps=accumulation
    )
    proposals, shift = stages.values()
    assert list(stages) == ["proposals", "contextual_shift"]
    assert tuple(stage.batch_size for stage in stages.values()) == batch_sizes
    assert (proposals.gradient_accumulation_steps, shift.gradient_accumulation_steps) == (accumulation, 1)
    assert (proposals.steps, proposals.learning_rate, proposals.weight_decay) == (120_000, 6e-5, 0.01)
    assert (proposals.max_grad_norm, proposals.mixed_precision) == (0.01, "no")
    assert compute_learning_rate_factor(0, proposals) < 1e-3
    assert compute_learning_rate_factor(1_500, proposals) == 1.0
    assert compute_learning_rate_factor(60_750, proposals) == pytest.approx(0.5**0.9)
    assert (shift.learning_rate, shift.weight_decay, shift.adam_betas) == (5e-6, 0.2, (0.9, 0.98))
    # Ten epochs of the pictures, 256 crops a step.
    assert (shift.steps, shift.max_grad_norm) == (math.ceil(10 * 118_287 / 64), None)
    assert COCO_SHIFT.crops_per_image * shift.batch_size * num_processes == 256
    assert compute_learning_rate_factor(100, shift) == 1.0
    assert compute_learning_rate_factor(shift.steps - 1, shift) < 1e-6


def test_a_step_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must divide the 32 pictures of a step of proposals, got 3 × 1"):
        build_coco_scan_stages(tmp_path, num_processes=3)


@pytest.mark.slow
def test_both_stages_run_and_resume(tmp_path, clip):
    pictures = PatchworkDataset("easy", num_scenes=8, size=32)
    stages = {
        name: replace(arguments, steps=2, warmup_steps=0, batch_size=2, num_workers=0, save_every=None)
        for name, arguments in build_coco_scan_stages(tmp_path).items()
    }

    def train(names, **further):
        model, processor = build_coco_scan(
            str(clip),
            segmentor_config={**TINY_SEGMENTOR, "backbone_config": TINY_SWIN.to_dict()},
        )
        results = train_scan(
            *(model, processor, pictures),
            stages={name: stages[name] for name in names},
            transform=build_scan_transform((64, 64)),
            unseen="ignore_pixels",
            # The paper's blocks are those of deeper towers.
            shift=replace(COCO_SHIFT, shift_layers=(1, 3)),
            stream=io.StringIO(),
            **further,
        )
        return model, results

    _, results = train(["proposals"])
    assert results["proposals"].is_complete
    model, results = train(stages, resume=True)
    assert results["contextual_shift"].is_complete
    again, _ = train(stages, resume=True)
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weights, rtol=0, atol=0)


def test_the_documented_script_names_what_is_there(tmp_path, monkeypatch):
    """Its imports and options hold; what follows needs COCO-Stuff."""
    text = DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    script = tmp_path / "train_coco_scan.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [script.name])
    with pytest.raises(FileNotFoundError, match="train2017"):
        runpy.run_path(str(script), run_name="__main__")
    functions = {"train_scan": train_scan, "build_scan_transform": build_scan_transform}
    recipe_functions = ("build_coco_scan", "build_coco_scan_stages")
    functions |= {name: getattr(coco_scan, name) for name in recipe_functions}
    called = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "recipe":
            assert hasattr(coco_scan, node.attr), node.attr
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            if name in functions:
                called.add(name)
                named = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(functions[name]).bind(*node.args, **named)
    assert called == set(functions)
