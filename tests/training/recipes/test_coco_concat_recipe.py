import ast
import inspect
import io
import re
import runpy
import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
)

from testing.tiny_concat_run import EMBED_DIM, build_processor_with_tokenizer, build_text_config
from zsseg import ConcatForPanopticSegmentation, PrecomputedTextEmbeddings
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.vocabularies import load_split
from zsseg.layers.vision_language import VisionLanguageTeacher
from zsseg.training.optimization import compute_learning_rate_factor
from zsseg.training.recipes import coco_concat
from zsseg.training.recipes.coco_concat import (
    COCO_SPLIT,
    COCO_TRANSITION,
    build_coco_concat,
    build_coco_concat_stages,
)
from zsseg.training.recipes.concat_stages import build_token_store, train_concat_stages

TINY_BACKBONE = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    layer_type="basic",
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
SIZE = (64, 64)
DOCUMENT = Path(__file__).parents[3] / "docs" / "training_coco.md"


def build_words(names, width):
    return PrecomputedTextEmbeddings(names, np.random.default_rng(0).normal(size=(len(names), width)))


def build_teacher():
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=EMBED_DIM,
    )
    torch.manual_seed(0)
    return VisionLanguageTeacher(
        CLIPVisionModelWithProjection(config),
        attrgetter("image_embeds"),
        image_size=16,
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
    )


def test_the_model_has_the_size_of_the_reference():
    model, processor = build_coco_concat(build_words(load_split(COCO_SPLIT).names, 512))
    segmentor = model.segmentor
    assert segmentor.pixel_level_module.encoder.channels == [256, 512, 1024, 2048]
    blocks = [len(stage.layers) for stage in segmentor.pixel_level_module.encoder.encoder.stages]
    assert blocks == [3, 4, 6, 3]
    assert len(segmentor.pixel_level_module.decoder.encoder.layers) == 6
    layers = segmentor.transformer_module.decoder.layers
    assert len(layers) == 9
    assert (layers[0].fc1.in_features, layers[0].fc1.out_features) == (256, 2048)
    assert segmentor.transformer_module.queries_features.weight.shape == (100, 256)
    assert model.semantic_projector[-1].weight.shape == (512, 256)
    assert model.criterion.num_points == 12_544
    assert model.config.logit_scale == 100.0
    assert model.text_model is None
    assert processor.encode_labels(["giraffe"])["text_embeds"].shape == (1, 512)
    # ResNet-50 has 23.5 M parameters without its classifier.
    assert 43e6 < sum(parameter.numel() for parameter in model.parameters()) < 45e6


def test_backbone_and_text_tower_come_with_their_weights(tmp_path):
    torch.manual_seed(1)
    classifier = ResNetForImageClassification(TINY_BACKBONE)
    classifier.save_pretrained(tmp_path / "resnet")
    tower = CLIPTextModelWithProjection(build_text_config())
    tower.save_pretrained(tmp_path / "clip")
    build_processor_with_tokenizer().tokenizer.save_pretrained(tmp_path / "clip")
    model, processor = build_coco_concat(tmp_path / "clip", backbone=tmp_path / "resnet", **TINY_SEGMENTOR)
    encoder = model.segmentor.pixel_level_module.encoder
    assert isinstance(encoder, ResNetBackbone)
    for name, weights in encoder.state_dict().items():
        torch.testing.assert_close(weights, classifier.resnet.state_dict()[name], rtol=0, atol=0)
    text = processor.encode_labels(["red", "blue"])
    with torch.no_grad():
        expected = tower(text["input_ids"].flatten(0, 1), text["attention_mask"].flatten(0, 1)).text_embeds
    expected = (
        torch.nn.functional.normalize(expected, dim=-1)
        .view(2, len(processor.prompt_templates), -1)
        .mean(dim=1)
    )
    actual = model.encode_text(text["input_ids"], text["attention_mask"])
    torch.testing.assert_close(actual, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_processes", "accumulation", "batch_size"), [(1, 1, 16), (8, 1, 2), (2, 4, 2)])
def test_schedules_are_those_of_the_reference_on_any_number_of_gpus(
    tmp_path, num_processes, accumulation, batch_size
):
    stages = build_coco_concat_stages(
        tmp_path, num_processes=num_processes, gradient_accumulation_steps=accumulation
    )
    assert list(stages) == ["alignment", "generator", "union"]
    alignment, generator, union = stages.values()
    assert (alignment.batch_size, alignment.gradient_accumulation_steps) == (batch_size, accumulation)
    assert (alignment.optimizer, alignment.learning_rate, alignment.weight_decay) == ("adamw", 1e-4, 0.05)
    assert (generator.batch_size, generator.learning_rate) == (12, 5e-4)
    assert (union.optimizer, union.learning_rate, union.momentum, union.weight_decay) == (
        *("sgd", 1e-3),
        *(0.9, 5e-4),
    )
    for arguments, steps, falls in (
        (alignment, 140_350, (126_315, 133_333)),
        (generator, 20_000, (14_000, 18_500)),
    ):
        assert arguments.steps == steps
        for fall, after in zip(falls, (0.1, 0.01), strict=True):
            assert compute_learning_rate_factor(fall - 1, arguments) == pytest.approx(10 * after)
            assert compute_learning_rate_factor(fall, arguments) == pytest.approx(after)


def test_a_step_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must divide the 16 pictures of a step, got 3 × 1"):
        build_coco_concat_stages(tmp_path, num_processes=3)


@pytest.mark.slow
def test_all_stages_run_and_resume(tmp_path):
    pictures = PatchworkDataset("easy", num_scenes=24, size=32)
    words = build_words(pictures.vocabulary.names, EMBED_DIM)
    backbone = {"backbone_config": TINY_BACKBONE.to_dict()}
    model, processor = build_coco_concat(words, **TINY_SEGMENTOR, **backbone)
    stages = {
        name: replace(arguments, steps=2, batch_size=2, num_workers=0, save_every=None, mixed_precision="no")
        for name, arguments in build_coco_concat_stages(tmp_path).items()
    }

    def train(model, names, **further):
        return train_concat_stages(
            *(model, processor, pictures),
            stages={name: stages[name] for name in names},
            store_folder=tmp_path,
            size=SIZE,
            options=replace(COCO_TRANSITION, hidden_dim=16, memory_size=8),
            stream=io.StringIO(),
            **further,
        )

    teacher = build_teacher()
    assert train(model, ["alignment"], teacher=teacher)["alignment"].is_complete
    aligned = {name: weights.clone() for name, weights in model.state_dict().items()}
    results = train(model, ["generator", "union"])
    assert [result.is_complete for result in results.values()] == [True, True]
    changed = {
        name for name, weights in aligned.items() if not torch.equal(weights, model.state_dict()[name])
    }
    assert changed == {"semantic_projector.0.weight", "semantic_projector.0.bias", "no_object_embedding"}
    assert len(model.memory.queries) == 8
    assert len(model.config.known_labels) == len(pictures.vocabulary)

    saved = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "union" / "last").state_dict()
    fresh, _ = build_coco_concat(words, seed=1, **TINY_SEGMENTOR, **backbone)
    assert train(fresh, ["alignment"], teacher=teacher, resume=True)["alignment"].step == 2
    train(fresh, ["generator", "union"], resume=True)
    for name, weights in saved.items():
        torch.testing.assert_close(fresh.state_dict()[name], weights, rtol=0, atol=0)


def test_the_documented_script_names_what_is_there(tmp_path, monkeypatch):
    """Its imports and options hold; what follows needs COCO."""
    text = DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    script = tmp_path / "train_coco.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [script.name, "alignment"])
    with pytest.raises(FileNotFoundError, match="panoptic_train2017"):
        runpy.run_path(str(script), run_name="__main__")
    used = set(re.findall(r"recipe\.(\w+)", text))
    assert used
    assert not [name for name in used if not hasattr(coco_concat, name)]
    functions = {function.__name__: function for function in (build_token_store, train_concat_stages)}
    called = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            called.add(node.func.id)
            named = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(functions[node.func.id]).bind(*node.args, **named)
    assert called == set(functions)
