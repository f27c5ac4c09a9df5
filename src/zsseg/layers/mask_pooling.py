"""Features averaged over masks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_WEIGHT = 1e-6


def pool_by_masks(features: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Average features over each mask, cells weighted by the share of them that the mask covers.

    Args:
        features: (B, d, h, w).
        masks: per image (n, H, W), bool or in [0, 1], of any resolution.

    Returns:
        (N, d) float32 for the N masks of all images, in order; 0 for an empty mask.
    """
    height, width = features.shape[-2:]
    pooled = []
    for image_features, image_masks in zip(features.float(), masks, strict=True):
        # (n, h, w)
        weights = F.adaptive_avg_pool2d(image_masks.float(), (height, width))
        sums = torch.einsum("nhw,dhw->nd", weights, image_features)
        pooled.append(sums / weights.sum(dim=(1, 2)).clamp(min=SMALLEST_WEIGHT)[:, None])
    return torch.cat(pooled)
