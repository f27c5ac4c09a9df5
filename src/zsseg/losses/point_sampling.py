"""Points instead of pixels: reading maps at points, and choosing the points a mask loss looks at.

Points are (x, y) in [0, 1) of the picture, whatever the resolution of the map that is read there. Reading is
bilinear with the edge repeated, as in the resizing of masks at inference.

Reference:
    PointRend (arXiv:1912.08193), Sec. 3; Mask2Former (arXiv:2112.01527), Sec. 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GRID_ROWS = 128
"""Rows by which drawn points are sorted: about the height of a mask, so that a row stays in the cache."""


def draw_points(num_points: int, generator: torch.Generator) -> Tensor:
    """Draw points uniformly from ``generator`` alone.

    They come sorted along rows of a coarse grid: the same set of points, read faster where
    neighbours in the list are neighbours in memory.

    Returns:
        (P, 2) float32 points (x, y) in [0, 1), on the CPU.
    """
    points = torch.rand(num_points, 2, generator=generator, dtype=torch.float32, device="cpu")
    position_in_rows = (points[:, 1] * GRID_ROWS).floor() + points[:, 0]
    return points[position_in_rows.argsort(stable=True)]


def find_corners(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find the four pixels around each point and their bilinear weights.

    Args:
        points: (P, 2), x and y in [0, 1].
        size: (H, W) of the map; pixel centres lie at (i + 0.5) / W and (j + 0.5) / H.

    Returns:
        Indices (P, 4) int64 into the flattened (H · W) map, and weights (P, 4) that sum to one.
    """
    height, width = size
    columns = (points[:, 0] * width - 0.5).clamp(0, width - 1)
    rows = (points[:, 1] * height - 0.5).clamp(0, height - 1)
    left, top = columns.long(), rows.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    to_right, to_bottom = columns - left, rows - top
    indices = torch.stack(
        (top * width + left, top * width + right, bottom * width + left, bottom * width + right), dim=1
    )
    weights = torch.stack(
        (
            (1 - to_right) * (1 - to_bottom),
            to_right * (1 - to_bottom),
            (1 - to_right) * to_bottom,
            to_right * to_bottom,
        ),
        dim=1,
    )
    return indices, weights


def sample_logits(mask_logits: Tensor, points: Tensor) -> Tensor:
    """Read many maps at the same points.

    One weighted embedding bag with the maps as columns: the corners of a point are found once, and each is
    one contiguous read across all maps.

    Args:
        mask_logits: (M, h, w).
        points: (P, 2), the same for every map.

    Returns:
        (P, M) in float32, or float64 for float64 logits.
    """
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    num_maps, height, width = mask_logits.shape
    if num_maps == 0:
        return mask_logits.new_zeros((len(points), 0), dtype=dtype)
    indices, weights = find_corners(points.to(dtype), (height, width))
    columns = mask_logits.flatten(1).t().to(dtype).contiguous()
    return F.embedding_bag(indices, columns, per_sample_weights=weights, mode="sum")


def sample_logits_at_own_points(mask_logits: Tensor, points: Tensor) -> Tensor:
    """Read each map at its own points, with gradients to the maps.

    Args:
        mask_logits: (M, h, w).
        points: (M, P, 2).

    Returns:
        (M, P) in float32, or float64 for float64 logits.
    """
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    grid = (2 * points.to(dtype) - 1).unsqueeze(1)
    sampled = F.grid_sample(
        mask_logits.to(dtype).unsqueeze(1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[:, 0, 0]


def sample_targets(mask_labels: Tensor, points: Tensor) -> Tensor:
    """Read target masks at the same points without a float copy of the masks.

    Args:
        mask_labels: (N, H, W) bool, or numbers in [0, 1].
        points: (P, 2).

    Returns:
        (N, P) float32 in [0, 1].

    Raises:
        ValueError: if a value read is outside [0, 1].
    """
    indices, weights = find_corners(points, (mask_labels.shape[1], mask_labels.shape[2]))
    pixels = mask_labels.flatten(1)
    sampled = weights.new_zeros((len(mask_labels), len(points)))
    for corner in range(4):
        sampled.addcmul_(pixels.index_select(1, indices[:, corner]).to(sampled.dtype), weights[:, corner])
    # bool masks cannot be wrong; the tolerance is the rounding of the four weights
    if mask_labels.dtype != torch.bool and not torch.all((sampled > -1e-5) & (sampled < 1 + 1e-5)):
        raise ValueError(
            "mask_labels must lie in [0, 1], "
            f"got values from {float(sampled.min()):.4g} to {float(sampled.max()):.4g}; "
            "pad masks with 0 and mark padding and void in label_mask"
        )
    return sampled


def find_valid_points(label_mask: Tensor, points: Tensor) -> Tensor:
    """Tell which points touch labelled pixels only.

    All four pixels around a point must be labelled: then no value of a void or padding pixel of a target
    of the same resolution can enter a bilinear reading.

    Args:
        label_mask: (B, H, W) bool, false where a pixel is void or padding.
        points: (P, 2).

    Returns:
        (B, P) bool.
    """
    indices, _ = find_corners(points, (label_mask.shape[1], label_mask.shape[2]))
    corners = label_mask.flatten(1).index_select(1, indices.flatten())
    return corners.view(len(label_mask), len(points), 4).all(dim=2)


def select_uncertain_points(point_logits: Tensor, is_valid: Tensor, count: int) -> Tensor:
    """Choose the points whose logits lie nearest to zero; invalid ones only where too few are valid.

    Args:
        point_logits: (M, P).
        is_valid: (M, P) bool.
        count: points to choose per map, at most P.

    Returns:
        (M, count) int64 indices into P, in no particular order.
    """
    certainty = point_logits.abs().masked_fill_(~is_valid, float("inf"))
    return certainty.topk(count, dim=1, largest=False, sorted=False).indices
