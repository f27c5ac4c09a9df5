"""The regulariser of variational autoencoders."""

from torch import Tensor


def compute_standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over coordinates and averaged over rows.

    Args:
        mean: (N, z) μ.
        log_variance: (N, z) log σ².

    Returns:
        Scalar, at least 0.

    Reference:
        Auto-encoding variational Bayes, App. B (arXiv:1312.6114).
    """
    divergences = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    return divergences.sum(dim=1).mean()
