"""The harmonic mean by which generalised zero-shot results are compared."""


def harmonic_mean(seen: float, unseen: float) -> float:
    """``2 · seen · unseen / (seen + unseen)``: high only where both are.

    Args:
        seen: a figure over the seen labels, 0 or more.
        unseen: the same figure over the unseen labels, 0 or more.

    Returns:
        A value between the two; 0 if both are 0, NaN if one is NaN.

    Raises:
        ValueError: if a value is negative.

    Example:
        >>> harmonic_mean(0.6, 0.2)
        0.3
        >>> harmonic_mean(0.0, 0.0)
        0.0

    Reference:
        Zero-Shot Learning – A Comprehensive Evaluation, Xian et al., Sec. 4.3 (arXiv:1707.00600).
    """
    if seen < 0 or unseen < 0:
        raise ValueError(f"a harmonic mean needs values of 0 or more, got seen={seen} and unseen={unseen}")
    if seen == unseen == 0:
        return 0.0
    return 2 * seen * unseen / (seen + unseen)
