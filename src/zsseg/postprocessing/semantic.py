"""From query masks to a label for every pixel."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import build_sampling_axis, interpolate
from zsseg.postprocessing.query_logits import (
    check_query_logits,
    check_target,
    compute_class_probabilities,
    compute_sigmoid,
)

# Bytes of one work array: the float64 masks or the float32 scores of a band of rows.
BAND_BYTES = 1 << 24


def merge_semantic(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    target_size: tuple[int, int] | None = None,
    valid_fraction: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.int64]:
    """Give every pixel the label with the largest Σ_q p(q, label) · sigmoid(mask_q).

    p is the softmax over the labels and no-object. A tie goes to the lower label. The map is made a band of
    rows at a time: neither the masks nor the scores of the labels exist for the whole picture.

    Args:
        class_logits: (Q, K + 1), last column is no-object.
        mask_logits: (Q, h, w) before sigmoid, at any resolution, on any device; read in float32.
        target_size: (H, W) of the map; bilinear (``align_corners=False``), as if the logits were resized
            first. None keeps (h, w).
        valid_fraction: shares of (h, w), each in (0, 1], that show the picture; the rest, at the bottom and
            on the right, is padding.

    Returns:
        (H, W) label ids in [0, K); there is no void.

    Raises:
        TypeError: if the logits are not floating-point tensors.
        ValueError: if Q differs between inputs or is 0, a logit is NaN or infinite, or another argument is
            outside its range.

    Reference:
        MaskFormer, Sec. 3.4 "semantic inference" (arXiv:2107.06278).
    """
    check_query_logits(class_logits, mask_logits)
    height, width = check_target(target_size, valid_fraction, mask_logits)
    if not len(class_logits):
        raise ValueError("a semantic map needs at least one query, got class_logits of shape (0, K + 1)")
    # Labels with equal probabilities everywhere tie everywhere: one stands for all.
    probabilities, label_ids = np.unique(
        compute_class_probabilities(class_logits)[:, :-1], axis=1, return_index=True
    )
    ranking = np.argsort(label_ids)
    probabilities, label_ids = np.ascontiguousarray(probabilities[:, ranking]), label_ids[ranking]

    masks = mask_logits.detach().to("cpu", torch.float32).numpy()
    rows = build_sampling_axis(masks.shape[1], height, valid_fraction[0])
    columns = build_sampling_axis(masks.shape[2], width, valid_fraction[1])
    labels = np.empty((height, width), np.int64)
    band = max(1, BAND_BYTES // (width * max(4 * len(label_ids), 8 * len(masks))))
    for first in range(0, height, band):
        logits = interpolate(masks, rows, columns, (slice(first, first + band), slice(None)))
        mask_probabilities = compute_sigmoid(logits, out=logits).reshape(len(masks), -1)
        best = _find_best_labels(probabilities, mask_probabilities)
        labels[first : first + band] = label_ids[best].reshape(-1, width)
    return labels


def _find_best_labels(
    probabilities: NDArray[np.float64], mask_probabilities: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Argmax of the scores, first on a tie: (Q, K) and (Q, N) → (N,).

    A float32 product finds the labels that its rounding cannot tell from the best one; where there are
    several, they are compared in float64, summed in the order of the queries.
    """
    scores = probabilities.astype(np.float32).T @ mask_probabilities.astype(np.float32)
    best: NDArray[np.intp] = scores.argmax(0)
    # All terms are positive, so the relative error is at most the number of roundings, Q + 2, times 2^-24.
    rounding = np.float32((len(probabilities) + 2) * 2.0**-22)
    close = scores >= np.take_along_axis(scores, best[None], 0) * (1 - rounding) - np.float32(1e-30)
    unclear = np.flatnonzero(close.sum(0, dtype=np.int32) > 1)
    pixel, label = np.nonzero(close[:, unclear].T)
    exact = np.zeros(len(pixel))
    for query_probabilities, mask in zip(probabilities, mask_probabilities[:, unclear], strict=True):
        exact += query_probabilities[label] * mask[pixel]
    # By pixel, then by falling score; equal scores stay in the order of the labels.
    order = np.lexsort((-exact, pixel))
    firsts = np.searchsorted(pixel[order], np.arange(len(unclear)))
    best[unclear] = label[order[firsts]]
    return best
