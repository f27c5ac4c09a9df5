import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection, pipeline
from transformers.utils import ModelOutput

from oracles import label_scores, mask_crops
from oracles.open_vocabulary import class_logits
from oracles.panoptic_merge import resize, sigmoid, softmax
from testing.model_tester import (
    LABELS,
    AutoClassMixin,
    PipelineMixin,
    SaveLoadMixin,
    StrictLoadingMixin,
    TrainingMixin,
    VocabularyMixin,
    build_pictures,
)
from testing.tiny_models import (
    NUM_QUERIES,
    TEXT_WIDTH,
    build_clip_text_config,
    build_picture,
    build_scan,
    build_scan_config,
    build_scan_processor,
)
from zsseg import ScanConfig, ScanForSemanticSegmentation
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.models.scan.configuration_scan import SCAN_MODES
from zsseg.models.scan.contextual_shift import iterate_mask_crops
from zsseg.models.scan.modeling_scan import (
    compute_clip_probabilities,
    compute_ensemble_scores,
    convert_scores_to_logits,
)
from zsseg.registration import TASKS

SIZES = [(64, 96)] * 2
CLIP_ONLY = {"has_proposal_head": False, "has_semantic_integration": False, "mode": "clip_only"}
IN_VOCAB_ONLY = {
    "has_semantic_integration": False,
    "has_shifted_tower": False,
    "mode": "in_vocab_only",
    "vision_config": None,
}


def put_threshold_into_a_gap(model, pixel_values, num_valid=None):
    """Give every mask few pixels, or only some masks any, and let rounding decide no pixel."""
    with torch.no_grad():
        outputs = compute_mask_transformer_features(model.segmentor, pixel_values)
    masks = F.interpolate(outputs.mask_logits[-1], pixel_values.shape[-2:], mode="bilinear").sigmoid()
    values = masks.flatten().double().sort().values
    if num_valid is None:
        values = values[int(0.94 * len(values)) : int(0.97 * len(values))]
    else:
        highest = masks.flatten(0, 1).flatten(1).amax(dim=1).double().sort(descending=True).values
        values = values[(values >= highest[num_valid]) & (values <= highest[num_valid - 1])]
    widest = values.diff().argmax()
    assert values.diff()[widest] > 4e-6
    model.config.crop_mask_threshold = ((values[widest] + values[widest + 1]) / 2).item()
    return model


class TestScan(
    SaveLoadMixin, StrictLoadingMixin, AutoClassMixin, TrainingMixin, VocabularyMixin, PipelineMixin
):
    model_class = ScanForSemanticSegmentation
    frozen = ("text_model.", "context_tower.")
    outside_the_loss = ("shifted_",)  # the loss knows no crops

    def build_model(self):
        model = build_scan(text_config=build_clip_text_config())
        pictures = build_scan_processor()(build_pictures(), LABELS)["pixel_values"]
        return put_threshold_into_a_gap(model, pictures)

    def build_processor(self):
        return build_scan_processor()

    def build_targets(self, pixel_values):
        height, width = pixel_values.shape[2:]
        left = torch.zeros(height, width, dtype=torch.bool)
        left[:, : width // 2] = True
        return {
            "mask_labels": [torch.stack([left, ~left]), left[None]],
            "class_labels": [torch.tensor([0, 1]), torch.tensor([2])],
            "label_mask": torch.ones(2, height, width, dtype=torch.bool),
        }

    def test_the_towers_are_two(self):
        model = self.build_model()
        names = {name.partition(".")[0] for name, _ in model.named_parameters()}
        assert {"context_tower", "shifted_tower"} <= names
        assert all(parameter.requires_grad for parameter in model.shifted_tower.parameters())


class TestScanByClipOnly(SaveLoadMixin, AutoClassMixin, VocabularyMixin, PipelineMixin):
    """Mask2Former and CLIP as they are."""

    model_class = ScanForSemanticSegmentation
    frozen = ("text_model.", "context_tower.")

    def build_model(self):
        model = build_scan(
            text_config=build_clip_text_config(), has_shifted_tower=False, shift_ratio=0, **CLIP_ONLY
        )
        pictures = build_scan_processor()(build_pictures(), LABELS)["pixel_values"]
        return put_threshold_into_a_gap(model, pictures)

    def build_processor(self):
        return build_scan_processor()

    def test_a_saved_model_is_the_model(self, tmp_path):
        model, inputs = self.build_model(), self.build_processor()(build_pictures(), LABELS)
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        assert (
            loaded.sim is loaded.proposal_head is loaded.no_object_embedding is loaded.shifted_tower is None
        )
        with torch.no_grad():
            expected, found = model(**inputs), loaded(**inputs)
        torch.testing.assert_close(found.query_weights, expected.query_weights, atol=1e-5, rtol=1e-5)
        assert found.semantic_embeds is None


def draw_pixels(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def draw_texts(count=4, width=TEXT_WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(4))


def segment(model, pixel_values=None, **arguments):
    arguments = {"text_embeds": draw_texts(), **arguments}
    with torch.no_grad():
        return model(draw_pixels() if pixel_values is None else pixel_values, **arguments)


def compute_scores(output):
    """(B, Q, K): what a semantic map adds up."""
    scores = output.class_queries_logits.double().softmax(dim=-1)[..., :-1]
    return scores if output.query_weights is None else scores * output.query_weights[..., None]


def name_crops_by_hand(model, pixel_values, mask_logits, text_embeds):
    """(B, Q, K) logits by CLIP without a shift, and (B, Q) which masks are not empty; NumPy, but for CLIP."""
    config = model.config
    mean, std, clip_mean, clip_std = (
        np.array(values)[:, None, None]
        for values in (config.pixel_mean, config.pixel_std, config.clip_mean, config.clip_std)
    )
    size = (config.vision_config.image_size,) * 2
    logits = np.zeros((*mask_logits.shape[:2], len(text_embeds)))
    is_valid = np.zeros(mask_logits.shape[:2], dtype=bool)
    for image, pixels in enumerate(pixel_values.double().numpy()):
        pixels = (pixels * std + mean - clip_mean) / clip_std
        masks = sigmoid(resize(mask_logits[image].numpy(), pixels.shape[1:])) > config.crop_mask_threshold
        for query, mask in enumerate(masks):
            if not mask.any():
                continue
            crop = torch.from_numpy(mask_crops.cut(pixels, mask, fill=(0, 0, 0)))[None]
            crop = F.interpolate(crop, size, mode="bicubic").float()
            with torch.no_grad():
                embeds = model.shifted_tower(crop).image_embeds
            ids = range(len(text_embeds))
            cosines = class_logits(embeds.numpy(), text_embeds.numpy(), ids, np.ones(TEXT_WIDTH), 1.0)
            logits[image, query] = config.logit_scale * cosines[0, :-1]
            is_valid[image, query] = True
    return logits, is_valid


# --- scores ---------------------------------------------------------------------------------------------


def draw_logits(scale=3.0):
    generator = torch.Generator().manual_seed(8)
    inside = scale * torch.randn(2, 5, 4, generator=generator)
    outside = scale * torch.randn(2, 5, 3, generator=generator)
    is_valid = torch.rand(2, 5, generator=generator) > 0.3
    assert 0 < is_valid.sum() < 10
    return inside, outside, is_valid


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.7, 1.0])
def test_ensemble_against_the_oracle(weight):
    inside, outside, is_valid = draw_logits()
    found = compute_ensemble_scores(inside, outside, is_valid, clip_weight=weight)
    for row in range(2):
        expected = label_scores.ensemble(
            inside[row].numpy(), outside[row].numpy(), is_valid[row].numpy(), weight
        )
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-6)


def test_the_ends_of_the_ensemble():
    inside, outside, is_valid = draw_logits()
    found = compute_ensemble_scores(inside, outside, is_valid, clip_weight=0.0)
    torch.testing.assert_close(found, inside.softmax(dim=-1)[..., :-1])
    found = compute_ensemble_scores(inside, outside, is_valid, clip_weight=1.0)
    torch.testing.assert_close(found[is_valid], outside.softmax(dim=-1)[is_valid])
    assert (found[~is_valid] == 1).all()
    assert torch.equal(compute_clip_probabilities(outside, is_valid), found)


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_logits_and_weights_give_the_scores_back(scale, weight):
    inside, outside, is_valid = draw_logits(scale)
    scores = compute_ensemble_scores(inside, outside, is_valid, clip_weight=weight)
    no_object = inside.softmax(dim=-1)[..., -1]
    logits, weights = convert_scores_to_logits(scores, no_object)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(weights).all()
    probabilities = logits.double().softmax(dim=-1)
    torch.testing.assert_close(probabilities[..., -1], no_object.double(), atol=1e-6, rtol=0)
    found = (probabilities[..., :-1] * weights[..., None].double()).float()
    torch.testing.assert_close(found, scores, atol=1e-7, rtol=1e-4)


def test_a_query_that_is_almost_surely_no_object_keeps_its_scores():
    # p(no-object) rounds to 1 in float32, p(label) does not to 0: S = p_in^0.25 · p_out^0.75 is not small.
    inside = torch.tensor([[[2.0, 0.0, 1.0, 25.0]]])
    outside = torch.tensor([[[1.0, 3.0, 0.0]]])
    assert inside.softmax(dim=-1)[..., -1].item() == 1
    scores = compute_ensemble_scores(inside, outside, torch.ones(1, 1, dtype=torch.bool), clip_weight=0.75)
    expected = label_scores.ensemble(inside[0].numpy(), outside[0].numpy(), [True], 0.75)
    logits, weights = convert_scores_to_logits(scores, inside.softmax(dim=-1)[..., -1])
    found = logits.double().softmax(dim=-1)[0, :, :-1] * weights[0, :, None].double()
    assert expected.max() > 1e-3
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_void_renormalisation_against_the_oracle():
    inside, outside, is_valid = draw_logits()
    scores = compute_ensemble_scores(inside, outside, is_valid, clip_weight=0.7)
    logits, _ = convert_scores_to_logits(scores, inside.softmax(dim=-1)[..., -1])
    for row in range(2):
        expected = label_scores.renormalise_void(scores[row].double().numpy(), inside[row].numpy())
        np.testing.assert_allclose(softmax(logits[row].double().numpy())[:, :-1], expected, atol=1e-6)


# --- modes ----------------------------------------------------------------------------------------------


def test_in_vocabulary_names_against_the_oracle():
    model, text_embeds, label_ids = build_scan(), draw_texts(5), [0, 0, 1, 2, 1]
    output = segment(
        model, text_embeds=text_embeds, text_label_ids=torch.tensor(label_ids), mode="in_vocab_only"
    )
    assert output.query_weights is None
    for row in range(2):
        expected = class_logits(
            output.semantic_embeds[row].numpy(),
            text_embeds.numpy(),
            label_ids,
            model.no_object_embedding.detach().numpy(),
            10.0,
        )
        np.testing.assert_allclose(output.class_queries_logits[row].numpy(), expected, atol=1e-3)


def test_proposal_embeddings_are_head_and_integration():
    model = build_scan(integration_layers=(3, 1), low_frequency_sigmas=(7.0, 3.0))
    output = segment(model, mode="in_vocab_only")
    seen = []
    hook = model.context_tower.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    segment(model, mode="in_vocab_only")
    hook.remove()
    with torch.no_grad():
        states = model.context_tower(seen[0], output_hidden_states=True)
        tokens = [states.hidden_states[layer][:, 1:].transpose(1, 2).reshape(2, 16, 4, 4) for layer in (3, 1)]
        head = model.proposal_head
        proposals = head.fc2(head.fc1(output.query_embeds).relu())
        expected = model.sim(proposals, tokens, states.image_embeds)
    torch.testing.assert_close(output.semantic_embeds, expected, atol=1e-4, rtol=1e-4)


def test_the_context_tower_sees_the_picture_in_clips_normalisation():
    model, processor = build_scan(), build_scan_processor()
    picture = build_picture(64, 96)
    inputs = processor(picture)
    seen = []
    model.context_tower.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    segment(model, **inputs)
    pixels = picture.transpose(2, 0, 1) / 255
    mean, std = (np.array(v)[:, None, None] for v in (model.config.clip_mean, model.config.clip_std))
    expected = mask_crops.resize_nearest((pixels - mean) / std, (32, 32))
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-5)


def test_a_picture_of_a_padded_batch_has_the_context_it_has_alone():
    model = build_scan()
    first, second = draw_pixels(64, 96, 1), draw_pixels(40, 33, 1)
    batch = torch.cat([first, F.pad(second, (0, 96 - 33, 0, 64 - 40), value=0.7)])
    pixel_mask = torch.zeros(2, 64, 96)
    pixel_mask[0] = pixel_mask[1, :40, :33] = 1
    sizes = [(64, 96), (40, 33)]
    together = model.encode_context(model.normalise_for_clip(batch, pixel_mask), sizes)
    for row, picture in enumerate((first, second)):
        alone = model.encode_context(model.normalise_for_clip(picture), sizes[row : row + 1])
        torch.testing.assert_close(together.image_embeds[row], alone.image_embeds[0], atol=1e-4, rtol=1e-4)
        for found, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["ensemble", "clip_only"])
def test_names_by_clip_against_the_oracle(mode):
    model = put_threshold_into_a_gap(build_scan(shift_ratio=0), draw_pixels(), num_valid=8)
    inside = segment(model, mode="in_vocab_only").class_queries_logits.double().numpy()
    output = segment(model, mode=mode)
    logits, is_valid = name_crops_by_hand(model, draw_pixels(), output.masks_queries_logits, draw_texts())
    assert is_valid.sum() == 8
    assert np.ptp(logits[is_valid], axis=0).min() > 1  # crops are told apart
    for row in range(2):
        no_object = softmax(inside[row])[:, -1:]
        if mode == "ensemble":
            expected = label_scores.ensemble(inside[row], logits[row], is_valid[row], 0.7)
        else:
            outside = label_scores.ensemble(inside[row], logits[row], is_valid[row], 1.0)
            expected = outside * (1 - no_object)
        np.testing.assert_allclose(compute_scores(output)[row].numpy(), expected, atol=1e-3)
        found_no_object = output.class_queries_logits[row].softmax(dim=-1)[:, -1:].numpy()
        np.testing.assert_allclose(found_no_object, no_object, atol=1e-5)


@pytest.mark.parametrize("mode", ["ensemble", "clip_only"])
def test_synonyms_take_the_largest(mode):
    model, text_embeds = build_scan(), draw_texts(4)
    apart = segment(model, text_embeds=text_embeds, mode=mode, pixel_values=draw_pixels())
    joint = segment(model, text_embeds=text_embeds, mode=mode, text_label_ids=torch.tensor([0, 1, 1, 2]))
    assert joint.class_queries_logits.shape == (2, NUM_QUERIES, 4)
    assert apart.class_queries_logits.shape == (2, NUM_QUERIES, 5)
    twice = segment(
        model,
        text_embeds=text_embeds[[0, 1, 1, 2, 3]],
        mode=mode,
        text_label_ids=torch.tensor([0, 1, 1, 2, 3]),
    )
    torch.testing.assert_close(compute_scores(twice), compute_scores(apart), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_a_semantic_map_adds_up_the_scores(weight):
    model = put_threshold_into_a_gap(build_scan(shift_ratio=0, ensemble_weight=weight), draw_pixels())
    inside = segment(model, mode="in_vocab_only").class_queries_logits.double().numpy()
    output = segment(model)
    logits, is_valid = name_crops_by_hand(model, draw_pixels(), output.masks_queries_logits, draw_texts())
    maps = build_scan_processor().post_process_semantic_segmentation(output, [(50, 71), (64, 96)])
    for row, (found, size) in enumerate(zip(maps, [(50, 71), (64, 96)], strict=True)):
        scores = label_scores.ensemble(inside[row], logits[row], is_valid[row], weight)
        expected = label_scores.score_map(scores, output.masks_queries_logits[row].numpy(), size)
        best, second = np.sort(expected, axis=0)[:-3:-1]
        is_clear = best - second > 1e-3 * best
        assert is_clear.mean() > 0.5
        np.testing.assert_array_equal(found.numpy()[is_clear], expected.argmax(0)[is_clear])


def test_void_renormalisation_leaves_the_merge_as_it_is_and_weighs_queries_alike():
    plain, renormalised = build_scan(), build_scan(has_void_renormalization=True)
    expected, found = segment(plain), segment(renormalised)
    assert (found.query_weights == 1).all()
    assert torch.equal(found.class_queries_logits, expected.class_queries_logits)
    no_object = found.class_queries_logits.softmax(dim=-1)[..., -1]
    totals = compute_scores(found).sum(dim=-1).float()
    torch.testing.assert_close(totals, 1 - no_object, atol=1e-5, rtol=0)
    assert not torch.allclose(compute_scores(expected).sum(dim=-1).float(), totals, atol=1e-2)


def test_a_mode_of_the_call_goes_before_that_of_the_configuration():
    model = build_scan(mode="in_vocab_only")
    by_config = segment(model)
    assert by_config.query_weights is None
    expected = segment(build_scan())
    torch.testing.assert_close(
        segment(model, mode="ensemble").class_queries_logits, expected.class_queries_logits
    )


def test_mask2formers_own_head_says_what_is_no_object():
    model = build_scan(segmentor={"num_labels": 7}, **CLIP_ONLY)
    assert model.objectness_head.weight.shape == (8, 32)
    output = segment(model)
    with torch.no_grad():
        expected = model.objectness_head(output.query_embeds).softmax(dim=-1)[..., -1]
    assert output.semantic_embeds is None
    found = output.class_queries_logits.softmax(dim=-1)[..., -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_in_vocabulary_only_runs_without_clip():
    model = build_scan(**IN_VOCAB_ONLY)
    assert model.context_tower is model.shifted_tower is model.sim is None
    output = segment(model)
    with torch.no_grad():
        assert torch.equal(output.semantic_embeds, model.proposal_head(output.query_embeds))
    with pytest.raises(ValueError, match="without: use mode 'in_vocab_only', or give vision_config"):
        segment(model, mode="ensemble")


def test_crops_go_through_the_frozen_tower_without_one_of_their_own():
    model = build_scan()
    same = build_scan(has_shifted_tower=False)
    weights = {name: w for name, w in model.state_dict().items() if not name.startswith("shifted_")}
    same.load_state_dict(weights)
    model.shifted_tower.load_state_dict(model.context_tower.state_dict())
    torch.testing.assert_close(segment(same).class_queries_logits, segment(model).class_queries_logits)


# --- masks that are empty, or full ----------------------------------------------------------------------


def test_pictures_without_a_valid_mask_in_every_mode():
    model = build_scan(crop_mask_threshold=1.0)
    calls = []
    model.shifted_tower.register_forward_hook(lambda *_: calls.append(1))
    inside = segment(model, mode="in_vocab_only").class_queries_logits.softmax(dim=-1).double()
    by_both = segment(model, mode="ensemble")
    torch.testing.assert_close(compute_scores(by_both), inside[..., :-1] ** 0.3, atol=1e-5, rtol=0)
    by_clip = segment(model, mode="clip_only")
    expected = (1 - inside[..., -1:]).expand(2, NUM_QUERIES, 4)
    torch.testing.assert_close(compute_scores(by_clip), expected, atol=1e-5, rtol=0)
    untrained = segment(build_scan(crop_mask_threshold=1.0, **CLIP_ONLY))
    scores = compute_scores(untrained)
    torch.testing.assert_close(scores, scores[..., :1].expand_as(scores))
    processor = build_scan_processor()
    for output in (by_both, by_clip, untrained):
        maps = processor.post_process_semantic_segmentation(output, SIZES)
        assert [tuple(labels.shape) for labels in maps] == SIZES
        segments = processor.post_process_panoptic_segmentation(output, target_sizes=SIZES)
        assert len(segments) == 2
    assert calls == []


def test_masks_of_the_whole_picture_have_no_background_to_shift():
    shifted, plain = build_scan(crop_mask_threshold=0.0, shift_ratio=1.0), build_scan(crop_mask_threshold=0.0)
    expected = segment(plain, is_shifted=torch.zeros(2, NUM_QUERIES, 2, 16, dtype=torch.bool))
    torch.testing.assert_close(segment(shifted).class_queries_logits, expected.class_queries_logits)


# --- shift ----------------------------------------------------------------------------------------------


def choose_by_hand(model, seed):
    """(B, Q, layers, G²) patches that the seed chooses for every picture, through the oracle's choice."""
    output, config = segment(model, mode="in_vocab_only"), model.config
    shape = (NUM_QUERIES, len(config.shift_layers), 16)
    priorities = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    is_shifted = torch.zeros(2, *shape, dtype=torch.bool)
    batches = iterate_mask_crops(
        model.normalise_for_clip(draw_pixels()),
        output.masks_queries_logits,
        SIZES,
        threshold=config.crop_mask_threshold,
        size=32,
        batch_size=32,
    )
    for crops in batches:
        for mask, image, query in zip(crops.masks, crops.image_indices, crops.query_indices, strict=True):
            background = mask_crops.is_background(mask.numpy(), config.vision_config.patch_size)
            for layer in range(shape[1]):
                order = priorities[query, layer].tolist()
                chosen = mask_crops.choose(background, config.shift_ratio, order)
                is_shifted[image, query, layer, list(chosen)] = True
    return is_shifted


def test_patches_given_reproduce_those_of_the_seed():
    for seed in (0, 11):
        model = build_scan(shift_seed=seed)
        is_shifted = choose_by_hand(model, seed)
        assert is_shifted.any()
        found = segment(model, is_shifted=is_shifted).class_queries_logits
        assert torch.equal(found, segment(model).class_queries_logits)
        none = segment(model, is_shifted=torch.zeros_like(is_shifted)).class_queries_logits
        assert not torch.allclose(found, none, atol=1e-3)


def test_the_result_repeats_and_seeds_differ():
    model = build_scan()
    first, again = segment(model), segment(model)
    assert torch.equal(first.class_queries_logits, again.class_queries_logits)
    other = segment(build_scan(shift_seed=1))
    assert not torch.allclose(first.class_queries_logits, other.class_queries_logits, atol=1e-3)

    def draw(seed):
        return segment(model, generator=torch.Generator().manual_seed(seed)).class_queries_logits

    assert torch.equal(draw(3), draw(3))
    assert not torch.allclose(draw(3), draw(4), atol=1e-3)


def test_a_generator_goes_on_from_picture_to_picture():
    model = put_threshold_into_a_gap(build_scan(), draw_pixels())
    together = segment(model, generator=torch.Generator().manual_seed(3)).class_queries_logits
    generator = torch.Generator().manual_seed(3)
    for row in range(2):
        alone = segment(model, draw_pixels()[row : row + 1], generator=generator).class_queries_logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-3, rtol=1e-4)


def test_without_a_ratio_nothing_is_drawn():
    model = build_scan(shift_ratio=0)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    found = segment(model, generator=generator).class_queries_logits
    assert torch.equal(generator.get_state(), state)
    torch.testing.assert_close(
        found,
        segment(
            build_scan(), is_shifted=torch.zeros(2, NUM_QUERIES, 2, 16, dtype=torch.bool)
        ).class_queries_logits,
    )


def test_the_context_is_that_of_each_picture():
    model = put_threshold_into_a_gap(build_scan(shift_ratio=1.0), draw_pixels())
    together = segment(model)
    for row in range(2):
        alone = segment(model, draw_pixels()[row : row + 1])
        torch.testing.assert_close(
            together.class_queries_logits[row], alone.class_queries_logits[0], atol=1e-3, rtol=1e-4
        )
        torch.testing.assert_close(together.query_weights[row], alone.query_weights[0], atol=0, rtol=1e-3)


@pytest.mark.parametrize("crop_batch_size", [1, 4])
def test_crops_in_chunks(crop_batch_size):
    model = build_scan()
    expected = segment(model)
    sizes = []
    model.config.crop_batch_size = crop_batch_size
    model.shifted_tower.vision_model.embeddings.register_forward_hook(
        lambda _, args, output: sizes.append(len(output))
    )
    found = segment(model)
    assert max(sizes) == crop_batch_size
    torch.testing.assert_close(
        found.class_queries_logits, expected.class_queries_logits, atol=1e-3, rtol=1e-4
    )


# --- training and precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_loss_counts_the_layers_it_is_told_to(is_kept):
    model = build_scan(keep_last_auxiliary_loss=is_kept, segmentor={"decoder_layers": 4}).train()
    model.sim.eval()  # no dropout
    targets = TestScan().build_targets(draw_pixels())
    state = model.criterion.get_rng_state()
    output = model(draw_pixels(), text_embeds=draw_texts(), **targets)
    with torch.no_grad():
        features = compute_mask_transformer_features(model.segmentor, draw_pixels())
        context = model.encode_context(model.normalise_for_clip(draw_pixels()), SIZES)
        tokens = context.select_grids((1, 2, 3))
        logits = [
            model.compute_class_logits(
                model.sim(model.proposal_head(queries), tokens, context.image_embeds), draw_texts()
            )
            for queries in features.query_embeds
        ]
    counted = [0, 1, 2, 3] if is_kept else [0, 1, 3]
    model.criterion.set_rng_state(state)
    expected = model.criterion(
        [logits[layer] for layer in counted],
        [features.mask_logits[layer] for layer in counted],
        targets["mask_labels"],
        targets["class_labels"],
        targets["label_mask"],
    )
    torch.testing.assert_close(output.loss.detach(), expected.loss, atol=1e-4, rtol=1e-4)


def test_with_ground_truth_no_crop_is_looked_at():
    model = build_scan()
    calls = []
    model.shifted_tower.vision_model.embeddings.register_forward_hook(lambda *_: calls.append(1))
    output = model(draw_pixels(), text_embeds=draw_texts(), **TestScan().build_targets(draw_pixels()))
    assert calls == []
    assert output.query_weights is None
    assert len(output.matches) == 2


def test_bfloat16_autocast():
    model, case = build_scan(text_config=build_clip_text_config()).train(), TestScan()
    dtypes = []
    model.sim.lfe.register_forward_hook(lambda _, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**case.build_batch())
        named = model.eval()(**case.build_processor()(build_pictures(), LABELS))
    assert set(dtypes) == {torch.float32}
    assert len(dtypes) == 6
    assert output.loss.dtype == named.class_queries_logits.dtype == torch.float32
    output.loss.backward()
    assert torch.isfinite(model.no_object_embedding.grad).all()
    assert torch.isfinite(named.class_queries_logits).all()
    assert torch.isfinite(named.query_weights).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype, tmp_path):
    build_scan(text_config=build_clip_text_config()).save_pretrained(tmp_path)
    model = ScanForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    inputs = build_scan_processor()(build_pictures(), LABELS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    for mode in SCAN_MODES:
        with torch.no_grad():
            output = model(**inputs, mode=mode)
        assert output.class_queries_logits.dtype == torch.float32
        assert torch.isfinite(output.class_queries_logits).all()
        assert (output.query_weights is None) == (mode == "in_vocab_only")
        if output.query_weights is not None:
            assert output.query_weights.dtype == torch.float32
            assert torch.isfinite(output.query_weights).all()


def test_gradients_reach_the_shifted_tower_through_the_crops():
    model = build_scan().train()
    model(draw_pixels(), text_embeds=draw_texts()).class_queries_logits.sum().backward()
    assert all(p.grad is not None for p in model.shifted_tower.parameters())
    assert all(p.grad is None for p in model.context_tower.parameters())


def test_new_weights_on_the_meta_device_are_initialised():
    with torch.device("meta"):
        model = ScanForSemanticSegmentation(build_scan_config())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    for name, parameter in model.sim.named_parameters():
        assert torch.isfinite(parameter).all(), name
    assert model.sim.cls_scale.item() == pytest.approx(0.1)
    assert torch.isfinite(model.no_object_embedding).all()


# --- pipelines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", SCAN_MODES)
def test_pipelines_in_batches(task, mode, tmp_path):
    build_scan(text_config=build_clip_text_config(), mode=mode).save_pretrained(tmp_path)
    build_scan_processor().save_pretrained(tmp_path)
    sizes = [(64, 96), (96, 64), (64, 96), (50, 50)]
    pictures = [build_picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    labels = ["zebra crossing", "🦒|giraffe", "an armchair made of glass"]
    run = pipeline(task, model=str(tmp_path))
    found = run(pictures, candidate_labels=labels, batch_size=2)
    for records, picture, (height, width) in zip(found, pictures, sizes, strict=True):
        alone = run(picture, candidate_labels=labels)
        assert [r["label"] for r in records] == [r["label"] for r in alone]
        assert {r["label"] for r in records} <= {"zebra crossing", "🦒", "an armchair made of glass"}
        for record, expected in zip(records, alone, strict=True):
            assert record["mask"].size == (width, height)
            masks = np.asarray(record["mask"]), np.asarray(expected["mask"])
            assert (masks[0] != masks[1]).mean() < 1e-2
    assert any(found)


def test_the_semantic_pipeline_adds_up_the_scores(tmp_path):
    model, processor = build_scan(text_config=build_clip_text_config()), build_scan_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture, labels = build_picture(64, 96), ["road", "car", "tree"]
    records = pipeline("zero-shot-semantic-segmentation", model=str(tmp_path))(
        picture, candidate_labels=labels
    )
    output = segment(model, **processor(picture, labels), text_embeds=None)
    scores = compute_scores(output)[0].numpy()
    expected = label_scores.score_map(scores, output.masks_queries_logits[0].numpy(), (64, 96)).argmax(0)
    for record in records:
        mask = np.asarray(record["mask"]) > 0
        assert (mask != (expected == labels.index(record["label"]))).mean() < 1e-2
    # Without the weights of the queries it is another map.
    plain = ModelOutput(**{name: value for name, value in output.items() if name != "query_weights"})
    (unweighted,) = processor.post_process_semantic_segmentation(plain, [(64, 96)])
    assert (unweighted.numpy() != expected).mean() > 0.02


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integration_layers": (1, 2, 4)}, r"integration_layers must be .* from 1 to 3, got \[1, 2, 4\]"),
        ({"integration_layers": (0, 1, 2)}, r"integration_layers must be .* from 1 to 3"),
        ({"integration_layers": (1, 1, 2)}, "integration_layers must be different blocks"),
        ({"integration_layers": ()}, "integration_layers must be different blocks"),
        ({"shift_layers": (1, 5)}, r"shift_layers must be .* from 1 to 3, got \[1, 5\]"),
        ({"low_frequency_sigmas": (9.0, 7.0)}, r"one σ for each of the integration_layers, 3, got \[9\.0, 7"),
        ({"low_frequency_sigmas": (9.0, 7.0, 0.0)}, "low_frequency_sigmas must be positive"),
        ({"vision": {"image_size": 30}}, "image_size 30 .* multiple of its patch_size 8"),
        ({"ensemble_weight": 1.5}, r"ensemble_weight must lie in \[0, 1\], got 1\.5"),
        ({"ensemble_weight": -0.1}, r"ensemble_weight must lie in \[0, 1\]"),
        ({"shift_ratio": 2}, r"shift_ratio must lie in \[0, 1\], got 2"),
        ({"crop_mask_threshold": 5}, r"crop_mask_threshold must lie in \[0, 1\]"),
        ({"crop_batch_size": 0}, "crop_batch_size must be 1 or more, got 0"),
        ({"integration_heads": 5}, "integration_heads must divide projection_dim, 12, got 5"),
        ({"integration_steps": 0}, "integration_steps must be 1 or more, got 0"),
        ({"integration_encoder_layers": 0}, "integration_encoder_layers must be 1 or more, got 0"),
        ({"mode": "both"}, r"mode must be one of \['ensemble', 'in_vocab_only', 'clip_only'\], got 'both'"),
        ({"has_proposal_head": False}, "names by proposal embeddings, which this model has none of"),
        ({**CLIP_ONLY, "has_semantic_integration": True}, "semantic integration calibrates proposal"),
        (
            {"vision_config": None, "mode": "in_vocab_only"},
            "semantic integration and the shifted tower need vision_config",
        ),
        ({**IN_VOCAB_ONLY, "mode": "ensemble"}, "shows masks to CLIP's vision tower"),
        ({"projection_dim": 16, "integration_heads": 4}, "projects to 12 numbers, but projection_dim is 16"),
        (
            {"text_config": build_clip_text_config(projection_dim=9)},
            "gives vectors of 9 numbers .* projection_dim is 12",
        ),
        ({"text_pooling": "max"}, "text_pooling must be one of"),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        ScanForSemanticSegmentation(build_scan_config(**changes))


FORWARD_ERRORS = {
    "unknown mode": ({"mode": "both"}, "mode must be one of"),
    "another width": ({"text_embeds": draw_texts(3, 7)}, r"text_embeds must be \(texts, 12\).*got \(3, 7\)"),
    "no text": ({"text_embeds": None}, "pass either input_ids or text_embeds, got neither"),
    "shift of other queries": (
        {"is_shifted": torch.zeros(2, 5, 2, 16, dtype=torch.bool)},
        r"is_shifted must be .*, \(2, 6, 2, 16\) of torch.bool, got \(2, 5, 2, 16\)",
    ),
    "shift of other patches": (
        {"is_shifted": torch.zeros(2, 6, 2, 17, dtype=torch.bool)},
        r"is_shifted must be .* got \(2, 6, 2, 17\)",
    ),
    "shift that is not bool": (
        {"is_shifted": torch.zeros(2, 6, 2, 16)},
        r"is_shifted must be .* of torch.bool, got .* of torch\.float32",
    ),
    "shift nobody looks at": (
        {"is_shifted": torch.zeros(2, 6, 2, 16, dtype=torch.bool), "mode": "in_vocab_only"},
        "mode 'in_vocab_only' looks at no crops",
    ),
    "another mask": ({"pixel_mask": torch.ones(2, 64, 64)}, r"pixel_mask must be \(2, 64, 96\)"),
    "masks without classes": ({"mask_labels": [torch.ones(1, 64, 96)] * 2}, "class_labels is missing"),
    "classes without masks": ({"class_labels": [torch.tensor([0])] * 2}, "mask_labels is missing"),
}


@pytest.mark.parametrize(("arguments", "message"), FORWARD_ERRORS.values(), ids=FORWARD_ERRORS.keys())
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        segment(build_scan(), **arguments)


def test_texts_of_another_width_where_no_mask_is_valid():
    with pytest.raises(ValueError, match=r"text_embeds must be \(texts, 12\).*got \(3, 7\)"):
        segment(build_scan(crop_mask_threshold=1.0, **CLIP_ONLY), text_embeds=draw_texts(3, 7))


def test_ground_truth_needs_a_proposal_head():
    targets = TestScan().build_targets(draw_pixels())
    with pytest.raises(ValueError, match="the loss names proposal embeddings, which this model has none of"):
        segment(build_scan(**CLIP_ONLY), **targets)


def test_config_defaults():
    config = ScanConfig()
    assert config.text_config is config.vision_config is None
    assert config.segmentor_config.model_type == "mask2former"
    with pytest.raises(Exception, match="ensemble_weight"):
        ScanConfig(ensemble_weight="0.5")
    assert isinstance(
        build_scan(vision={"num_hidden_layers": 4}).context_tower, CLIPVisionModelWithProjection
    )
