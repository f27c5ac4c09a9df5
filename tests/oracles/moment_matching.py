"""The loss of generative moment matching networks, kernel by kernel and pair by pair in float64."""

import math

import numpy as np


def kernel(first, second, bandwidth):
    """A Gaussian of the squared distance, 2σ being the squared width."""
    squared_distance = sum((float(a) - float(b)) ** 2 for a, b in zip(first, second, strict=True))
    return math.exp(-squared_distance / (2 * bandwidth))


def moment_matching_loss(pseudo, real, bandwidths=(2, 5, 10, 20, 40, 80)):
    """Root of the sum over kernels and over pairs of all rows, signed by side and weighted by its size."""
    rows = [*pseudo, *real]
    signs = [1 / len(pseudo)] * len(pseudo) + [-1 / len(real)] * len(real)
    total = 0.0
    for bandwidth in bandwidths:
        for first, first_sign in zip(rows, signs, strict=True):
            for second, second_sign in zip(rows, signs, strict=True):
                total += first_sign * second_sign * kernel(first, second, bandwidth)
    return math.sqrt(max(total, 1e-12))


def moment_matching_loss_per_label(pseudo, pseudo_labels, real, real_labels):
    """Mean over the labels on both sides of the loss between the queries of that label."""
    pseudo_labels, real_labels = np.asarray(pseudo_labels), np.asarray(real_labels)
    losses = [
        moment_matching_loss(pseudo[pseudo_labels == label], real[real_labels == label])
        for label in set(pseudo_labels.tolist()) & set(real_labels.tolist())
    ]
    return sum(losses) / len(losses)
