"""From query masks to a label for every pixel."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis, build_sampling_axis, interpolate
from zsseg.postprocessing.mask_bounds import compute_cell_extremes
from zsseg.postprocessing.query_logits import (
    check_query_logits,
    check_target,
    compute_class_probabilities,
    compute_sigmoid,
)

# Bytes of one work array: the float64 masks or the float32 scores of some pixels.
BAND_BYTES = 1 << 24
# For scores that float32 does not hold to full precision.
ABSOLUTE_MARGIN = np.float32(1e-30)


def merge_semantic(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    query_weights: Tensor | None = None,
    target_size: tuple[int, int] | None = None,
    valid_fraction: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.int64]:
    """Give every pixel the label with the largest Σ_q w_q · p(q, label) · sigmoid(mask_q).

    p is the softmax over the labels and no-object, w is 1 unless given. A tie goes to the lower label. Where
    bounds from the masks' samples leave one label only, no pixel is computed; the others are, a few rows at a
    time and for the labels that are left. Neither the masks nor the scores ever exist for the whole picture.

    Args:
        class_logits: (Q, K + 1), last column is no-object.
        mask_logits: (Q, h, w) before sigmoid, at any resolution, on any device; read in float32.
        query_weights: (Q,) w, finite and 0 or more.
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
    probabilities = compute_class_probabilities(class_logits)[:, :-1]
    if query_weights is not None:
        probabilities = probabilities * _check_weights(query_weights, len(probabilities))[:, None]
    # Labels with equal probabilities everywhere tie everywhere: one stands for all.
    probabilities, label_ids = np.unique(probabilities, axis=1, return_index=True)
    ranking = np.argsort(label_ids)
    probabilities, label_ids = np.ascontiguousarray(probabilities[:, ranking]), label_ids[ranking]

    masks = mask_logits.detach().to("cpu", torch.float32).numpy()
    rows = build_sampling_axis(masks.shape[1], height, valid_fraction[0])
    columns = build_sampling_axis(masks.shape[2], width, valid_fraction[1])
    labels = np.empty((height, width), np.int64)
    for cell_row in np.flatnonzero(rows.pixel_counts):
        first, stop = rows.start[cell_row : cell_row + 2].tolist()
        only, candidate = _bound_labels(probabilities, masks, rows, columns, int(cell_row))
        labels[first:stop] = label_ids[only[columns.cell]]
        is_open = candidate.sum(0, dtype=np.int32) > 1
        open_columns = np.flatnonzero(is_open[columns.cell])
        if not len(open_columns):
            continue
        rivals = np.flatnonzero(np.logical_or.reduce(candidate[:, is_open], 1))
        band = max(1, BAND_BYTES // (len(open_columns) * max(4 * len(rivals), 8 * len(masks))))
        for top in range(first, stop, band):
            part = slice(top, min(top + band, stop))
            logits = interpolate(masks, rows, columns, (part, open_columns))
            mask_probabilities = compute_sigmoid(logits, out=logits).reshape(len(masks), -1)
            found = rivals[_find_best_labels(probabilities[:, rivals], mask_probabilities)]
            labels[part, open_columns] = label_ids[found].reshape(-1, len(open_columns))
    return labels


def _check_weights(query_weights: Tensor, num_queries: int) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = query_weights.detach().to("cpu", torch.float64).numpy()
    if weights.shape != (num_queries,) or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            f"query_weights must be {num_queries} finite numbers of 0 or more, one a query, got shape "
            f"{weights.shape}, smallest {weights.min(initial=np.inf)}, largest {weights.max(initial=-np.inf)}"
        )
    return weights


def _bound_labels(
    probabilities: NDArray[np.float64],
    masks: NDArray[np.float32],
    rows: SamplingAxis,
    columns: SamplingAxis,
    cell_row: int,
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Which labels could win a pixel in each cell of a row of cells, the squares between the masks' samples.

    A mask probability lies between those at the corners of the cell; so does a label's score, a sum with
    positive weights.

    Args:
        probabilities: (Q, K).
        masks: (Q, h, w) logits.
        rows: sampling of the map's rows.
        columns: sampling of the map's columns.
        cell_row: which row of cells.

    Returns:
        (cells,) the best candidate and (K, cells) all of them.
    """
    corner_rows = [rows.lower[cell_row], rows.upper[cell_row]]
    corners = masks[:, corner_rows][:, :, np.append(columns.lower[:1], columns.upper)]
    corners = compute_sigmoid(corners, out=corners)[..., None]
    weights = probabilities.T.astype(np.float32)
    lower, upper = (weights @ extreme[:, 0, :, 0] for extreme in compute_cell_extremes(corners))
    margin = np.float32(1 - 2 * _bound_rounding(len(masks)))
    return lower.argmax(0), upper >= lower.max(0) * margin - ABSOLUTE_MARGIN


def _bound_rounding(queries: int) -> float:
    """Bound on the relative error of a float32 score, all of whose terms are positive.

    Each of the Q + 8 roundings of sigmoid, product and sum adds 2^-24; it is taken four times.
    """
    return (queries + 8) * 2.0**-22


def _find_best_labels(
    probabilities: NDArray[np.float64], mask_probabilities: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Argmax of the scores, first on a tie: (Q, K) and (Q, N) → (N,).

    A float32 product finds the labels that its rounding cannot tell from the best one; where there are
    several, they are compared in float64, summed in the order of the queries.
    """
    scores = probabilities.astype(np.float32).T @ mask_probabilities.astype(np.float32)
    best: NDArray[np.intp] = scores.argmax(0)
    to_reach = np.take_along_axis(scores, best[None], 0) * np.float32(1 - _bound_rounding(len(probabilities)))
    close = scores >= to_reach - ABSOLUTE_MARGIN
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
