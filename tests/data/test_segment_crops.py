import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oracles.segment_crops import masked_square
from zsseg.data.examples import SegmentLabel, build_target
from zsseg.data.segment_crops import crop_segment, crop_whole
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["thing"])
FILL = (10, 200, 90)


def draw(height, width, seed):
    random = np.random.default_rng(seed)
    segment_ids = random.integers(0, 4, (height, width)).astype(np.int32)
    target = build_target(segment_ids, {i: SegmentLabel(0) for i in range(1, 4)}, VOCABULARY)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8), target


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100), st.sampled_from(["box", "frame"]))
def test_a_crop_equals_the_one_drawn_pixel_by_pixel(height, width, seed, mode):
    pixels, target = draw(height, width, seed)
    for segment in target.segments:
        square = masked_square(pixels, target.segment_ids, segment.id, FILL, mode)
        for size in (len(square), 7):  # as it is, and resized
            crop = crop_segment(pixels, target.segment_ids, segment, size=size, fill_color=FILL, mode=mode)
            expected = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
            assert crop.dtype == np.uint8
            assert np.array_equal(crop, np.asarray(expected))


def test_the_whole_picture_lies_in_the_middle_of_plain_ground():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    whole = crop_whole(pixels, size=8, fill_color=FILL)
    assert np.array_equal(whole[2:5], pixels)
    assert (whole[:2] == FILL).all()
    assert (whole[5:] == FILL).all()


def test_a_square_picture_is_only_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    resized = Image.fromarray(pixels).resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(crop_whole(pixels, size=4, fill_color=FILL), np.asarray(resized))


def test_a_segment_that_is_the_whole_picture_looks_like_it():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    segment_ids = np.full((5, 8), 3, np.int32)
    target = build_target(segment_ids, {3: SegmentLabel(0)}, VOCABULARY)
    for mode in ("box", "frame"):
        crop = crop_segment(pixels, segment_ids, target.segments[0], size=6, fill_color=FILL, mode=mode)
        assert np.array_equal(crop, crop_whole(pixels, size=6, fill_color=FILL))


def test_other_modes():
    pixels, target = draw(4, 4, 0)
    with pytest.raises(ValueError, match=r"must be one of \['box', 'frame'\], got 'crop'"):
        crop_segment(pixels, target.segment_ids, target.segments[0], size=4, fill_color=FILL, mode="crop")
