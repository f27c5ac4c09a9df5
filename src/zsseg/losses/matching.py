"""Bipartite matching of queries with target segments.

Reference:
    DETR (arXiv:2005.12872), Sec. 3.1; Mask2Former (arXiv:2112.01527), Sec. 3.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Match(NamedTuple):
    """Which query of one image learns which of its target segments.

    Attributes:
        query_indices: (m,) int64, ascending, m = min(Q, number of targets).
        target_indices: (m,) int64, without repetition.
    """

    query_indices: Tensor
    target_indices: Tensor


def compute_class_costs(class_logits: Tensor, class_labels: Tensor) -> Tensor:
    """Negative probability of each target's label.

    Args:
        class_logits: (B, Q, K + 1).
        class_labels: (B, N) int64 in [0, K), padded with any of them.

    Returns:
        (B, Q, N) in [-1, 0].
    """
    num_queries = class_logits.shape[1]
    return -class_logits.softmax(dim=2).gather(2, class_labels[:, None].expand(-1, num_queries, -1))


def compute_mask_costs(
    point_logits: Tensor, point_targets: Tensor, is_valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice between every query and every target, over valid points.

    Since BCE(x, t) = softplus(x) − x·t, both costs of all pairs are three batched matrix products. They are
    taken as targets × queries with the queries contiguous, several times faster than the other way round.

    Args:
        point_logits: (B, P, Q) before sigmoid.
        point_targets: (B, N, P) in [0, 1].
        is_valid: (B, P) bool.

    Returns:
        Mean cross-entropy (B, Q, N) and dice loss (B, Q, N). Both are 0 for an image without a valid point.
    """
    valid = is_valid.to(point_logits.dtype)[:, None]
    targets = point_targets.to(point_logits.dtype) * valid

    softplus_sums = valid @ F.softplus(point_logits)
    cross_entropy = (softplus_sums - targets @ point_logits) / valid.sum(dim=2, keepdim=True).clamp(min=1)

    # the valid points as one more target give every query's own area
    areas = torch.cat((targets, valid), dim=1) @ point_logits.sigmoid()
    intersections, query_areas = areas[:, :-1], areas[:, -1:]
    target_areas = targets.sum(dim=2, keepdim=True)
    dice = 1 - (2 * intersections + 1) / (query_areas + target_areas + 1)
    return cross_entropy.transpose(1, 2), dice.transpose(1, 2)


def match_queries(costs: Tensor, num_targets: Sequence[int]) -> list[list[Match]]:
    """Assign targets to queries so that the summed cost is smallest.

    Args:
        costs: (L, B, Q, N) for L decoder layers; columns from ``num_targets[b]`` on are padding.
        num_targets: targets of each image; where they outnumber the queries, the dearest stay unmatched.

    Returns:
        For each layer, one match per image, on the device of ``costs``.

    Raises:
        ImportError: if SciPy is missing.
        ValueError: if a cost is not finite.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("matching queries with segments needs SciPy: pip install 'zsseg[train]'") from error

    device = costs.device
    on_cpu = costs.cpu()
    matches: list[list[Match]] = []
    for layer, layer_costs in enumerate(on_cpu):
        layer_matches = []
        for image, (image_costs, count) in enumerate(zip(layer_costs, num_targets, strict=True)):
            pair_costs = image_costs[:, :count]
            if not torch.isfinite(pair_costs).all():
                raise ValueError(
                    f"the matching costs of image {image} at decoder layer {layer} are not finite, so the "
                    "logits hold NaN or infinity: look for NaN in the inputs or weights, lower the learning "
                    "rate, or train in bfloat16 instead of float16"
                )
            queries, targets = linear_sum_assignment(pair_costs.numpy())
            layer_matches.append(
                Match(torch.from_numpy(queries).to(device), torch.from_numpy(targets).to(device))
            )
        matches.append(layer_matches)
    return matches
