import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from zsseg.visualization.regions import SegmentRegions, contour_mask

id_maps = arrays(
    np.int32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 3, 7, 2, 16_777_215]),
)


@settings(max_examples=100, deadline=None)
@given(id_maps)
def test_index_boxes_and_void_are_those_of_the_pixels(ids):
    listed = [int(i) for i in np.unique(ids)[::-1] if i != 0]
    regions = SegmentRegions.from_ids(ids, listed)
    assert regions.has_void == bool((ids == 0).any())
    for position, segment_id in enumerate(listed):
        rows, columns = np.nonzero(ids == segment_id)
        assert regions.boxes[position].tolist() == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
        ]  # fmt: skip
        assert np.array_equal(regions.index == position + 1, ids == segment_id)
        assert regions.mask(position).sum() == len(rows)


def test_pixels_and_list_must_agree():
    ids = np.array([[1, 1, 9]], dtype=np.int32)
    with pytest.raises(ValueError, match=r"ids that no segment lists: \[9\]"):
        SegmentRegions.from_ids(ids, [1])
    with pytest.raises(ValueError, match=r"without a pixel: \[4\]"):
        SegmentRegions.from_ids(ids, [1, 9, 4])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_a_map_without_pixels_is_refused(shape):
    with pytest.raises(ValueError, match="at least one pixel"):
        SegmentRegions.from_ids(np.zeros(shape, dtype=np.int32), [])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_a_contour_is_as_thick_as_asked_and_lies_on_the_border(width):
    index = np.zeros((20, 20), dtype=np.int32)
    index[:, 10:] = 1
    columns = np.flatnonzero(contour_mask(index, width).any(axis=0))
    assert columns.tolist() == list(range(10 - width // 2, 10 + (width + 1) // 2))
    rows = np.flatnonzero(contour_mask(index.T.copy(), width).any(axis=1))
    assert rows.tolist() == columns.tolist()


def test_a_contour_wider_than_the_picture_covers_it():
    assert contour_mask(np.array([[0, 1]], dtype=np.int32), 8).all()
    assert not contour_mask(np.zeros((5, 5), dtype=np.int32), 8).any()
