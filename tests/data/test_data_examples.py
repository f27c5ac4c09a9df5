import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from zsseg.data.examples import (
    PanopticExample,
    SegmentLabel,
    build_target,
    measure_segments,
    recount_target,
)
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car"], stuff_labels=["road"])
SMALL_MAPS = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 5))


@given(SMALL_MAPS)
def test_extents_equal_a_count_by_pixels(segment_ids):
    expected = {}
    for segment_id in set(segment_ids.ravel().tolist()) - {0}:
        rows, columns = np.nonzero(segment_ids == segment_id)
        x, y = columns.min(), rows.min()
        expected[segment_id] = (len(rows), (x, y, columns.max() - x + 1, rows.max() - y + 1))
    assert measure_segments(segment_ids) == expected


def test_extents_of_an_empty_map():
    assert measure_segments(np.zeros((0, 4), np.int32)) == {}


@given(SMALL_MAPS)
def test_targets_agree_with_their_pixels(segment_ids):
    labels = {i: SegmentLabel(i % 2, iscrowd=i == 3) for i in range(1, 6)}
    target = build_target(segment_ids, labels, VOCABULARY)
    target.check_pixels()
    for segment in target.segments:
        assert segment.isthing == (segment.label_id == 1)
        assert segment.label == VOCABULARY.names[segment.label_id]
        assert segment.iscrowd == (segment.id == 3)
    half = np.ascontiguousarray(segment_ids[:, : segment_ids.shape[1] // 2])
    recount_target(target, half).check_pixels()


def test_unlisted_pixels_are_refused():
    with pytest.raises(ValueError, match=r"not listed: \[4\]"):
        build_target(np.array([[4, 1]], np.int32), {1: SegmentLabel(0)}, VOCABULARY)


def test_picture_and_map_must_be_of_one_size():
    target = build_target(np.zeros((2, 3), np.int32), {}, VOCABULARY)
    with pytest.raises(ValueError, match=r"a.jpg: the picture is 2×3 but its map is 3×2"):
        PanopticExample(Image.new("RGB", (2, 3)), target, 1, "a.jpg")
