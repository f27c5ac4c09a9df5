import math

import pytest
import torch
from torch import nn

from testing.tiny_concat_run import build_model
from zsseg.training.arguments import TrainerArguments
from zsseg.training.optimization import (
    build_optimizer,
    build_parameter_groups,
    compute_learning_rate_factor,
    freeze_batch_norm,
    prepare_trainable,
    set_learning_rates,
)
from zsseg.training.recipes.concat_segmentor import BACKBONE_PREFIX, SegmentorStage, WarmupStage


def build_arguments(**values):
    return TrainerArguments(output_dir="unused", **{"steps": 100, "learning_rate": 1e-3, **values})


def test_milestones_multiply_by_gamma():
    arguments = build_arguments(milestones=(0.5, 0.9), gamma=0.1)
    factors = [compute_learning_rate_factor(step, arguments) for step in (0, 49, 50, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_polynomial_falls_from_one_to_almost_zero():
    arguments = build_arguments(schedule="polynomial", polynomial_power=2.0)
    assert [compute_learning_rate_factor(step, arguments) for step in (0, 50, 99)] == pytest.approx(
        [1, 0.25, 0.0001]
    )


def test_cosine_falls_from_one_to_almost_zero_behind_the_warm_up():
    arguments = build_arguments(schedule="cosine", warmup_steps=20)
    factors = [compute_learning_rate_factor(step, arguments) for step in (20, 40, 60, 80, 99)]
    expected = [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.5 - 0.5 * math.cos(math.pi / 80)]
    assert factors == pytest.approx(expected)


def test_adamw_takes_the_betas():
    model, stage = build_model(), SegmentorStage()
    arguments = build_arguments(adam_betas=(0.5, 0.75), weight_decay=0.0)
    prepare_trainable(model, stage, arguments)
    optimizer = build_optimizer(model, stage, arguments)
    parameter = model.no_object_embedding
    before = parameter.detach().clone()
    for gradient in (1.0, -0.5):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    # By hand: moments 0.5 and 0.25, then 0 and 0.25; the first divided by 1 − 0.5 and 1 − 0.75.
    first = (0.5 / (1 - 0.5)) / math.sqrt(0.25 / (1 - 0.75))
    second = (0.5 * 0.5 + 0.5 * -0.5) / (1 - 0.25) / math.sqrt((0.75 * 0.25 + 0.25 * 0.25) / (1 - 0.5625))
    torch.testing.assert_close(parameter.detach(), before - 1e-3 * (first + second))


def test_warmup_rises_linearly_and_never_starts_at_zero():
    arguments = build_arguments(schedule="constant", warmup_steps=4)
    factors = [compute_learning_rate_factor(step, arguments) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_groups_cover_the_trainable_parameters_once_with_their_rates():
    model, stage, arguments = build_model(), SegmentorStage(), build_arguments()
    prepare_trainable(model, stage, arguments)
    groups = build_parameter_groups(model, stage, arguments)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        assert [id(p) for p in group["params"]] == [id(model.get_parameter(n)) for n in group["names"]]
        is_backbone = {name.startswith(BACKBONE_PREFIX) for name in group["names"]}
        assert len(is_backbone) == 1
        assert group["lr"] == pytest.approx(1e-4 if is_backbone.pop() else 1e-3)


def test_norms_biases_embeddings_and_free_parameters_do_not_decay():
    model, stage, arguments = build_model(), SegmentorStage(), build_arguments()
    prepare_trainable(model, stage, arguments)
    decay = {
        name: group["weight_decay"]
        for group in build_parameter_groups(model, stage, arguments)
        for name in group["names"]
    }
    transformer = "segmentor.transformer_module."
    for name in (
        "no_object_embedding",
        "semantic_projector.0.bias",
        transformer + "queries_embedder.weight",
        transformer + "decoder.layernorm.weight",
        "segmentor.pixel_level_module.decoder.level_embed",
        "segmentor.pixel_level_module.decoder.adapter_1.1.weight",
    ):
        assert decay[name] == 0.0, name
    for name in (
        "semantic_projector.0.weight",
        transformer + "decoder.layers.0.cross_attn.in_proj_weight",
        BACKBONE_PREFIX + "embedder.embedder.convolution.weight",
    ):
        assert decay[name] == 0.05, name


def test_the_warmup_leaves_queries_alone():
    model, stage, arguments = build_model(), WarmupStage(), build_arguments()
    prepare_trainable(model, stage, arguments)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "semantic_projector.0.weight" in trained
    assert not any("transformer_module" in name or "no_object" in name for name in trained)


def test_a_zero_multiplier_freezes_the_backbone():
    model, stage = build_model(), SegmentorStage()
    prepare_trainable(model, stage, build_arguments(backbone_learning_rate_multiplier=0.0))
    backbone = [p for n, p in model.named_parameters() if n.startswith(BACKBONE_PREFIX)]
    assert backbone
    assert not any(parameter.requires_grad for parameter in backbone)


def test_batch_norm_keeps_statistics_and_weights():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    freeze_batch_norm(layers)
    before = {name: value.clone() for name, value in layers[1].state_dict().items()}
    layers(torch.randn(5, 3, 4, 4)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in layers[1].state_dict().items())
    assert layers[1].weight.grad is None
    assert layers[0].weight.grad is not None


def test_an_unknown_backbone_is_named():
    stage = SegmentorStage()
    stage.backbone_prefixes = ("trunk.",)
    with pytest.raises(ValueError, match=r"'trunk\.', but no parameter of ConcatForPanopticSegmentation"):
        prepare_trainable(build_model(), stage, build_arguments())


def test_a_stage_that_trains_nothing_is_refused():
    class NothingStage(SegmentorStage):
        name = "nothing"

        def is_trainable(self, parameter_name):
            return False

    with pytest.raises(ValueError, match="'nothing' trains no parameter"):
        prepare_trainable(build_model(), NothingStage(), build_arguments())


def test_rates_are_set_relative_to_each_groups_own():
    model, stage, arguments = build_model(), SegmentorStage(), build_arguments()
    prepare_trainable(model, stage, arguments)
    optimizer = build_optimizer(model, stage, arguments)
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.1)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([1e-5, 1e-4, 1e-4])


def test_sgd_moves_by_rate_and_momentum():
    model, stage = build_model(), SegmentorStage()
    arguments = build_arguments(optimizer="sgd", momentum=0.5, weight_decay=0.0)
    prepare_trainable(model, stage, arguments)
    optimizer = build_optimizer(model, stage, arguments)
    parameter = model.no_object_embedding
    before = parameter.detach().clone()
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 1e-3 * (1 + 1.5))


def test_an_optimizer_that_is_not_there():
    with pytest.raises(ValueError, match="optimizer must be one of"):
        build_arguments(optimizer="adam")
