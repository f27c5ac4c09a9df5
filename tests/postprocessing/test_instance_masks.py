import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.instance_masks import decode_coco_counts, instances
from zsseg.postprocessing import instance
from zsseg.postprocessing.instance import merge_instances

NUM_LABELS = 4


def draw_case(seed):
    random = np.random.default_rng(seed)
    queries = int(random.integers(0, 8))
    height, width = random.integers(1, 12, size=2).tolist()
    class_logits = random.normal(size=(queries, NUM_LABELS + 1)) * random.choice([0, 1, 5])
    mask_logits = random.normal(size=(queries, height, width)) * random.choice([1, 10])
    mask_logits += random.choice([-8, -2, 0, 2, 40])
    arguments = {
        "thing_label_ids": set(np.flatnonzero(random.random(NUM_LABELS) < 0.6).tolist()),
        "target_size": None if random.random() < 0.2 else tuple(random.integers(1, 40, size=2).tolist()),
        "top_k": int(random.integers(1, 9)),
        "threshold": float(random.choice([0, 0.1, 0.5])),
        "mask_threshold": float(random.choice([0.5, 0.5, 0, 0.3, 1])),
        "valid_fraction": (1.0, 1.0) if random.random() < 0.6 else tuple(random.uniform(0.2, 1, 2).tolist()),
    }
    return class_logits.astype(np.float32), mask_logits.astype(np.float32), arguments


def assert_equals_oracle(class_logits, mask_logits, arguments):
    found = merge_instances(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), **arguments)
    expected = instances(class_logits, mask_logits, **arguments)
    assert [item.label_id for item in found] == [label for label, _, _ in expected]
    for item, (_, score, mask) in zip(found, expected, strict=True):
        assert item.score == pytest.approx(score, rel=1e-12)
        np.testing.assert_array_equal(item.mask, mask)
        np.testing.assert_array_equal(decode_coco_counts(item.counts, item.size), mask)
        assert (item.counts[1:] > 0).all()
        rows, columns = np.nonzero(mask)
        x, y, width, height = item.bbox
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
        assert item.area == len(rows)
    return found


def test_equals_the_oracle():
    assert sum(len(assert_equals_oracle(*draw_case(seed))) for seed in range(500)) > 500


def test_equals_the_oracle_in_narrow_bands(monkeypatch):
    monkeypatch.setattr(instance, "PIXELS_PER_BAND", 30)
    for seed in range(1000, 1100):
        assert_equals_oracle(*draw_case(seed))


@given(seed=st.integers(10_000, 2**32))
def test_equals_the_oracle_on_any_case(seed):
    assert_equals_oracle(*draw_case(seed))


def test_one_query_may_serve_two_labels_and_stuff_takes_no_place():
    class_logits = torch.tensor([[2.0, 1.0, 3.0, 0.0]])
    mask_logits = torch.tensor([[[5.0, -5.0]]])
    found = merge_instances(class_logits, mask_logits, thing_label_ids=[0, 1], top_k=2)
    assert [item.label_id for item in found] == [0, 1]
    assert found[0].score / found[1].score == pytest.approx(np.e)
    assert found[0].counts.tolist() == [0, 1, 1]


def test_the_mean_probability_inside_the_mask_scales_the_score():
    found = merge_instances(
        torch.tensor([[0.0, -800.0]]), torch.tensor([[[0.0, np.log(3.0), -9.0]]]), thing_label_ids=[0]
    )
    assert found[0].score == pytest.approx((0.5 + 0.75) / 2, rel=1e-7)


def test_no_queries_and_no_things():
    assert merge_instances(torch.zeros(0, 3), torch.zeros(0, 2, 2), thing_label_ids=[0]) == []
    assert merge_instances(torch.zeros(2, 3), torch.ones(2, 2, 2), thing_label_ids=[]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be positive, got 0"),
        ({"thing_label_ids": [2]}, r"thing_label_ids must lie in \[0, 2\).*got \[2\]"),
        ({"threshold": 2.0}, r"threshold must lie in \[0, 1\], got 2.0"),
        ({"target_size": (0, 1)}, "target_size must be"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge_instances(torch.zeros(1, 3), torch.zeros(1, 2, 2), **{"thing_label_ids": [0], **arguments})
