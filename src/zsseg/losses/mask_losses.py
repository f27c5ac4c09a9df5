"""Mask losses of matched pairs of queries and targets, on points.

Reference:
    MaskFormer (arXiv:2107.06278), Sec. 3.3; dice after V-Net (arXiv:1606.04797).
"""

import torch.nn.functional as F
from torch import Tensor


def compute_mask_cross_entropy(point_logits: Tensor, point_targets: Tensor, is_valid: Tensor) -> Tensor:
    """Binary cross-entropy of each pair, averaged over its valid points.

    Args:
        point_logits: (M, P) before sigmoid.
        point_targets: (M, P) in [0, 1].
        is_valid: (M, P), true or 1 where a point counts.

    Returns:
        (M,), 0 for a pair without a valid point.
    """
    valid = is_valid.to(point_logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(
        point_logits, point_targets.to(point_logits.dtype), weight=valid, reduction="none"
    )
    return cross_entropy.sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def compute_dice_loss(point_logits: Tensor, point_targets: Tensor, is_valid: Tensor) -> Tensor:
    """One minus the dice coefficient of each pair over its valid points, smoothed by one.

    Args:
        point_logits: (M, P) before sigmoid.
        point_targets: (M, P) in [0, 1].
        is_valid: (M, P), true or 1 where a point counts.

    Returns:
        (M,) in [0, 1), 0 for a pair without a valid point.
    """
    valid = is_valid.to(point_logits.dtype)
    probabilities = point_logits.sigmoid() * valid
    targets = point_targets.to(point_logits.dtype) * valid
    intersections = (probabilities * targets).sum(dim=1)
    areas = probabilities.sum(dim=1) + targets.sum(dim=1)
    return 1 - (2 * intersections + 1) / (areas + 1)
