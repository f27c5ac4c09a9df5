import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.losses.contrastive import compute_image_text_contrastive_loss
from zsseg.training.patchwork_clip_evaluation import (
    IMAGE_SIZE,
    MEAN_COLOR,
    crop_segment,
    evaluate_patchwork_clip,
    normalise_crops,
)
from zsseg.training.recipes.patchwork_clip import (
    CaptionCollator,
    CaptionedScenes,
    PatchworkClipStage,
    PatchworkVisionStage,
    build_patchwork_clip,
    build_patchwork_clip_stages,
    build_patchwork_tokenizer,
    train_patchwork_clip,
)


def build_stages(folder, **changes):
    stages = build_patchwork_clip_stages(
        folder, clip_steps=2, vision_steps=2, batch_size=2, mixed_precision="no", num_workers=0
    )
    return {
        name: replace(stage, evaluate_every=None, save_every=None, **changes)
        for name, stage in stages.items()
    }


@pytest.fixture
def few_scenes(monkeypatch):
    """The recipe's own worlds, with less to evaluate on."""
    monkeypatch.setattr("zsseg.training.recipes.patchwork_clip.VALIDATION_SCENES", 3)


def test_every_word_of_names_and_captions_is_in_the_tokenizer():
    tokenizer = build_patchwork_tokenizer()
    scenes = PatchworkDataset(num_scenes=60)
    texts = [scenes.caption(scenes[index].target) for index in range(len(scenes))]
    texts += [f"a photo of a {category.name}" for category in PATCHWORK_CATEGORIES]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= tokenizer.model_max_length
    assert tokenizer("a zebra")["input_ids"].count(tokenizer.unk_token_id) == 1


def test_a_crop_shows_its_segment_and_nothing_else():
    example = PatchworkDataset("easy", num_scenes=5)[3]
    segment = next(segment for segment in example.target.segments if segment.isthing)
    *_, width, height = segment.bbox
    mask = example.target.mask(segment.id)
    blanked = np.asarray(example.image).copy()
    blanked[~mask] = 0
    changed = replace(example, image=Image.fromarray(blanked))
    # What is outside the segment has no say.
    assert crop_segment(changed, segment).tobytes() == crop_segment(example, segment).tobytes()
    crop = np.asarray(crop_segment(example, segment))
    assert crop.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    share = 1 - (np.abs(crop.astype(int) - MEAN_COLOR).max(axis=2) <= 1).mean()
    assert share == pytest.approx(mask.sum() / max(width, height) ** 2, abs=0.12)


def test_a_batch_holds_every_caption_once():
    _, processor = build_patchwork_clip()
    items = CaptionedScenes(PatchworkDataset(num_scenes=6))
    scenes = [items[index] for index in range(6)]
    captions = [picture.caption for scene in scenes for picture in scene]
    batch = CaptionCollator(processor)(scenes)
    assert len(batch["pixel_values"]) == len(batch["text_indices"]) == len(captions)
    assert len(batch["input_ids"]) == len(set(captions)) < len(captions)
    words = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert [words[index].replace(" ,", ",") for index in batch["text_indices"].tolist()] == captions


def test_thinned_scenes_keep_all_things_and_half_of_the_stuff():
    scenes = PatchworkDataset(num_scenes=2)
    thinned = CaptionedScenes(scenes, is_thinned=True)
    for index, has_stuff in ((0, True), (1, False)):
        segments = [s for s in scenes[index].target.segments if s.isthing or has_stuff]
        assert len(thinned[index]) == len(segments)


def test_pixels_are_normalised_as_the_processor_does():
    _, processor = build_patchwork_clip()
    pixels = np.random.default_rng(0).integers(0, 256, (1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    expected = processor.image_processor(pixels[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise_crops(pixels, processor), expected, atol=1e-5, rtol=0)


def test_an_untrained_clip_guesses():
    model, processor = build_patchwork_clip()
    scenes = PatchworkDataset(num_scenes=12)
    averages, confusion = evaluate_patchwork_clip(model.eval(), processor, scenes)
    assert confusion.sum() == sum(len(scenes[index].target.segments) for index in range(12))
    assert averages["top1"] < 0.2


def test_the_second_stage_trains_the_vision_tower_alone(tmp_path, few_scenes):
    stages = build_stages(tmp_path)
    model, processor, results = train_patchwork_clip(stages, stream=io.StringIO())
    assert all(result.is_complete for result in results.values())
    between = type(model).from_pretrained(results["clip"].last_checkpoint).state_dict()
    locked = [name for name in between if not PatchworkVisionStage().is_trainable(name)]
    after = model.state_dict()
    assert any(name.startswith("text_model.") for name in locked)
    assert all(torch.equal(after[name], between[name]) for name in locked)
    assert not torch.equal(after["visual_projection.weight"], between["visual_projection.weight"])
    assert processor.tokenizer("red brick")["input_ids"]


def test_resuming_goes_on_with_the_last_stage_that_began(tmp_path, few_scenes):
    stages = build_stages(tmp_path)
    whole, _, _ = train_patchwork_clip(stages, stream=io.StringIO())
    resumed, _, results = train_patchwork_clip(stages, resume=True, stream=io.StringIO())
    assert list(results) == ["vision"]
    assert results["vision"].is_complete
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_each_picture_is_contrasted_with_its_own_caption():
    model, processor = build_patchwork_clip(0)
    scenes = CaptionedScenes(PatchworkDataset("easy", seed=1, num_scenes=6))
    batch = CaptionCollator(processor)([scenes[index] for index in range(6)])
    with torch.no_grad():
        found = PatchworkClipStage().compute_loss(model, batch, None)
        images = model.get_image_features(batch["pixel_values"]).pooler_output
        texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert len(texts) < len(images)
    expected = compute_image_text_contrastive_loss(images, texts, batch["text_indices"], found["logit_scale"])
    torch.testing.assert_close(found["loss"], expected)
