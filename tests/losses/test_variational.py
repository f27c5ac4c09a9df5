import math

import numpy as np
import pytest
import torch

from zsseg.losses.variational import compute_standard_normal_divergence


def integrate_divergence(mean, log_variance):
    """KL of one normal from the standard one by a Riemann sum of p log(p / q)."""
    deviation = math.exp(log_variance / 2)
    points = np.linspace(mean - 12 * deviation, mean + 12 * deviation, 20_001)
    log_density = -((points - mean) ** 2) / (2 * deviation**2) - math.log(deviation)
    log_ratio = log_density + points**2 / 2
    density = np.exp(log_density) / math.sqrt(2 * math.pi)
    return float((density * log_ratio).sum() * (points[1] - points[0]))


def test_it_is_the_integral_summed_over_coordinates_and_averaged_over_rows():
    mean = torch.tensor([[0.3, -1.2, 0.0], [2.0, 0.1, -0.4]], dtype=torch.float64)
    log_variance = torch.tensor([[0.5, -1.0, 0.0], [-3.0, 1.0, 0.2]], dtype=torch.float64)
    integrals = [
        integrate_divergence(float(m), float(v))
        for m, v in zip(mean.flatten(), log_variance.flatten(), strict=True)
    ]
    expected = sum(integrals) / 2
    assert float(compute_standard_normal_divergence(mean, log_variance)) == pytest.approx(expected, rel=1e-6)


def test_the_standard_normal_costs_nothing():
    assert float(compute_standard_normal_divergence(torch.zeros(3, 4), torch.zeros(3, 4))) == 0
