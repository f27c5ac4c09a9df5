import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.cycle_transition import cycle_loss, query_contrast_loss
from zsseg.losses.query_contrast import compute_cycle_loss, compute_query_contrast_loss


def draw(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 5))
def test_contrast_equals_the_loss_written_out_query_by_query(seed, labels, num_negatives):
    count = len(labels)
    pseudo, targets = draw(seed, count, 6), draw(seed + 1, count, 6)
    negatives = draw(seed + 2, num_negatives, 6)
    arrays = pseudo.numpy(), targets.numpy(), negatives.numpy()
    loss = compute_query_contrast_loss(pseudo, targets, negatives)
    assert float(loss) == pytest.approx(query_contrast_loss(*arrays, 0.07), abs=1e-12)
    loss = compute_query_contrast_loss(
        pseudo, targets, negatives, temperature=0.3, label_ids=torch.tensor(labels)
    )
    assert float(loss) == pytest.approx(query_contrast_loss(*arrays, 0.3, labels), abs=1e-12)


def test_contrast_gradients():
    inputs = tuple(draw(seed, 3, 4).requires_grad_() for seed in range(3))
    labels = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(
        lambda *queries: compute_query_contrast_loss(*queries, temperature=0.5, label_ids=labels), inputs
    )


def test_detached_targets_and_negatives_get_no_gradients():
    pseudo, targets, negatives = (draw(seed, 3, 4).requires_grad_() for seed in range(3))
    compute_query_contrast_loss(pseudo, targets.detach(), negatives.detach()).backward()
    assert (pseudo.grad.abs().sum(dim=1) > 0).all()
    assert targets.grad is None
    assert negatives.grad is None


def test_only_targets_of_other_labels_become_negatives():
    pseudo, targets, negatives = draw(0, 3, 4), draw(1, 3, 4), draw(2, 2, 4)
    alone = compute_query_contrast_loss(pseudo, targets, negatives)
    of_one_label = compute_query_contrast_loss(pseudo, targets, negatives, label_ids=torch.tensor([5, 5, 5]))
    torch.testing.assert_close(of_one_label, alone)
    of_two = compute_query_contrast_loss(pseudo, targets, negatives, label_ids=torch.tensor([5, 5, 7]))
    assert float(of_two) > float(alone)


def test_contrast_does_not_depend_on_norms_or_order():
    pseudo, targets, negatives = draw(0, 4, 5), draw(1, 4, 5), draw(2, 6, 5)
    labels = torch.tensor([0, 1, 1, 2])
    loss = compute_query_contrast_loss(pseudo, targets, negatives, label_ids=labels)
    order = torch.tensor([2, 0, 3, 1])
    permuted = compute_query_contrast_loss(
        3 * pseudo[order], 0.2 * targets[order], negatives.flip(0), label_ids=labels[order]
    )
    torch.testing.assert_close(permuted, loss)


def test_queries_at_their_targets_and_opposite_to_the_negatives_cost_nothing():
    targets = draw(0, 3, 5)
    assert float(compute_query_contrast_loss(targets, targets, -targets.mean(dim=0, keepdim=True))) < 1e-3
    assert float(compute_query_contrast_loss(targets, targets, targets[:1])) > 0.1
    assert float(compute_query_contrast_loss(targets, -targets, targets)) > 2 / 0.07 - 1e-6


def test_half_precision_and_autocast_lose_nothing_in_the_contrast():
    queries = [draw(seed, 4, 32, dtype=torch.float32) for seed in range(3)]
    exact = compute_query_contrast_loss(*queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute_query_contrast_loss(*queries), exact)
    halves = [tensor.bfloat16() for tensor in queries]
    widened = compute_query_contrast_loss(*(tensor.float() for tensor in halves))
    assert torch.equal(compute_query_contrast_loss(*halves), widened)


@pytest.mark.parametrize(
    ("shapes", "labels", "message"),
    [
        (((3, 4), (2, 4), (5, 4)), None, r"one target for each pseudo query.* \(3, 4\) and \(2, 4\)"),
        (((0, 4), (0, 4), (5, 4)), None, "N at least 1"),
        (((3, 4), (3, 4), (5, 6)), None, r"negative_queries must be \(M, 4\), got \(5, 6\)"),
        (((3, 4), (3, 4), (4,)), None, r"negative_queries must be \(M, 4\), got \(4,\)"),
        (((3, 4), (3, 4), (5, 4)), [0, 1], r"one label for each of 3 pairs, got \(2,\)"),
    ],
)
def test_contrast_of_what_does_not_fit(shapes, labels, message):
    label_ids = None if labels is None else torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        compute_query_contrast_loss(*(torch.ones(shape) for shape in shapes), label_ids=label_ids)


@pytest.mark.parametrize("num_columns", [4, 5])
def test_cycle_equals_the_loss_written_out_query_by_query(num_columns):
    logits, labels = 30 * draw(0, 6, num_columns), [0, 3, 1, 1, 2, 0]
    loss = compute_cycle_loss(logits, torch.tensor(labels))
    assert float(loss) == pytest.approx(cycle_loss(logits.numpy(), labels), abs=1e-12)


def test_cycle_is_computed_in_single_precision_at_least():
    logits = draw(0, 6, 4).bfloat16()
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(compute_cycle_loss(logits, labels), compute_cycle_loss(logits.float(), labels))
