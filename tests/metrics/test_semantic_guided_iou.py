import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oracles.semantic_guided_iou import iou_and_guided_iou
from zsseg.metrics import MeanIoU, SemanticGuidedIoU
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(
    ["chair", "armchair", "road", "street"], stuff_labels=["road", "street"], unseen_labels=["armchair"]
)
NAMES = VOCABULARY.names
K = len(VOCABULARY)
# Synonyms are each other's parents; a label may have several.
PARENTS = {"armchair": ["chair", "street"], "road": ["street"], "street": ["road"]}
IGNORE = 255
properties = settings(max_examples=60, deadline=None)


@st.composite
def map_pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    labels = st.integers(0, K - 1) | st.just(IGNORE)
    return tuple(draw(hnp.arrays(np.uint8, shape, elements=labels, fill=labels)) for _ in range(2))


def parent_tables():
    others = {name: [other for other in NAMES if other != name] for name in NAMES}
    return st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(others[name]), unique=True) for name in NAMES}
    )


def metric_of(pairs, parents=PARENTS, **options):
    metric = SemanticGuidedIoU(VOCABULARY, parents, **options)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric


def confusion_of(pairs):
    matrix = np.zeros((K + 1, K + 1), dtype=int)
    for prediction, target in pairs:
        for predicted, true in zip(prediction.ravel(), target.ravel(), strict=True):
            matrix[min(predicted, K), min(true, K)] += 1
    return matrix


def maps_of(matrix):
    """A prediction and a target of one row whose confusion this is; the last column is ignored."""
    pairs = [
        (prediction, IGNORE if target == len(matrix[0]) - 1 else target)
        for prediction, row in enumerate(matrix)
        for target, count in enumerate(row)
        for _ in range(count)
    ]
    prediction, target = np.array(pairs, dtype=np.uint8).T
    return prediction[None], target[None]


def test_the_golden_case():
    vocabulary = Vocabulary.from_labels(["seat", "chair", "road"])
    metric = SemanticGuidedIoU(vocabulary, {"chair": ["seat"]})
    metric.update(*maps_of([[80, 30, 10, 7], [0, 10, 0, 0], [0, 5, 50, 0]]))
    assert list(metric.compute_per_class().values()) == pytest.approx([0.6667, 0.2222, 0.7692], abs=5e-5)
    assert list(metric.compute_guided_per_class().values()) == pytest.approx(
        [0.6667, 0.8333, 0.7692], abs=5e-5
    )
    results = metric.compute()
    assert (results["mIoU"], results["SG-IoU"]) == pytest.approx((0.5527, 0.7564), abs=5e-5)


@properties
@given(st.lists(map_pairs(), min_size=1, max_size=3), parent_tables())
def test_equals_the_oracle(pairs, parents):
    metric = metric_of(pairs, parents)
    ids = {
        VOCABULARY.label_id(name): [NAMES.index(each) for each in names] for name, names in parents.items()
    }
    matrix = confusion_of(pairs)
    plain, guided = iou_and_guided_iou(matrix, ids)

    def by_name(values):
        return dict(zip(NAMES, (math.nan if value is None else value for value in values), strict=True))

    assert metric.compute_per_class() == pytest.approx(by_name(plain), rel=1e-12, nan_ok=True)
    assert metric.compute_guided_per_class() == pytest.approx(by_name(guided), rel=1e-12, nan_ok=True)
    present = [value for value in guided if value is not None]
    results = metric.compute()
    mean = sum(present) / len(present) if present else math.nan
    assert results["SG-IoU"] == pytest.approx(mean, rel=1e-12, nan_ok=True)
    seen, unseen = ([guided[label_id] or 0.0 for label_id in group] for group in ([0, 2, 3], [1]))
    assert results["SG-IoU_seen_all_classes"] == pytest.approx(sum(seen) / 3, rel=1e-12)
    assert results["SG-IoU_unseen_all_classes"] == pytest.approx(unseen[0], rel=1e-12)

    true = [label_id for label_id in range(K) if matrix[:, label_id].sum()]
    of_true = metric_of(pairs, parents, count_false_labels=False).compute()
    expected = sum(guided[label_id] for label_id in true) / len(true) if true else math.nan
    assert of_true["SG-IoU"] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert of_true["mIoU"] == pytest.approx(results["mIoU"], rel=0, nan_ok=True)


@properties
@given(st.lists(map_pairs(), min_size=1, max_size=3))
def test_without_parents_it_is_the_mean_iou(pairs):
    plain = MeanIoU(VOCABULARY)
    for pair in pairs:
        plain.update(*pair)
    guided = metric_of(pairs, {}).compute()
    for name, value in plain.compute().items():
        assert guided[name] == pytest.approx(value, rel=0, nan_ok=True)
        if "IoU" in name:
            same = name.replace("mIoU", "SG-IoU") if name.startswith("m") else name.replace("IoU", "SG-IoU")
            assert guided[same] == pytest.approx(value, rel=0, nan_ok=True)


@properties
@given(st.lists(map_pairs(), min_size=1, max_size=5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_sharding_and_order_do_not_matter(pairs, cut, random):
    whole = metric_of(pairs)
    random.shuffle(pairs)
    merged = metric_of(pairs[:cut])
    merged.merge(metric_of(pairs[cut:]))
    restored = metric_of([])
    restored.load_state_dict(merged.state_dict())
    for metric in (merged, restored):
        assert metric.compute() == pytest.approx(whole.compute(), rel=0, nan_ok=True)


@properties
@given(st.lists(map_pairs(), min_size=1, max_size=3))
def test_it_lies_between_the_iou_and_one(pairs):
    metric = metric_of(pairs)
    guided = metric.compute_guided_per_class()
    for name, iou in metric.compute_per_class().items():
        assert math.isnan(iou) == math.isnan(guided[name])
        assert math.isnan(iou) or iou <= guided[name] <= 1.0


def test_only_one_table_of_parents_merges():
    pair = (np.array([[0]]), np.array([[0]]))
    metric = metric_of([pair])
    for other in (metric_of([pair], {"armchair": ["chair"]}), metric_of([pair], {"road": ["chair"]})):
        with pytest.raises(ValueError, match="one table of parents"):
            metric.merge(other)
    with pytest.raises(TypeError, match="its own kind"):
        metric.merge(MeanIoU(VOCABULARY))
    with pytest.raises(ValueError, match=r"'parent_areas': \(4,\)"):
        metric.load_state_dict(MeanIoU(VOCABULARY).state_dict())


def test_nothing_to_compute():
    metric = metric_of([])
    for compute in (metric.compute, metric.compute_guided_per_class):
        with pytest.raises(ValueError, match="call update first"):
            compute()
