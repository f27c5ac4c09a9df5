import pytest
import torch

from zsseg.data.collate import PanopticCollator
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.training.recipes.concat_segmentor import BackboneStage, WarmupStage, compute_segment_losses
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip
from zsseg.training.recipes.patchwork_concat import (
    SHALLOW_DEPTHS,
    build_patchwork_concat,
    deepen_backbone,
)
from zsseg.training.stage import StageContext


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """An untrained CLIP of the recipe."""
    folder = tmp_path_factory.mktemp("clip")
    for part in build_patchwork_clip():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untrained(clip):
    return build_patchwork_concat(clip)


def build_batch(count=2):
    scenes = PatchworkDataset("easy", num_scenes=count, categories="seen")
    collate = PanopticCollator((0.4,) * 3, (0.25,) * 3)
    return collate([scenes[index] for index in range(count)]), scenes


def test_masks_are_predicted_on_half_of_the_side(untrained):
    model, processor = untrained
    scene = PatchworkDataset(num_scenes=1)[0]
    with torch.no_grad():
        outputs = model(**processor(images=scene.image, candidate_labels=["striped star", "zebra"]))
    assert outputs.masks_queries_logits.shape == (1, 24, 64, 64)
    assert outputs.class_queries_logits.shape == (1, 24, 3)


def test_a_deepened_backbone_computes_the_same_until_it_learns(untrained):
    model, _ = untrained
    deeper = deepen_backbone(model, (3, 2, 4, 2, 1)).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            deeper.compute_pixel_embeds(pixels), model.eval().compute_pixel_embeds(pixels)
        )
    assert deeper.config.segmentor_config.backbone_config.depths == [3, 2, 4, 2, 1]
    assert model.config.segmentor_config.backbone_config.depths == list(SHALLOW_DEPTHS)
    added = {name for name, _ in deeper.named_parameters()} - {name for name, _ in model.named_parameters()}
    scales = [deeper.get_parameter(name) for name in added if name.endswith("layer_scale_parameter")]
    assert len(scales) == 3
    deeper.compute_pixel_embeds(pixels).square().sum().backward()
    assert all(scale.grad.abs().sum() > 0 for scale in scales)
    with pytest.raises(ValueError, match="cannot be deepened"):
        deepen_backbone(model, (1, 1, 3, 2, 1))
    with pytest.raises(ValueError, match="cannot be deepened"):
        deepen_backbone(model, (1, 2, 3, 2))


def test_segment_losses_weigh_small_and_large_segments_alike(untrained):
    model, _ = untrained
    batch, _ = build_batch()
    torch.manual_seed(0)
    cross_entropy = torch.rand(2, 64, 64)
    is_known = torch.ones(2, 64, 64, dtype=torch.bool)
    pixel_embeds = torch.randn(2, 96, 64, 64)
    losses = compute_segment_losses(model, pixel_embeds, cross_entropy, batch["mask_labels"], is_known)
    means = [
        cross_entropy[image][mask[1::2, 1::2]].mean()
        for image, masks in enumerate(batch["mask_labels"])
        for mask in masks
        if mask[1::2, 1::2].any()
    ]
    torch.testing.assert_close(losses["segment_class"], torch.stack(means).mean())


def test_unknown_pixels_have_no_say_in_segment_losses(untrained):
    model, _ = untrained
    batch, _ = build_batch()
    is_known = torch.ones(2, 64, 64, dtype=torch.bool)
    is_known[:, :, 40:] = False
    pixel_embeds = torch.randn(2, 96, 64, 64, generator=torch.Generator().manual_seed(0))
    cross_entropy = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(1))
    results = []
    for _ in range(2):
        model.criterion.generator.manual_seed(0)
        losses = compute_segment_losses(model, pixel_embeds, cross_entropy, batch["mask_labels"], is_known)
        results.append(torch.stack([value.detach() for value in losses.values()]))
        pixel_embeds[..., 40:] = 100.0
        cross_entropy[..., 40:] = 100.0
    torch.testing.assert_close(results[0], results[1])
    nothing = compute_segment_losses(
        model, pixel_embeds, cross_entropy, batch["mask_labels"], torch.zeros_like(is_known)
    )
    assert all(float(value) == 0.0 for value in nothing.values())


def test_the_backbone_learns_to_name_segments(clip):
    model, processor = build_patchwork_concat(clip)
    batch, scenes = build_batch()
    labels = processor(candidate_labels=scenes.vocabulary)
    text_embeds = model.encode_text(labels["input_ids"], labels["attention_mask"])
    context = StageContext(scenes.vocabulary, text_embeds, labels["text_label_ids"])
    stage = BackboneStage()
    trained = {name: p for name, p in model.named_parameters() if stage.is_trainable(name)}
    optimizer = torch.optim.AdamW(trained.values(), 1e-3)
    for step in range(20):
        losses = stage.compute_loss(model, batch, context)
        losses["loss"].backward()
        if step == 0:
            first = float(losses["loss"].detach())
            assert not [
                name for name, p in model.named_parameters() if p.grad is not None and name not in trained
            ]
            without = [name for name, p in trained.items() if p.grad is None]
            assert not [name for name in without if "layernorm" not in name]
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses["loss"].detach()) < 0.5 * first


def test_the_warm_up_teaches_pixels_to_draw_their_segments(clip):
    model, processor = build_patchwork_concat(clip)
    batch, scenes = build_batch()
    labels = processor(candidate_labels=scenes.vocabulary)
    text_embeds = model.encode_text(labels["input_ids"], labels["attention_mask"])
    context = StageContext(scenes.vocabulary, text_embeds, labels["text_label_ids"])
    stage = WarmupStage(segment_weight=1.0)
    trained = [p for name, p in model.named_parameters() if stage.is_trainable(name)]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    history = []
    for _ in range(16):
        losses = stage.compute_loss(model, batch, context)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["segment_mask"] < 0.8 * history[0]["segment_mask"]
    assert history[-1]["segment_class"] < history[0]["segment_class"]
