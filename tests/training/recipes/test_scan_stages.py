import math
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.contrastive import image_text_contrastive_loss
from testing.tiny_concat_run import SIZE, RectanglesDataset, collate, read_records
from testing.tiny_scan_run import (
    CROP_SIZE,
    PATCH_SIZE,
    build_context,
    build_scan_model,
    build_scan_trainer,
)
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.losses.contrastive import compute_image_text_contrastive_loss
from zsseg.training.recipes.scan_stages import ContextualShiftOptions, ContextualShiftStage, ProposalStage

CLIP_PARTS = ("text_model.", "context_tower.", "shifted_")
START = {ProposalStage: {}, ContextualShiftStage: {"has_shifted_tower": True}}


class BlobDataset(RectanglesDataset):
    """Rectangles and, in them, a segment of the third colour of any shape; padding at the right."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        generator = torch.Generator().manual_seed(index)
        blob = torch.rand(SIZE, SIZE, generator=generator) < 0.2
        blob[:, : 4 + index] = False
        masks = torch.cat([example["mask_labels"] & ~blob, blob[None]])
        masks[:, :, -8:] = False
        labels = torch.cat([example["class_labels"], torch.tensor([(index + 2) % 3])])
        return {**example, "mask_labels": masks, "class_labels": labels}


def collate_padded(examples):
    batch = collate(examples)
    batch["pixel_mask"][:, :, -8:] = 0
    batch["label_mask"][:, :, -8:] = False
    batch["pixel_values"][:, :, :, -8:] = 0.0
    return batch


class StoppingDataset(RectanglesDataset):
    """Ctrl-C comes in the second epoch."""

    def __init__(self, stops):
        super().__init__(length=6)
        self.stops = stops

    def __getitem__(self, index):
        if self.stops and self.epoch == 1:
            self.stops = False
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


def build_batch(count=3):
    return collate_padded([BlobDataset()[index] for index in range(count)])


def without_segments(batch, images):
    masks, labels = list(batch["mask_labels"]), list(batch["class_labels"])
    for image in images:
        masks[image], labels[image] = masks[image][:0], labels[image][:0]
    return {**batch, "mask_labels": masks, "class_labels": labels}


def build_shifting_model(seed=0, **changes):
    """Towers that differ, so that it shows which one is run."""
    model = build_scan_model(seed, has_shifted_tower=True, **changes)
    ContextualShiftStage().constrain(model)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(ContextualShiftStage().is_trainable(name))
    return model


def cut_out_by_hand(picture, mask):
    """A (3, H, W) picture in CLIP's normalisation, 0 outside the mask, its box at the size of a crop."""
    rows, columns = (mask.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    box = np.s_[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    crop = torch.where(mask[box], picture[(slice(None), *box)], torch.zeros(()))
    pixels = F.interpolate(crop[None], (CROP_SIZE, CROP_SIZE), mode="bicubic")
    return pixels, F.interpolate(mask[box][None, None].float(), (CROP_SIZE, CROP_SIZE))[0, 0] > 0


def embed_by_hand(model, picture, mask, layers):
    """One crop; behind the blocks of ``layers`` hooks put the picture's CLS into all background patches."""
    config = model.config
    whole = F.interpolate(picture[None], (CROP_SIZE, CROP_SIZE), mode="nearest")
    hidden_states = model.context_tower(whole, output_hidden_states=True).hidden_states
    pixels, crop_mask = cut_out_by_hand(picture, mask)
    grid = CROP_SIZE // PATCH_SIZE
    is_background = [
        not bool(
            crop_mask[PATCH_SIZE * y : PATCH_SIZE * (y + 1), PATCH_SIZE * x : PATCH_SIZE * (x + 1)].any()
        )
        for y in range(grid)
        for x in range(grid)
    ]
    hooks = []
    for layer in layers:

        def overwrite(block, inputs, tokens, layer=layer):
            tokens = tokens.clone()
            for patch, is_outside in enumerate(is_background):
                if is_outside:
                    tokens[:, 1 + patch] = hidden_states[layer][0, 0]
            return tokens

        block = model.shifted_tower.vision_model.encoder.layers[layer - 1]
        hooks.append(block.register_forward_hook(overwrite))
    embeds = model.shifted_tower(pixels).image_embeds[0]
    for hook in hooks:
        hook.remove()
    assert config.vision_config.patch_size == PATCH_SIZE
    return embeds, sum(is_background)


@pytest.mark.parametrize(
    ("ratio", "option", "layers"), [(0.0, None, ()), (1.0, None, (1, 3)), (1.0, (2,), (2,))]
)
def test_the_contrast_is_that_of_crops_embedded_one_by_one(ratio, option, layers):
    """All background patches or none: what is drawn does not matter."""
    model, batch = build_shifting_model(), build_batch()
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.pixel_mean, model.config.pixel_std))
    clip_mean, clip_std = (
        torch.tensor(v)[:, None, None] for v in (model.config.clip_mean, model.config.clip_std)
    )
    embeds, labels, num_background = [], [], 0
    with torch.no_grad():
        for pixels, masks, names in zip(
            batch["pixel_values"], batch["mask_labels"], batch["class_labels"], strict=True
        ):
            picture = (pixels * std + mean - clip_mean) / clip_std
            picture[:, :, -8:] = 0.0
            for mask, label in zip(masks, names.tolist(), strict=True):
                # Masks end where the picture ends, so the crop is that of the padded picture.
                crop, count = embed_by_hand(model, picture, mask, layers)
                embeds.append(crop.numpy())
                labels.append(label)
                num_background += count
    # "red" has two texts, of which the first is taken; "green" stands behind it.
    context = build_context([0, 0, 1, 2])
    texts = context.text_embeds.numpy()[[0, 2, 3]]
    scale = float(model.shifted_logit_scale.detach().exp())
    expected = image_text_contrastive_loss(embeds, texts, labels, scale)
    nearest = [int(np.argmax(texts @ embed)) for embed in embeds]
    options = ContextualShiftOptions(crops_per_image=3, shift_ratio=ratio, shift_layers=option)
    losses = ContextualShiftStage(options).compute_loss(model.train(), batch, context)
    assert num_background > 0
    assert float(losses["loss"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(losses["accuracy"]) == pytest.approx(np.mean(np.array(nearest) == labels))
    assert float(losses["logit_scale"]) == pytest.approx(model.config.logit_scale)


def test_crops_are_drawn_anew_in_every_step_and_no_more_than_asked_for(monkeypatch):
    model, batch, counts = build_shifting_model(), build_batch(), []
    forward = model.shifted_tower.vision_model.embeddings.forward

    def listen(pixel_values, *arguments, **keywords):
        counts.append(len(pixel_values))
        return forward(pixel_values, *arguments, **keywords)

    monkeypatch.setattr(model.shifted_tower.vision_model.embeddings, "forward", listen)
    stage = ContextualShiftStage(ContextualShiftOptions(crops_per_image=2))
    losses = {float(stage.compute_loss(model, batch, build_context())["loss"].detach()) for _ in range(6)}
    assert counts == [6] * 6
    assert len(losses) > 2


@pytest.mark.parametrize("stage", [ProposalStage, ContextualShiftStage])
@pytest.mark.parametrize("images", [(1,), (0, 1, 2)])
def test_pictures_without_a_segment_give_a_finite_loss_and_gradients(stage, images):
    model = build_scan_model(**START[stage]).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage().is_trainable(name))
    losses = stage().compute_loss(model, without_segments(build_batch(), images), build_context())
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    losses["loss"].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if stage is ContextualShiftStage:
        # Every process of a distributed run has to have gradients, of 0 where there is nothing to learn.
        assert len(gradients) == sum(parameter.requires_grad for parameter in model.parameters())
        learns = len(images) < 3
        assert (float(losses["loss"].detach()) > 0) == learns
        assert any(bool(gradient.any()) for gradient in gradients) == learns


@pytest.mark.parametrize(
    ("stage", "start", "expected"),
    [
        (
            ProposalStage,
            {"has_shifted_tower": True},
            {"segmentor", "proposal_head", "sim", "no_object_embedding"},
        ),
        (ContextualShiftStage, {"has_shifted_tower": True}, {"shifted_tower", "shifted_logit_scale"}),
    ],
)
def test_each_stage_moves_its_own_weights_and_no_other(tmp_path, stage, start, expected):
    model = build_scan_model(**start)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_scan_trainer(tmp_path, model=model, stage=stage(), steps=2).train()
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in changed} == expected
    # All that gets gradients moves, and nothing else does.
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_proposals_loss_falls(tmp_path, seed):
    trainer = build_scan_trainer(
        tmp_path, model=build_scan_model(seed), steps=40, batch_size=4, learning_rate=2e-3, seed=seed
    )
    trainer.train()
    first, *_, last = read_records(tmp_path)
    assert last["loss"] < first["loss"] / 2
    assert last["mask"] < first["mask"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_contrast_comes_down_to_what_shared_names_leave(tmp_path, seed):
    trainer = build_scan_trainer(
        tmp_path,
        model=build_shifting_model(seed),
        stage=ContextualShiftStage(),
        dataset=RectanglesDataset(length=4),
        steps=40,
        batch_size=4,
        learning_rate=2e-3,
        seed=seed,
    )
    trainer.train()
    first, *_, last = read_records(tmp_path)
    # Three, three and two of the eight segments have one name: a name cannot tell these from each other.
    floor = np.mean(np.log([3, 3, 2])) / 2
    assert 0 <= last["loss"] - floor < (first["loss"] - floor) / 3
    assert last["accuracy"] == 1.0


class TemperatureStage(ContextualShiftStage):
    """Nothing but the temperature moves."""

    def is_trainable(self, parameter_name):
        return parameter_name == "shifted_logit_scale"


@pytest.mark.parametrize("start", [9.0, -9.0, 4.0])
def test_the_temperature_stays_in_range_wherever_the_optimizer_drives_it(tmp_path, start):
    model = build_shifting_model()
    with torch.no_grad():
        model.shifted_logit_scale.fill_(start)
    build_scan_trainer(tmp_path, model=model, stage=TemperatureStage(), steps=12, learning_rate=3.0).train()
    scales = [record["logit_scale"] for record in read_records(tmp_path)]
    assert all(1.0 <= scale <= 100.0001 for scale in scales)
    assert 0.0 <= float(model.shifted_logit_scale.detach()) <= float(torch.tensor(math.log(100)))
    # From beyond the bounds it finds its way back.
    assert len(set(scales)) > 2


def test_the_contrast_is_computed_in_float32_also_under_autocast(monkeypatch):
    heard = []

    def listen(*arguments):
        heard.append((arguments, compute_image_text_contrastive_loss(*arguments)))
        return heard[-1][1]

    monkeypatch.setattr("zsseg.training.recipes.scan_stages.compute_image_text_contrastive_loss", listen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ContextualShiftStage().compute_loss(build_shifting_model(), build_batch(), build_context())
    (arguments, _), *_ = heard
    assert torch.equal(loss["loss"], compute_image_text_contrastive_loss(*arguments))


@pytest.mark.parametrize("keeps", [True, False])
def test_the_layer_before_the_last_counts_or_not(keeps):
    model = build_scan_model(keep_last_auxiliary_loss=keeps).eval()
    batch, context = build_batch(), build_context()
    state = model.criterion.get_rng_state()
    losses = ProposalStage().compute_loss(model, batch, context)
    features = compute_mask_transformer_features(model.segmentor, batch["pixel_values"])
    clip_pixels = model.normalise_for_clip(batch["pixel_values"], batch["pixel_mask"])
    whole = model.encode_context(clip_pixels, [(SIZE, SIZE - 8)] * 3)
    parts, classes = [], []
    for queries, masks in zip(features.query_embeds, features.mask_logits, strict=True):
        embeds = model.sim(
            model.proposal_head(queries),
            whole.select_grids(model.config.integration_layers),
            whole.image_embeds,
        )
        words = F.normalize(torch.cat([context.text_embeds, model.no_object_embedding[None]]), dim=-1)
        logits = model.config.logit_scale * F.normalize(embeds, dim=-1) @ words.T
        # The same points for every layer.
        model.criterion.set_rng_state(state)
        alone = model.criterion(
            [logits], [masks], batch["mask_labels"], batch["class_labels"], batch["label_mask"]
        )
        parts.append(float(alone.loss.detach()))
        classes.append(float(alone.losses["class"]))
    assert len(parts) == 3
    counted = (0, 1) if keeps else (0,)
    assert float(losses["loss"].detach()) == pytest.approx(
        parts[2] + sum(parts[i] for i in counted), rel=1e-4
    )
    assert float(losses["auxiliary_class"]) == pytest.approx(sum(classes[i] for i in counted), rel=1e-4)


@pytest.mark.parametrize("stage", [ProposalStage, ContextualShiftStage])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, stage):
    def build(folder, seed=0):
        return build_scan_trainer(
            tmp_path / folder,
            model=build_scan_model(seed, integration_dropout=0.1, **START[stage]),
            stage=stage(),
            dataset=StoppingDataset(stops=folder == "parts" and seed == 0),
            steps=6,
        )

    assert not build("parts").train().is_complete
    resumed, whole = build("parts", seed=9), build("whole")
    assert resumed.train(resume=True).is_complete
    whole.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops_per_image": 0}, "crops_per_image must be 1 or more"),
        ({"shift_ratio": 1.5}, r"shift_ratio must lie in \[0, 1\]"),
        ({"shift_layers": ()}, "shift_layers must be blocks counted from 1"),
        ({"shift_layers": (0, 2)}, "shift_layers must be blocks counted from 1"),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        ContextualShiftOptions(**changes)
