import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zsseg.structures import PanopticSegmentation, SegmentInfo


def build_segment(**changes):
    return SegmentInfo(
        **{"id": 1, "label_id": 0, "isthing": True, "area": 1, "bbox": (0, 0, 1, 1), **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 0}, "segment id must be positive"),
        ({"id": -3}, "got -3"),
        ({"label_id": -1}, "label_id must be 0 or more"),
        ({"area": 0}, "area must be positive"),
        ({"score": 1.5}, r"score must lie in \[0, 1\]"),
        ({"score": float("nan")}, "score must lie"),
    ],
)
def test_segment_refuses_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        build_segment(**changes)


def test_segment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_segment().area = 2


@pytest.mark.parametrize("score", [None, 0.0, 1.0])
def test_segment_takes_the_ends_of_the_score_range(score):
    assert build_segment(score=score).score == score


@pytest.mark.parametrize(
    "segment_ids", [np.zeros((2, 2), np.int64), np.zeros(4, np.int32), np.zeros((1, 2, 2), np.int32)]
)
def test_map_must_be_two_dimensional_int32(segment_ids):
    with pytest.raises(ValueError, match=r"\(H, W\) int32"):
        PanopticSegmentation(segment_ids, ())


def test_map_must_be_an_array():
    with pytest.raises(TypeError, match="NumPy array, got list"):
        PanopticSegmentation([[0, 1]], ())


def test_repeated_ids_are_named():
    segments = [build_segment(id=4), build_segment(id=4), build_segment(id=5)]
    with pytest.raises(ValueError, match=r"\[4\] are listed more than once"):
        PanopticSegmentation(np.zeros((2, 2), np.int32), segments)


def test_size_and_mask():
    ids = np.array([[0, 7, 7], [7, 0, 3]], np.int32)
    segmentation = PanopticSegmentation(ids, [build_segment(id=7, area=3), build_segment(id=3)])
    assert segmentation.size == (2, 3)
    assert segmentation.mask(7).tolist() == [[False, True, True], [True, False, False]]
    assert isinstance(segmentation.segments, tuple)
    segmentation.check_pixels()


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([build_segment(id=3, area=1)], r"no segment lists: \[7\]"),
        (
            [build_segment(id=3), build_segment(id=7, area=3), build_segment(id=9)],
            r"without a pixel: \[9\]",
        ),
        ([build_segment(id=3, area=2), build_segment(id=7, area=3)], r"\(3, 2, 1\)"),
    ],
)
def test_pixels_that_contradict_the_list_are_named(segments, message):
    segmentation = PanopticSegmentation(np.array([[0, 7, 7], [7, 0, 3]], np.int32), segments)
    with pytest.raises(ValueError, match=message):
        segmentation.check_pixels()


@given(arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 5)))
def test_counted_areas_always_pass(segment_ids):
    segments = [
        build_segment(id=segment_id, area=int((segment_ids == segment_id).sum()))
        for segment_id in range(1, 6)
        if (segment_ids == segment_id).any()
    ]
    segmentation = PanopticSegmentation(segment_ids, segments)
    segmentation.check_pixels()
    covered = sum(segmentation.mask(segment.id).sum() for segment in segments)
    assert covered == (segment_ids != 0).sum()
