import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.panoptic_maps import CATEGORIES, UNSEEN_CATEGORY_IDS, perturb, random_target
from oracles.panoptic_quality import average, match_one_image
from zsseg.metrics import MeanIoU, PanopticQuality, harmonic_mean
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary(
    tuple(
        Category(
            category["name"],
            is_thing=category["isthing"] == 1,
            is_seen=category["id"] not in UNSEEN_CATEGORY_IDS,
            category_id=category["id"],
        )
        for category in CATEGORIES
    )
)
PRESENT_LABEL_IDS = [0, 1, 3, 5, 6]
seeds = st.integers(0, 2**32 - 1)
properties = settings(max_examples=40, deadline=None)


def raw_image(seed):
    """(prediction ids, prediction segments, target ids, target segments)."""
    random = np.random.RandomState(seed)
    target = random_target(random, 20, 24, PRESENT_LABEL_IDS)
    return (*perturb(random, *target, PRESENT_LABEL_IDS), *target)


def as_segmentation(ids, segments):
    return PanopticSegmentation(
        ids,
        tuple(
            SegmentInfo(
                segment["id"],
                segment["label_id"],
                isthing=VOCABULARY[segment["label_id"]].is_thing,
                area=segment["area"],
                bbox=(0, 0, 1, 1),
                iscrowd=bool(segment["iscrowd"]),
            )
            for segment in segments
        ),
    )


def image(seed):
    prediction_ids, prediction_segments, target_ids, target_segments = raw_image(seed)
    return as_segmentation(prediction_ids, prediction_segments), as_segmentation(target_ids, target_segments)


def metric_of(pairs):
    metric = PanopticQuality(VOCABULARY)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric


def renamed(segmentation, step):
    """The same segments under other ids, listed in the same order."""
    new_id = {segment.id: 1 + step * position for position, segment in enumerate(segmentation.segments)}
    ids = np.zeros_like(segmentation.segment_ids)
    for old, new in new_id.items():
        ids[segmentation.segment_ids == old] = new
    return PanopticSegmentation(ids, tuple(replace(s, id=new_id[s.id]) for s in segmentation.segments))


def assert_same(metric, other):
    """Equal counts; sums of IoU may differ by rounding, because they are added in another order."""
    state, other_state = metric.state_dict(), other.state_dict()
    np.testing.assert_allclose(state.pop("iou_sum"), other_state.pop("iou_sum"), rtol=1e-14, atol=0)
    for name, values in state.items():
        np.testing.assert_array_equal(values, other_state[name])


@properties
@given(st.lists(seeds, min_size=1, max_size=3))
def test_equals_the_oracle_in_both_conventions(image_seeds):
    raw = [raw_image(seed) for seed in image_seeds]
    counts = np.sum([match_one_image(*maps, len(VOCABULARY)) for maps in raw], axis=0).tolist()
    metric = metric_of([(as_segmentation(*maps[:2]), as_segmentation(*maps[2:])) for maps in raw])
    results = metric.compute()
    groups = {
        "": range(len(VOCABULARY)),
        "_th": VOCABULARY.thing_label_ids,
        "_st": VOCABULARY.stuff_label_ids,
        "_seen": VOCABULARY.seen_label_ids,
        "_unseen": VOCABULARY.unseen_label_ids,
    }
    for training in ("_seen", "_unseen"):
        for kind in ("_th", "_st"):
            groups[training + kind] = [i for i in groups[training] if i in groups[kind]]
    groups = {name: label_ids for name, label_ids in groups.items() if label_ids}
    expected = {}
    for group, label_ids in groups.items():
        for suffix, skip_absent in (("", True), ("_all_classes", False)):
            figures = average(counts, label_ids, skip_absent=skip_absent) or (math.nan,) * 3
            expected |= {
                f"{name}{group}{suffix}": value
                for name, value in zip(("PQ", "SQ", "RQ"), figures, strict=True)
            }
    for name in ("PQ", "SQ", "RQ"):
        for suffix, harmonic in (("_all_classes", f"h{name}"), ("", f"h{name}_present_classes")):
            expected[harmonic] = harmonic_mean(
                expected[f"{name}_seen{suffix}"], expected[f"{name}_unseen{suffix}"]
            )
    assert results == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True)
    for label_id, row in enumerate(metric.compute_per_class().values()):
        figures = average(counts, [label_id], skip_absent=False)
        assert tuple(row.values())[:3] == pytest.approx(figures, rel=1e-12)
        assert [row["TP"], row["FP"], row["FN"]] == counts[label_id][1:]


@properties
@given(seeds)
def test_a_map_compared_with_itself_is_perfect(seed):
    _, target = image(seed)
    separated = PanopticSegmentation(
        target.segment_ids, tuple(replace(segment, iscrowd=False) for segment in target.segments)
    )
    results = metric_of([(separated, separated)]).compute()
    assert results["PQ"] == results["SQ"] == results["RQ"] == 1.0


@properties
@given(seeds, st.sampled_from([1, 7, 10**6]), st.sampled_from([1, 3, 2 * 10**6]))
def test_names_of_ids_do_not_matter(seed, prediction_step, target_step):
    prediction, target = image(seed)
    other = metric_of([(renamed(prediction, prediction_step), renamed(target, target_step))])
    assert_same(metric_of([(prediction, target)]), other)


@properties
@given(st.lists(seeds, min_size=1, max_size=5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_sharding_and_order_do_not_matter(image_seeds, cut, random):
    pairs = [image(seed) for seed in image_seeds]
    whole = metric_of(pairs)
    random.shuffle(pairs)
    merged = metric_of(pairs[:cut])
    merged.merge(metric_of(pairs[cut:]))
    assert_same(whole, merged)


def test_states_add_up_across_processes():
    metrics = [metric_of([image(0), image(1)]), metric_of([image(2)])]
    states = [metric.state_dict() for metric in metrics]
    gathered = PanopticQuality(VOCABULARY)
    gathered.load_state_dict({name: sum(state[name] for state in states) for name in states[0]})
    metrics[0].merge(metrics[1])
    assert gathered.compute() == pytest.approx(metrics[0].compute(), rel=0, abs=0, nan_ok=True)
    assert gathered.num_images == 3


def test_a_saved_state_does_not_change_with_its_metric():
    metric = metric_of([image(0)])
    state = metric.state_dict()
    before = {name: values.copy() for name, values in state.items()}
    loaded = PanopticQuality(VOCABULARY)
    loaded.load_state_dict(state)
    metric.update(*image(1))
    loaded.update(*image(1))
    for name, values in before.items():
        np.testing.assert_array_equal(state[name], values)
    assert_same(metric, loaded)


@pytest.mark.parametrize(
    "change",
    [
        {"iou_sum": np.zeros(2)},
        {"num_images": np.zeros(1)},
        {"unknown": np.zeros(len(VOCABULARY))},
    ],
)
def test_foreign_states_are_refused(change):
    metric = metric_of([image(0)])
    before = metric.compute()
    with pytest.raises(ValueError, match="the state must hold the arrays"):
        metric.load_state_dict(metric.state_dict() | change)
    assert metric.compute() == pytest.approx(before, nan_ok=True)


def test_merging_needs_one_vocabulary_and_one_kind():
    metric = PanopticQuality(VOCABULARY)
    with pytest.raises(ValueError, match="one vocabulary"):
        metric.merge(PanopticQuality(VOCABULARY.select(range(3))))
    with pytest.raises(TypeError, match="got a MeanIoU"):
        metric.merge(MeanIoU(VOCABULARY))


def test_nothing_to_compute():
    metric = PanopticQuality(VOCABULARY)
    for compute in (metric.compute, metric.compute_per_class):
        with pytest.raises(ValueError, match="call update first"):
            compute()


def test_a_refused_image_adds_nothing():
    metric = metric_of([image(0)])
    prediction, target = image(1)
    before = metric.state_dict()
    cropped = PanopticSegmentation(prediction.segment_ids[:-1], prediction.segments)
    with pytest.raises(ValueError, match="one size"):
        metric.update(cropped, target)
    for name, values in metric.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


def test_keys_depend_on_the_vocabulary_alone():
    void = PanopticSegmentation(np.zeros((2, 2), np.int32), ())
    results = metric_of([(void, void)]).compute()
    assert results.keys() == metric_of([image(0)]).compute().keys()
    assert math.isnan(results["PQ"])
    assert results["PQ_all_classes"] == results["hPQ"] == 0.0
    only_things = PanopticQuality(VOCABULARY.select(VOCABULARY.thing_label_ids[:2]))
    only_things.update(void, void)
    assert {key.split("_", 1)[0] for key in only_things.compute()} == {"PQ", "SQ", "RQ"}
    assert not any("_st" in key or "unseen" in key for key in only_things.compute())
