import pytest
import torch

from oracles.set_criterion import cross_entropy, dice
from zsseg.losses.mask_losses import compute_dice_loss, compute_mask_cross_entropy

LOSSES = [(compute_mask_cross_entropy, cross_entropy), (compute_dice_loss, dice)]


def build_pairs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 40, generator=generator, dtype=torch.float64)
    targets = torch.rand(3, 40, generator=generator, dtype=torch.float64)
    is_valid = torch.rand(3, 40, generator=generator) > 0.3
    return logits.to(dtype), targets.to(dtype), is_valid


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_each_pair_equals_the_oracle(loss, oracle):
    logits, targets, is_valid = build_pairs()
    losses = loss(logits, targets, is_valid)
    for row in range(3):
        expected = oracle(logits[row].numpy(), targets[row].numpy(), is_valid[row].numpy())
        assert float(losses[row]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_gradients(loss, oracle):
    logits, targets, is_valid = build_pairs()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, is_valid), (logits.requires_grad_(),))


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_a_perfect_prediction_costs_nothing_and_its_opposite_much(loss, oracle):
    targets = (torch.arange(100) % 3 == 0).float()[None]
    is_valid = torch.ones(1, 100, dtype=torch.bool)
    logits = 40 * (targets - 0.5)
    assert float(loss(logits, targets, is_valid)) < 1e-6
    assert float(loss(-logits, targets, is_valid)) > 0.9


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_no_valid_point_means_no_loss_and_no_gradient(loss, oracle):
    logits, targets, is_valid = build_pairs(torch.float32)
    logits.requires_grad_()
    losses = loss(logits, targets, torch.zeros_like(is_valid))
    losses.sum().backward()
    assert torch.equal(losses.detach(), torch.zeros(3))
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_invalid_points_have_no_influence(loss, oracle):
    logits, targets, is_valid = build_pairs()
    changed = torch.where(is_valid, logits, -logits + 3), torch.where(is_valid, targets, 1 - targets)
    assert torch.equal(loss(logits, targets, is_valid), loss(*changed, is_valid))
