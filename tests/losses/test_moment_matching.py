import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.moment_matching import moment_matching_loss, moment_matching_loss_per_label
from zsseg.losses.moment_matching import compute_moment_matching_loss


def draw(seed, count, width=6, dtype=torch.float64):
    values = np.random.default_rng(seed).normal(size=(count, width)) * 1.5 + 0.1 * seed
    return torch.from_numpy(values).to(dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 7))
def test_equals_the_loss_written_out_pair_by_pair(seed, num_pseudo, num_real):
    pseudo, real = draw(seed % 7, num_pseudo), draw(seed % 11 + 1, num_real)
    loss = compute_moment_matching_loss(pseudo, real)
    assert float(loss) == pytest.approx(moment_matching_loss(pseudo.numpy(), real.numpy()), rel=1e-6)


def test_single_precision_suffices_for_layer_normed_queries():
    pseudo, real = (
        torch.nn.functional.layer_norm(draw(seed, 9, 96, torch.float32) + shift, (96,))
        for seed, shift in ((0, 0.0), (1, torch.linspace(0, 1, 96)))
    )
    expected = moment_matching_loss(pseudo.numpy(), real.numpy())
    assert float(compute_moment_matching_loss(pseudo, real)) == pytest.approx(expected, rel=1e-5)


def test_other_bandwidths():
    pseudo, real = draw(0, 4), draw(1, 5)
    loss = compute_moment_matching_loss(pseudo, real, bandwidths=(0.5, 3.0))
    assert float(loss) == pytest.approx(moment_matching_loss(pseudo.numpy(), real.numpy(), (0.5, 3.0)))


@pytest.mark.parametrize(
    ("pseudo_labels", "real_labels"),
    [
        ([0, 0, 1, 1, 1], [1, 0, 0, 1]),
        ([3, 7, 5, 5, 3], [5, 7, 3, 3, 3, 3]),
        ([0, 1, 2], [2, 0, 1]),
        ([4, 4], [4, 4, 4]),
    ],
)
def test_per_label_it_is_the_mean_of_separate_calls(pseudo_labels, real_labels):
    pseudo, real = draw(0, len(pseudo_labels)), draw(1, len(real_labels))
    pseudo_ids, real_ids = torch.tensor(pseudo_labels), torch.tensor(real_labels)
    loss = compute_moment_matching_loss(pseudo, real, pseudo_label_ids=pseudo_ids, real_label_ids=real_ids)
    expected = moment_matching_loss_per_label(pseudo.numpy(), pseudo_labels, real.numpy(), real_labels)
    assert float(loss) == pytest.approx(expected)
    separate = [
        compute_moment_matching_loss(pseudo[pseudo_ids == label], real[real_ids == label])
        for label in set(pseudo_labels)
    ]
    torch.testing.assert_close(loss, torch.stack(separate).mean())


def test_labels_of_one_side_only_count_for_nothing():
    pseudo, real = draw(0, 5).requires_grad_(), draw(1, 5)
    pseudo_ids, real_ids = torch.tensor([0, 8, 1, 0, 8]), torch.tensor([0, 1, 9, 9, 1])
    loss = compute_moment_matching_loss(pseudo, real, pseudo_label_ids=pseudo_ids, real_label_ids=real_ids)
    shared = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 4])
    expected = compute_moment_matching_loss(
        pseudo[shared[0]],
        real[shared[1]],
        pseudo_label_ids=pseudo_ids[shared[0]],
        real_label_ids=real_ids[shared[1]],
    )
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, pseudo)
    assert torch.equal(gradient[[1, 4]], torch.zeros(2, 6, dtype=torch.float64))
    assert (gradient[shared[0]].abs().sum(dim=1) > 0).all()


def test_gradients():
    pseudo, real = draw(0, 4).requires_grad_(), draw(1, 5).requires_grad_()
    assert torch.autograd.gradcheck(compute_moment_matching_loss, (pseudo, real))
    labels = {"pseudo_label_ids": torch.tensor([0, 1, 1, 0]), "real_label_ids": torch.tensor([0, 1, 1, 0, 0])}
    assert torch.autograd.gradcheck(
        lambda first, second: compute_moment_matching_loss(first, second, **labels), (pseudo, real)
    )


@pytest.mark.parametrize("repeats", [1, 3])
def test_equal_distributions_give_the_least_loss_and_finite_gradients(repeats):
    real = draw(0, 6, 96, torch.float32)
    pseudo = real.repeat(repeats, 1).requires_grad_()
    loss = compute_moment_matching_loss(pseudo, real)
    loss.backward()
    # The squared loss is exact to some roundings of 6 kernels, each of value 1 on the diagonal.
    assert float(loss.detach()) < 3e-3
    assert torch.isfinite(pseudo.grad).all()


def test_half_precision_and_autocast_lose_nothing_here():
    pseudo, real = draw(0, 5, dtype=torch.float32), draw(1, 7, dtype=torch.float32)
    exact = compute_moment_matching_loss(pseudo, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute_moment_matching_loss(pseudo, real), exact)
    halved = compute_moment_matching_loss(pseudo.bfloat16(), real.bfloat16())
    assert halved.dtype == torch.float32
    assert torch.equal(
        halved, compute_moment_matching_loss(pseudo.bfloat16().float(), real.bfloat16().float())
    )


def test_descending_it_moves_pseudo_queries_to_the_real_ones():
    real = draw(0, 30) + 2
    pseudo = draw(1, 40).requires_grad_()
    optimizer = torch.optim.Adam([pseudo], lr=0.05)
    first = compute_moment_matching_loss(pseudo, real).detach()
    for _ in range(100):
        optimizer.zero_grad()
        compute_moment_matching_loss(pseudo, real).backward()
        optimizer.step()
    assert compute_moment_matching_loss(pseudo, real) < 0.2 * first
    torch.testing.assert_close(pseudo.detach().mean(dim=0), real.mean(dim=0), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("shapes", "labels", "message"),
    [
        (((3, 4), (2, 5)), {}, r"one width d, got \(3, 4\) and \(2, 5\)"),
        (((3, 4), (4,)), {}, "one width d"),
        (((0, 4), (2, 4)), {}, "at least one pseudo and one real query, got 0 and 2"),
        (((2, 4), (0, 4)), {}, "got 2 and 0"),
        (((2, 4), (3, 4)), {"real_label_ids": [0, 1, 1]}, "pseudo_label_ids is missing"),
        (((2, 4), (3, 4)), {"pseudo_label_ids": [0, 1]}, "real_label_ids is missing"),
        (
            ((2, 4), (3, 4)),
            {"pseudo_label_ids": [0, 1], "real_label_ids": [0, 1]},
            r"one label per query, \(2,\) and \(3,\), got \(2,\) and \(2,\)",
        ),
        (
            ((2, 4), (3, 4)),
            {"pseudo_label_ids": [0, 1], "real_label_ids": [2, 3, 3]},
            r"labels in common, got \[0, 1\] and \[2, 3\]",
        ),
    ],
)
def test_what_does_not_fit(shapes, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_moment_matching_loss(
            *(torch.ones(shape) for shape in shapes),
            **{name: torch.tensor(values) for name, values in labels.items()},
        )
