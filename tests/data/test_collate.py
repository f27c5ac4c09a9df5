from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import ClipTokens, PanopticExample, SegmentLabel, build_target
from zsseg.vocabulary import Vocabulary

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOCABULARY = Vocabulary.from_labels(["road", "car", "sky", "person"], stuff_labels=["road", "sky"])


def make_example(segment_ids, labels, seed=0, image_id=1):
    segment_ids = np.asarray(segment_ids, np.int32)
    pixels = np.random.default_rng(seed).integers(0, 256, (*segment_ids.shape, 3), dtype=np.uint8)
    target = build_target(segment_ids, labels, VOCABULARY)
    return PanopticExample(Image.fromarray(pixels), target, image_id, f"{image_id}.png")


MIXED = make_example(
    [[1, 1, 2, 9], [3, 3, 4, 0], [5, 5, 5, 6]],
    {
        1: SegmentLabel(2),
        2: SegmentLabel(1),
        3: SegmentLabel(0),
        4: SegmentLabel(1),
        5: SegmentLabel(0),
        6: SegmentLabel(3, iscrowd=True),
        9: SegmentLabel(2),
    },
)


def test_shapes_types_and_padding():
    tall = make_example(np.ones((40, 5)), {1: SegmentLabel(0)}, image_id="b")
    batch = PanopticCollator(MEAN, STD)([MIXED, tall])
    assert batch["pixel_values"].shape == (2, 3, 64, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == batch["label_mask"].dtype == torch.bool
    assert batch["image_ids"] == [1, "b"]
    assert batch["original_sizes"] == [(3, 4), (40, 5)]
    expected_mask = torch.zeros(2, 64, 32, dtype=torch.bool)
    expected_mask[0, :3, :4] = True
    expected_mask[1, :40, :5] = True
    assert torch.equal(batch["pixel_mask"], expected_mask)
    assert not batch["pixel_values"].masked_select(~expected_mask[:, None]).any()
    expected = (np.asarray(MIXED.image) / 255 - MEAN) / STD
    values = batch["pixel_values"][0, :, :3, :4].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def test_things_by_segment_and_stuff_by_label():
    batch = PanopticCollator(MEAN, STD, size_divisor=1)([MIXED])
    assert batch["class_labels"][0].tolist() == [2, 1, 0, 1]
    assert batch["class_labels"][0].dtype == torch.int64
    ids = torch.from_numpy(MIXED.target.segment_ids)
    expected = torch.stack([torch.isin(ids, torch.tensor(group)) for group in ([1, 9], [2], [3, 5], [4])])
    assert torch.equal(batch["mask_labels"][0], expected)
    assert torch.equal(batch["label_mask"][0], (ids != 0) & (ids != 6))


def test_labels_that_are_not_trained_on_are_unknown():
    seen = {0: 0, 1: 1, 3: 2}  # without the sky
    batch = PanopticCollator(MEAN, STD, size_divisor=1, label_id_by_vocabulary_id=seen)([MIXED])
    assert batch["class_labels"][0].tolist() == [1, 0, 1]
    ids = torch.from_numpy(MIXED.target.segment_ids)
    assert torch.equal(batch["label_mask"][0], torch.isin(ids, torch.tensor([2, 3, 4, 5])))


def test_stuff_labels_mapped_to_one_share_a_mask():
    batch = PanopticCollator(MEAN, STD, size_divisor=1, label_id_by_vocabulary_id={0: 5, 2: 5})([MIXED])
    assert batch["class_labels"][0].tolist() == [5]
    ids = torch.from_numpy(MIXED.target.segment_ids)
    assert torch.equal(batch["mask_labels"][0][0], torch.isin(ids, torch.tensor([1, 3, 5, 9])))


def test_tokens_follow_the_masks():
    tokens = {i: np.full(2, float(i), np.float32) for i in (1, 2, 3, 4, 5, 9)}
    with_tokens = replace(MIXED, tokens=ClipTokens(np.array([7.0, 8.0], np.float32), tokens))
    empty = make_example(np.zeros((3, 3)), {})
    empty = replace(empty, tokens=ClipTokens(np.array([1.0, 2.0], np.float32), {}))
    batch = PanopticCollator(MEAN, STD)([with_tokens, empty])
    assert batch["image_tokens"].tolist() == [[7.0, 8.0], [1.0, 2.0]]
    # As the masks: the sky of segments 1 and 9, car 2, the road of 3 and 5, car 4.
    assert batch["segment_tokens"][0].tolist() == [[5.0, 5.0], [2.0, 2.0], [4.0, 4.0], [4.0, 4.0]]
    assert batch["segment_tokens"][1].shape == (0, 2)
    assert all(tensor.dtype == torch.float32 for tensor in (batch["image_tokens"], *batch["segment_tokens"]))
    without_sky = PanopticCollator(MEAN, STD, label_id_by_vocabulary_id={0: 0, 1: 1})([with_tokens])
    assert without_sky["segment_tokens"][0][:, 0].tolist() == [2.0, 4.0, 4.0]


def test_tokens_of_all_examples_or_of_none():
    with_tokens = replace(make_example(np.zeros((3, 3)), {}), tokens=ClipTokens(np.zeros(2, np.float32), {}))
    assert "image_tokens" not in PanopticCollator(MEAN, STD)([MIXED, MIXED])
    with pytest.raises(ValueError, match="1 of 2 examples have CLS tokens"):
        PanopticCollator(MEAN, STD)([MIXED, with_tokens])


def test_picture_without_segments():
    batch = PanopticCollator(MEAN, STD, size_divisor=4)([make_example(np.zeros((3, 3)), {})])
    assert batch["mask_labels"][0].shape == (0, 4, 4)
    assert batch["class_labels"][0].shape == (0,)
    assert not batch["label_mask"].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=3), st.integers(1, 9))
def test_batch_properties(sizes, divisor):
    random = np.random.default_rng(0)
    labels = {i: SegmentLabel(i % 4, iscrowd=i == 5) for i in range(1, 8)}
    examples = [make_example(random.integers(0, 8, size), labels, image_id=i) for i, size in enumerate(sizes)]
    batch = PanopticCollator(MEAN, STD, size_divisor=divisor)(examples)
    height, width = batch["pixel_values"].shape[2:]
    assert height % divisor == width % divisor == 0
    assert 0 <= height - max(h for h, _ in sizes) < divisor
    assert not (batch["label_mask"] & ~batch["pixel_mask"]).any()
    for masks, classes, known in zip(
        batch["mask_labels"], batch["class_labels"], batch["label_mask"], strict=True
    ):
        assert len(masks) == len(classes)
        assert torch.equal(masks.sum(0), known.long())  # disjoint, and together all that is known
        stuff = [c for c in classes.tolist() if c in VOCABULARY.stuff_label_ids]
        assert len(stuff) == len(set(stuff))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": (0.5,), "image_std": STD}, "one value for each of R, G and B"),
        ({"image_mean": MEAN, "image_std": (0.1, 0.0, 0.1)}, "positive deviations"),
        ({"image_mean": MEAN, "image_std": STD, "size_divisor": 0}, "size_divisor must be 1 or more"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        PanopticCollator(**settings)


def test_empty_batch():
    with pytest.raises(ValueError, match="at least one example"):
        PanopticCollator(MEAN, STD)([])
