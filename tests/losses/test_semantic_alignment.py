import math

import numpy as np
import pytest
import torch

from oracles.semantic_alignment import relation_loss, semantic_alignment_loss, softmax_divergence
from zsseg.losses.semantic_alignment import (
    compute_relation_loss,
    compute_semantic_alignment_loss,
    compute_softmax_divergence,
)


def draw(seed, *shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


@pytest.mark.parametrize("shape", [(4, 5), (1, 7), (3, 1)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_divergence_equals_the_sum_written_out(shape, temperature):
    predictions, targets = draw(0, *shape), draw(1, *shape)
    divergence = compute_softmax_divergence(predictions, targets, temperature=temperature)
    expected = softmax_divergence(predictions.numpy(), targets.numpy(), temperature)
    assert float(divergence) == pytest.approx(expected, abs=1e-12)


def test_divergence_of_equals_is_nothing_and_it_is_not_symmetric():
    first, second = draw(0, 4, 5), draw(1, 4, 5)
    assert float(compute_softmax_divergence(first, first + 3.0)) == pytest.approx(0, abs=1e-12)
    one_way = compute_softmax_divergence(first, second)
    assert float(one_way) != pytest.approx(float(compute_softmax_divergence(second, first)), rel=1e-3)


@pytest.mark.parametrize("counts", [(4, 4), (4, 2), (1, 3)])
def test_alignment_equals_the_loss_written_out_pair_by_pair(counts):
    first, second = draw(0, counts[0], 6), draw(1, counts[1], 6)
    first_texts, second_texts = draw(2, counts[0], 3), draw(3, counts[1], 3)
    loss = compute_semantic_alignment_loss(first, second, first_texts, second_texts)
    arrays = (tensor.numpy() for tensor in (first, second, first_texts, second_texts))
    assert float(loss) == pytest.approx(semantic_alignment_loss(*arrays), abs=1e-12)


def test_queries_that_resemble_each_other_as_their_texts_do_are_aligned():
    texts = draw(0, 5, 4)
    rotation = torch.linalg.qr(draw(1, 4, 4)).Q
    loss = compute_semantic_alignment_loss(3 * texts @ rotation, texts @ rotation, texts, 2 * texts)
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(compute_semantic_alignment_loss(texts, texts, texts.flip(0), texts)) > 0.01


def test_gradients_flow_to_queries_and_texts():
    inputs = tuple(draw(seed, 3, 4).requires_grad_() for seed in range(4))
    assert torch.autograd.gradcheck(
        lambda *tensors: compute_semantic_alignment_loss(*tensors, temperature=0.5), inputs
    )


def test_autocast_loses_nothing_here():
    inputs = [draw(seed, 5, 16, dtype=torch.float32) for seed in range(4)]
    exact = compute_semantic_alignment_loss(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute_semantic_alignment_loss(*inputs), exact)


@pytest.mark.parametrize("shapes", [((3, 4), (4, 3)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_divergence_of_what_does_not_fit(shapes):
    with pytest.raises(ValueError, match=r"must both be \(M, N\), M and N at least 1"):
        compute_softmax_divergence(*(torch.ones(shape) for shape in shapes))


def test_alignment_needs_a_text_for_each_query():
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(2, 2\)"):
        compute_semantic_alignment_loss(draw(0, 3, 4), draw(0, 3, 4), draw(1, 2, 4), draw(1, 2, 4))


def test_relation_equals_the_loss_written_out():
    logits, labels = 3 * draw(0, 5, 4), [3, 0, 0, 2, 1]
    loss = compute_relation_loss(logits, torch.tensor(labels))
    assert float(loss) == pytest.approx(relation_loss(logits.numpy(), labels), rel=1e-6)


def test_relation_has_the_bound_that_its_docstring_says():
    labels = torch.arange(6)
    loss = compute_relation_loss(200 * torch.eye(6) - 100, labels)
    assert float(loss) == pytest.approx(math.log(1 + 5 / math.e), rel=1e-6)
