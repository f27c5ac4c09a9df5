import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oracles.interior_boxes import box_places, largest_square_side
from zsseg.visualization.placement import MAX_CELLS, InteriorBoxes, overlaps

masks = arrays(
    np.bool_,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([True] * 5 + [False]),
)


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(1, 6), st.integers(1, 6))
def test_a_small_mask_is_searched_exactly(mask, width, height):
    corner = InteriorBoxes(mask, detail=1).fit(width, height)
    places = box_places(mask, width, height)
    assert (corner is None) == (not places)
    assert corner is None or corner in places


@settings(max_examples=100, deadline=None)
@given(masks)
def test_the_largest_square_is_inside_and_none_is_larger(mask):
    x, y, side = InteriorBoxes(mask, detail=1).largest_square()
    assert side == largest_square_side(mask)
    assert mask[y : y + side, x : x + side].all()


@pytest.mark.parametrize("detail", [4, 17, 60])
def test_on_a_coarse_grid_the_answer_is_still_inside(detail):
    rows, columns = np.ogrid[:700, :1000]
    disc = (rows - 300) ** 2 + (columns - 500) ** 2 < 250**2
    assert max(disc.shape) > MAX_CELLS
    x, y = InteriorBoxes(disc, detail).fit(120, 40)
    assert disc[y : y + 40, x : x + 120].all()
    assert abs(x + 60 - 500) < 60
    assert abs(y + 20 - 300) < 60


def test_the_place_with_most_room_wins():
    mask = np.zeros((20, 60), dtype=bool)
    mask[8:12, :40] = True
    mask[:, 40:] = True
    x, y = InteriorBoxes(mask, detail=1).fit(6, 4)
    assert x >= 40
    assert (x + 3, y + 2) == (50, 10)


def test_a_mask_smaller_than_a_cell_holds_nothing():
    assert InteriorBoxes(np.ones((2, 400), dtype=bool), detail=40).fit(1, 1) is None
    assert InteriorBoxes(np.ones((2, 400), dtype=bool), detail=40).largest_square() == (0, 0, 0)


def test_boxes_that_only_touch_do_not_overlap():
    others = np.array([[10, 10, 20, 20]])
    assert not overlaps((0, 10, 10, 20), others)
    assert not overlaps((10, 20, 20, 30), others)
    assert overlaps((19, 19, 30, 30), others)
    assert not overlaps((0, 0, 5, 5), np.empty((0, 4), dtype=np.int64))
