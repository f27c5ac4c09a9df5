import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oracles.mean_iou import confusion_matrix, iou_by_label
from zsseg.metrics import MeanIoU
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(
    ["car", "cow", "road", "sky"], stuff_labels=["road", "sky"], unseen_labels=["cow", "sky"]
)
K = len(VOCABULARY)
properties = settings(max_examples=60, deadline=None)


@st.composite
def map_pairs(draw, ignore_index=255):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    labels = st.integers(0, K - 1) | st.just(ignore_index)
    dtypes = st.sampled_from([np.uint8, np.int64] if ignore_index >= 0 else [np.int8, np.int64])
    return tuple(draw(hnp.arrays(draw(dtypes), shape, elements=labels, fill=labels)) for _ in range(2))


def metric_of(pairs, ignore_index=255):
    metric = MeanIoU(VOCABULARY, ignore_index=ignore_index)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric


def state_of(metric):
    return {name: values.tolist() for name, values in metric.state_dict().items()}


@pytest.mark.parametrize("ignore_index", [255, -1])
@properties
@given(st.data())
def test_equals_the_oracle(ignore_index, data):
    pairs = data.draw(st.lists(map_pairs(ignore_index), min_size=1, max_size=3))
    matrix = confusion_matrix(*zip(*pairs, strict=True), K, ignore_index)
    iou = iou_by_label(matrix)
    metric = metric_of(pairs, ignore_index)
    results = metric.compute()

    def mean(label_ids):
        present = [iou[label_id] for label_id in label_ids if iou[label_id] is not None]
        return sum(present) / len(present) if present else math.nan

    def mean_of_all(label_ids):
        return sum(iou[label_id] or 0.0 for label_id in label_ids) / len(label_ids)

    groups = {"": [0, 1, 2, 3], "_th": [0, 1], "_st": [2, 3], "_seen": [0, 2], "_unseen": [1, 3]}
    groups |= {"_seen_th": [0], "_seen_st": [2], "_unseen_th": [1], "_unseen_st": [3]}
    expected = {f"mIoU{group}": mean(label_ids) for group, label_ids in groups.items()}
    expected |= {f"mIoU{group}_all_classes": mean_of_all(label_ids) for group, label_ids in groups.items()}
    for harmonic, suffix in (("hIoU", "_all_classes"), ("hIoU_present_classes", "")):
        seen, unseen = expected[f"mIoU_seen{suffix}"], expected[f"mIoU_unseen{suffix}"]
        expected[harmonic] = 2 * seen * unseen / (seen + unseen) if seen or unseen else 0.0
    num_pixels = sum(map(sum, matrix))
    expected["pixel_accuracy"] = sum(matrix[i][i] for i in range(K)) / num_pixels if num_pixels else math.nan
    assert results == pytest.approx(expected, rel=1e-12, nan_ok=True)
    per_class = dict(zip(VOCABULARY.names, (math.nan if v is None else v for v in iou), strict=True))
    assert metric.compute_per_class() == pytest.approx(per_class, rel=1e-12, nan_ok=True)


@properties
@given(st.lists(map_pairs(), min_size=1, max_size=5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_sharding_and_order_do_not_matter(pairs, cut, random):
    whole = metric_of(pairs)
    random.shuffle(pairs)
    merged = metric_of(pairs[:cut])
    merged.merge(metric_of(pairs[cut:]))
    assert state_of(whole) == state_of(merged)


@properties
@given(map_pairs(), st.permutations(range(K)))
def test_permuting_the_labels_permutes_the_iou(pair, permutation):
    renumber = np.append(np.array(permutation), np.zeros(252, int))
    renumber[255] = 255
    iou = list(metric_of([pair]).compute_per_class().values())
    renumbered = list(metric_of([tuple(renumber[values] for values in pair)]).compute_per_class().values())
    assert [renumbered[new] for new in permutation] == pytest.approx(iou, rel=0, abs=0, nan_ok=True)


def test_a_map_compared_with_itself_is_perfect():
    labels = np.array([[0, 1, 2, 3, 255]], np.uint8)
    results = metric_of([(labels, labels)]).compute()
    assert set(results.values()) == {1.0}


def test_a_prediction_without_a_label_misses_its_target():
    results = metric_of([(np.array([[0, 255]]), np.array([[0, 0]]))]).compute()
    assert results["mIoU"] == results["pixel_accuracy"] == 0.5


def test_predictions_under_ignored_targets_are_not_read():
    results = metric_of([(np.array([[0, 77]]), np.array([[0, 255]]))]).compute()
    assert results["mIoU"] == 1.0


def test_a_large_vocabulary_needs_another_ignore_index():
    labels = [f"label {i}" for i in range(847)]
    with pytest.raises(ValueError, match="ignore_index=255 is a label id"):
        MeanIoU(Vocabulary.from_labels(labels))
    metric = MeanIoU(Vocabulary.from_labels(labels), ignore_index=65535)
    metric.update(np.array([[255, 846]], np.uint16), np.array([[255, 65535]], np.uint16))
    assert metric.compute_per_class()["label 255"] == 1.0
    assert metric.compute()["mIoU_all_classes"] == pytest.approx(1 / 847)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([[0, 4]], [[0, 0]], r"the prediction must hold label ids in \[0, 4\).*got \[4\]"),
        ([[0, -1]], [[0, 0]], r"the prediction .*got \[-1\]"),
        ([[0, 0]], [[7, 9]], r"the target .*got \[7, 9\]"),
        ([[0, 0, 0]], [[0, 0]], "one size"),
    ],
)
def test_other_maps_are_refused_and_add_nothing(prediction, target, message):
    metric = metric_of([(np.array([[0, 1]]), np.array([[0, 0]]))])
    before = state_of(metric)
    with pytest.raises(ValueError, match=message):
        metric.update(np.array(prediction), np.array(target))
    assert state_of(metric) == before


def test_nothing_to_compute():
    metric = MeanIoU(VOCABULARY)
    for compute in (metric.compute, metric.compute_per_class):
        with pytest.raises(ValueError, match="call update first"):
            compute()
