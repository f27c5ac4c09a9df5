import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.panoptic_maps import list_segments, perturb, random_target
from oracles.panoptic_quality import match_one_image
from zsseg.metrics.segment_matching import SegmentTable, match_segments

NUM_LABELS = 3
LABEL_IDS = list(range(NUM_LABELS))


def table(segments, *, has_areas=True):
    return SegmentTable(
        ids=np.array([segment["id"] for segment in segments], np.int64),
        label_ids=np.array([segment["label_id"] for segment in segments], np.int64),
        is_crowd=np.array([segment.get("iscrowd", 0) for segment in segments], bool),
        areas=np.array([segment["area"] for segment in segments]) if has_areas else None,
    )


def counts_of(prediction_ids, prediction_segments, target_ids, target_segments):
    matched = match_segments(
        prediction_ids, target_ids, table(prediction_segments), table(target_segments), NUM_LABELS
    )
    return np.stack(
        [matched.iou_sum, matched.true_positives, matched.false_positives, matched.false_negatives], axis=1
    )


def segmentation(rows, label_by_id, crowd_ids=()):
    ids = np.array(rows, np.int32)
    return ids, list_segments(ids, label_by_id, crowd_ids)


@st.composite
def tiny_maps(draw):
    """Maps so small that an IoU of exactly one half, void and crowd shares of one half all occur."""
    shape = (draw(st.integers(1, 2)), 4)
    size = shape[0] * shape[1]
    maps = []
    for is_target in (False, True):
        ids = np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), np.int32).reshape(
            shape
        )
        labels = draw(st.permutations([1, 2, 3]))
        label_by_id = {segment_id: draw(st.integers(0, NUM_LABELS - 1)) for segment_id in labels}
        crowd_ids = draw(st.sets(st.integers(1, 3))) if is_target else ()
        maps += [ids, list_segments(ids, label_by_id, crowd_ids)]
    return maps


@settings(max_examples=400, deadline=None)
@given(tiny_maps())
def test_equals_the_oracle_on_tiny_maps(maps):
    np.testing.assert_allclose(counts_of(*maps), match_one_image(*maps, NUM_LABELS), rtol=1e-14, atol=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_oracle_on_larger_maps(seed):
    random = np.random.RandomState(seed)
    target_ids, target_segments = random_target(random, 25, 31, LABEL_IDS)
    prediction_ids, prediction_segments = perturb(random, target_ids, target_segments, LABEL_IDS)
    maps = (prediction_ids, prediction_segments, target_ids, target_segments)
    np.testing.assert_allclose(counts_of(*maps), match_one_image(*maps, NUM_LABELS), rtol=1e-14, atol=0)


def test_an_iou_of_one_half_is_no_match():
    prediction = segmentation([[1, 1, 1, 1]], {1: 0})
    target = segmentation([[9, 9, 8, 8]], {9: 0, 8: 1})
    assert counts_of(*prediction, *target)[0].tolist() == [0, 0, 1, 1]


def test_void_leaves_the_union():
    prediction = segmentation([[1, 1, 1, 1]], {1: 0})
    target = segmentation([[9, 9, 0, 0]], {9: 0})
    assert counts_of(*prediction, *target)[0].tolist() == [1.0, 1, 0, 0]


@pytest.mark.parametrize(
    ("row", "false_positives"),
    [
        ([0, 0, 0, 9], 0),  # three quarters void
        ([0, 0, 9, 9], 1),  # exactly one half void
        ([0, 7, 7, 9], 0),  # void and the crowd of the same label
        ([7, 7, 7, 7], 0),  # a crowd is neither matched nor missed
        ([6, 6, 6, 6], 1),  # the crowd of another label does not excuse
    ],
)
def test_predictions_in_void_and_crowd(row, false_positives):
    prediction = segmentation([[1, 1, 1, 1]], {1: 0})
    target = segmentation([row], {9: 1, 7: 0, 6: 1}, crowd_ids={7, 6})
    iou_sum, true_positives, *others = counts_of(*prediction, *target)[0]
    assert (iou_sum, true_positives, *others) == (0, 0, false_positives, 0)


@pytest.mark.parametrize(("order", "false_positives"), [((7, 8), 0), ((8, 7), 1)])
def test_of_several_crowds_of_a_label_the_last_listed_counts(order, false_positives):
    prediction = segmentation([[1, 1, 1, 1, 1]], {1: 0})
    target = segmentation([[8, 8, 8, 7, 7]], dict.fromkeys(order, 0), crowd_ids={7, 8})
    assert counts_of(*prediction, *target)[0, 2] == false_positives


def test_maps_without_segments():
    nothing = segmentation([[0, 0]], {})
    assert not counts_of(*nothing, *nothing).any()
    car = segmentation([[1, 1]], {1: 0})
    assert counts_of(*nothing, *car)[0].tolist() == [0, 0, 0, 1]


IDS = np.array([[0, 1, 1, 5]], np.int32)
SEGMENTS = [{"id": 5, "label_id": 2, "area": 1}, {"id": 1, "label_id": 0, "area": 2}]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (SEGMENTS[:1], r"pixels carry ids that no segment lists: \[1\]"),
        (SEGMENTS[1:], r"pixels carry ids that no segment lists: \[5\]"),
        ([*SEGMENTS, {"id": 9, "label_id": 0, "area": 3}], r"segments without a pixel: \[9\]"),
        ([SEGMENTS[0], SEGMENTS[1] | {"area": 7}], r"areas differ .*: \[\(1, 7, 2\)\]"),
        ([SEGMENTS[0], SEGMENTS[1] | {"label_id": 3}], r"label ids must lie in \[0, 3\), got \[3\]"),
        ([SEGMENTS[0], SEGMENTS[1] | {"label_id": -1}], r"label ids must lie in \[0, 3\), got \[-1\]"),
    ],
)
@pytest.mark.parametrize("role", ["prediction", "target"])
def test_maps_and_lists_that_disagree_are_refused(segments, message, role):
    tables = {"prediction": table(SEGMENTS), "target": table(SEGMENTS)} | {role: table(segments)}
    with pytest.raises(ValueError, match=f"the {role}.*{message}"):
        match_segments(IDS, IDS, tables["prediction"], tables["target"], NUM_LABELS)


def test_areas_need_not_be_listed():
    counts = match_segments(IDS, IDS, table(SEGMENTS, has_areas=False), table(SEGMENTS), NUM_LABELS)
    assert counts.true_positives.tolist() == [1, 0, 1]


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\) and \(1, 4\)"):
        match_segments(IDS.T, IDS, table(SEGMENTS), table(SEGMENTS), NUM_LABELS)
