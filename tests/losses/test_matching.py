import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.set_criterion import cheapest_assignment, cross_entropy, dice, softmax
from zsseg.losses.matching import compute_class_costs, compute_mask_costs, match_queries


def test_class_costs_are_negative_probabilities():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 3], [2, 2]])
    costs = compute_class_costs(logits, labels)
    probabilities = softmax(logits.double().numpy())
    expected = np.stack([-probabilities[b][:, labels[b].numpy()] for b in range(2)])
    np.testing.assert_allclose(costs.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_mask_costs_equal_the_oracle_pair_by_pair(scale):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, 50, 4, generator=generator)
    targets = torch.rand(2, 3, 50, generator=generator)
    is_valid = torch.rand(2, 50, generator=generator) > 0.3
    mask_costs, dice_costs = compute_mask_costs(logits, targets, is_valid)
    assert mask_costs.shape == dice_costs.shape == (2, 4, 3)
    for b, q, n in np.ndindex(2, 4, 3):
        pair = logits[b, :, q].double().numpy(), targets[b, n].double().numpy(), is_valid[b].numpy()
        assert float(mask_costs[b, q, n]) == pytest.approx(cross_entropy(*pair), rel=1e-5, abs=1e-5)
        assert float(dice_costs[b, q, n]) == pytest.approx(dice(*pair), rel=1e-5, abs=1e-5)


def test_mask_costs_without_a_valid_point_are_zero():
    is_valid = torch.zeros(1, 7, dtype=torch.bool)
    mask_costs, dice_costs = compute_mask_costs(torch.randn(1, 7, 2), torch.rand(1, 3, 7), is_valid)
    assert torch.equal(mask_costs, torch.zeros(1, 2, 3))
    assert torch.equal(dice_costs, torch.zeros(1, 2, 3))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 10000))
def test_matching_equals_trying_every_assignment(num_queries, num_targets, seed):
    costs = torch.randn(2, 1, num_queries, num_targets, generator=torch.Generator().manual_seed(seed))
    for layer, layer_matches in enumerate(match_queries(costs, [num_targets])):
        (match,) = layer_matches
        pairs = list(zip(match.query_indices.tolist(), match.target_indices.tolist(), strict=True))
        assert pairs == cheapest_assignment(costs[layer, 0].double().numpy())


def test_padded_targets_are_never_matched():
    costs = torch.zeros(1, 2, 4, 3)
    costs[:, :, :, 1:] = -10.0
    costs[:, 1, 2, 0] = -1.0
    ((first, second),) = match_queries(costs, [0, 1])
    assert first.query_indices.dtype == torch.int64
    assert len(first.query_indices) == len(first.target_indices) == 0
    assert second.query_indices.tolist() == [2]
    assert second.target_indices.tolist() == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_are_named(value):
    costs = torch.zeros(2, 3, 4, 2)
    costs[1, 2, 0, 0] = value
    with pytest.raises(ValueError, match="image 2 at decoder layer 1 are not finite"):
        match_queries(costs, [2, 2, 2])


def test_values_that_are_not_finite_in_the_padding_do_no_harm():
    costs = torch.zeros(1, 1, 4, 2)
    costs[..., 1] = float("nan")
    assert match_queries(costs, [1])[0][0].target_indices.tolist() == [0]


def test_missing_scipy_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"pip install 'zsseg\[train\]'"):
        match_queries(torch.zeros(1, 1, 2, 1), [1])
