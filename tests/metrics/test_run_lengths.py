from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zsseg.metrics.run_lengths import find_runs

map_pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
        hnp.arrays(np.int32, shape, elements=st.sampled_from([-1, 0, 2**30])),
    )
)


@given(map_pairs)
def test_runs_spell_out_both_maps_and_are_longest(maps):
    prediction, target = maps
    predicted, true, lengths = find_runs(prediction, target)
    np.testing.assert_array_equal(np.repeat(predicted, lengths), prediction.ravel())
    np.testing.assert_array_equal(np.repeat(true, lengths), target.ravel())
    assert (lengths > 0).all()
    assert all(a != b for a, b in pairwise(zip(predicted, true, strict=True)))


def test_non_contiguous_maps():
    values = np.arange(12).reshape(3, 4)
    predicted, true, lengths = find_runs(values[:, ::2], values.T[:3, :2])
    assert predicted.tolist() == [0, 2, 4, 6, 8, 10]
    assert true.tolist() == [0, 4, 1, 5, 2, 6]
    assert lengths.tolist() == [1] * 6


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\) and \(3, 2\); resize"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "the prediction must be .* integers, .*float64"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), int), "the prediction must be .* integers, .*bool"),
        (np.zeros((2, 3), int), np.zeros((1, 2, 3), int), r"the target must be an \(H, W\)"),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), "at least one pixel"),
    ],
)
def test_other_arrays_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        find_runs(prediction, target)
