import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.semantic_map import label_map
from zsseg.postprocessing import semantic
from zsseg.postprocessing.semantic import merge_semantic


def draw_case(seed):
    """Logits with ties between labels, and arguments."""
    random = np.random.default_rng(seed)
    queries, labels = int(random.integers(1, 10)), int(random.integers(1, 8))
    height, width = random.integers(1, 12, size=2).tolist()
    class_logits = random.normal(size=(queries, labels + 1)) * random.choice([0, 1, 5, 5, 20])
    mask_logits = random.normal(size=(queries, height, width)) * random.choice([1, 10])
    if random.random() < 0.3:
        class_logits, mask_logits = np.round(class_logits), np.round(mask_logits)
    if random.random() < 0.3:  # labels that are told apart by the order of the queries only
        class_logits[::-1, : labels // 2] = class_logits[:, labels - labels // 2 : labels]
        mask_logits[:] = mask_logits[0]
    arguments = {
        "target_size": None if random.random() < 0.2 else tuple(random.integers(1, 40, size=2).tolist()),
        "valid_fraction": (1.0, 1.0) if random.random() < 0.6 else tuple(random.uniform(0.2, 1, 2).tolist()),
    }
    return class_logits.astype(np.float32), mask_logits.astype(np.float32), arguments


def assert_equals_oracle(class_logits, mask_logits, arguments):
    result = merge_semantic(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), **arguments)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, label_map(class_logits, mask_logits, **arguments))
    return result


def draw_weighted_case(seed):
    """A case whose queries count differently, some of them not at all."""
    class_logits, mask_logits, arguments = draw_case(seed)
    random = np.random.default_rng(seed)
    queries = len(class_logits)
    exponent = random.choice([0.3, 0.3, 1, 12])
    weights = 10.0 ** random.uniform(-exponent, exponent, size=queries)
    weights *= random.random(queries) >= random.choice([0, 0, 0, 0.3, 1])
    arguments["query_weights"] = torch.from_numpy(weights.astype(random.choice(["float32", "float64"])))
    return class_logits, mask_logits, arguments


@pytest.mark.slow
def test_equals_the_oracle_on_a_thousand_cases():
    results = [assert_equals_oracle(*draw_case(seed)) for seed in range(1000)]
    assert sum(len(np.unique(result)) > 1 for result in results) > 300


def test_equals_the_oracle_in_bands_of_a_row(monkeypatch):
    monkeypatch.setattr(semantic, "BAND_BYTES", 1)
    for seed in range(2000, 2100):
        assert_equals_oracle(*draw_case(seed))


@given(seed=st.integers(10_000, 2**32))
def test_equals_the_oracle_on_any_case(seed):
    assert_equals_oracle(*draw_case(seed))


@pytest.mark.slow
def test_equals_the_oracle_with_weights():
    cases = [draw_weighted_case(seed) for seed in range(1000)]
    results = [assert_equals_oracle(*case) for case in cases]
    unweighted = [
        label_map(class_logits, mask_logits, **{**arguments, "query_weights": None})
        for class_logits, mask_logits, arguments in cases
    ]
    assert sum((a != b).any() for a, b in zip(results, unweighted, strict=True)) > 100
    assert sum(len(np.unique(result)) > 1 for result in results) > 100


@given(seed=st.integers(10_000, 2**32))
def test_equals_the_oracle_with_any_weights(seed):
    assert_equals_oracle(*draw_weighted_case(seed))


def test_weights_decide_between_queries():
    class_logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    mask_logits = torch.zeros(2, 1, 1)
    for weights, label in (([1.0, 0.5], 0), ([0.5, 1.0], 1), ([0.0, 1e-20], 1), ([0.0, 0.0], 0)):
        assert merge_semantic(class_logits, mask_logits, query_weights=torch.tensor(weights)) == [[label]]


def test_equal_weights_change_nothing():
    class_logits, mask_logits, arguments = draw_case(7)
    tensors = torch.from_numpy(class_logits), torch.from_numpy(mask_logits)
    weights = torch.full((len(class_logits),), 4.0)
    expected = merge_semantic(*tensors, **arguments)
    np.testing.assert_array_equal(merge_semantic(*tensors, query_weights=weights, **arguments), expected)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, -0.1], [1.0, torch.nan], [torch.inf, 1.0], []]
)
def test_bad_weights(weights):
    with pytest.raises(
        ValueError, match=r"query_weights must be 2 finite numbers of 0 or more, .* got shape"
    ):
        merge_semantic(torch.zeros(2, 3), torch.zeros(2, 2, 2), query_weights=torch.tensor(weights))


def test_no_object_has_no_pixels():
    class_logits = torch.tensor([[0.0, 1.0, 9.0]])
    assert merge_semantic(class_logits, torch.full((1, 2, 2), -3.0)).tolist() == [[1, 1], [1, 1]]


def test_half_precision():
    class_logits, mask_logits, arguments = draw_case(7)
    tensors = [torch.from_numpy(logits).bfloat16() for logits in (class_logits, mask_logits)]
    expected = label_map(*(tensor.float().numpy() for tensor in tensors), **arguments)
    np.testing.assert_array_equal(merge_semantic(*tensors, **arguments), expected)


def test_no_queries():
    with pytest.raises(ValueError, match="needs at least one query"):
        merge_semantic(torch.zeros(0, 3), torch.zeros(0, 2, 2))


def test_bad_logits_and_arguments():
    with pytest.raises(ValueError, match="mask_logits must be finite"):
        merge_semantic(torch.zeros(1, 3), torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="target_size must be"):
        merge_semantic(torch.zeros(1, 3), torch.zeros(1, 2, 2), target_size=(-1, 2))
