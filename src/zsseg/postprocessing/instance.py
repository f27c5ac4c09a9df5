"""From query masks to scored masks of single things, which may overlap."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis, build_sampling_axis, interpolate
from zsseg.postprocessing.query_logits import (
    check_label_ids,
    check_query_logits,
    check_target,
    check_unit_interval,
    compute_class_probabilities,
    compute_sigmoid,
)

# Pixels of one mask in work at a time.
PIXELS_PER_BAND = 1 << 18
# Float32 sigmoid against the threshold, with slack for its rounding.
RELATIVE_MARGIN = 1e-5
ABSOLUTE_MARGIN = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class InstanceMask:
    """One thing found in a picture.

    Attributes:
        label_id: index of its label.
        score: class probability × mean mask probability inside the mask, in [0, 1].
        area: number of pixels, positive.
        bbox: (x, y, width, height) in pixels, the smallest box around the mask.
        size: (height, width) of the picture.
        counts: run lengths of 0 and 1 in turn, beginning with 0, down the columns from left to right: COCO's
            uncompressed run-length encoding.
    """

    label_id: int
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    size: tuple[int, int]
    counts: NDArray[np.int64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) boolean mask, decoded anew at each call."""
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(self.size[::-1]).T


@dataclass(frozen=True, slots=True, eq=False)
class _BinaryMask:
    """A query's binary mask: as in :class:`InstanceMask`, and its mean probability inside."""

    area: int
    bbox: tuple[int, int, int, int]
    counts: NDArray[np.int64]
    mean_probability: float


def merge_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_label_ids: Collection[int],
    target_size: tuple[int, int] | None = None,
    top_k: int = 100,
    threshold: float = 0.0,
    mask_threshold: float = 0.5,
    valid_fraction: tuple[float, float] = (1.0, 1.0),
) -> list[InstanceMask]:
    """Turn the best (query, thing label) pairs into scored masks.

    The ``top_k`` pairs with the largest class probability are taken among the things alone, so that stuff
    crowds nothing out; one query may serve several labels. Each is scored by class probability × mean mask
    probability inside its binary mask. Empty masks are left out. Masks are made one at a time, a band of
    columns each, and kept as run lengths.

    Args:
        class_logits: (Q, K + 1), last column is no-object.
        mask_logits: (Q, h, w) before sigmoid, at any resolution, on any device; read in float32.
        thing_label_ids: labels in [0, K) to look for.
        target_size: (H, W) of the masks; bilinear (``align_corners=False``), as if the logits were resized
            first. None keeps (h, w).
        top_k: number of pairs, positive.
        threshold: in [0, 1]; masks must score more.
        mask_threshold: in [0, 1]; a mask's pixels have at least this probability.
        valid_fraction: shares of (h, w), each in (0, 1], that show the picture; the rest, at the bottom and
            on the right, is padding.

    Returns:
        Instances, best first; at equal scores in the order of queries, then of labels.

    Raises:
        TypeError: if the logits are not floating-point tensors.
        ValueError: if Q differs between inputs, a logit is NaN or infinite, a thing label is outside [0, K),
            or another argument is outside its range.

    Reference:
        Mask2Former, Sec. 4 and its reference implementation's instance inference (arXiv:2112.01527).
    """
    check_query_logits(class_logits, mask_logits)
    things = np.array(
        sorted(check_label_ids("thing_label_ids", thing_label_ids, class_logits.shape[1] - 1)), np.intp
    )
    height, width = check_target(target_size, valid_fraction, mask_logits)
    check_unit_interval(threshold=threshold, mask_threshold=mask_threshold)
    if top_k < 1:
        raise ValueError(f"top_k must be positive, got {top_k}")

    probabilities = compute_class_probabilities(class_logits)[:, things]
    chosen = np.argsort(-probabilities, axis=None, kind="stable")[:top_k]
    rows = build_sampling_axis(mask_logits.shape[1], height, valid_fraction[0])
    columns = build_sampling_axis(mask_logits.shape[2], width, valid_fraction[1])
    masks: dict[int, _BinaryMask | None] = {}
    instances = []
    # In the order of queries and labels, so that a stable sort by score keeps it.
    for query, thing in (divmod(int(pair), len(things)) for pair in np.sort(chosen)):
        if query not in masks:
            logits = mask_logits[query].detach().to("cpu", torch.float32).numpy()
            masks[query] = _build_mask(logits, rows, columns, mask_threshold)
        mask = masks[query]
        if mask is None:
            continue
        score = float(probabilities[query, thing]) * mask.mean_probability
        if score > threshold:
            instances.append(
                InstanceMask(int(things[thing]), score, mask.area, mask.bbox, (height, width), mask.counts)
            )
    return sorted(instances, key=lambda instance: -instance.score)


def _build_mask(
    logits: NDArray[np.float32], rows: SamplingAxis, columns: SamplingAxis, mask_threshold: float
) -> _BinaryMask | None:
    """(h, w) logits → the binary mask, None if it is empty."""
    height, width = len(rows.cell), len(columns.cell)
    reach = compute_sigmoid(logits, out=np.empty_like(logits))
    reaching: NDArray[np.bool_] = reach >= mask_threshold * (1 - RELATIVE_MARGIN) - ABSOLUTE_MARGIN
    row_part = _find_reach(rows, np.logical_or.reduce(reaching, 1))
    column_part = _find_reach(columns, np.logical_or.reduce(reaching, 0))
    if row_part.start == row_part.stop or column_part.start == column_part.stop:
        return None
    band = max(1, PIXELS_PER_BAND // (row_part.stop - row_part.start))
    total = 0.0
    starts, ends = [], []
    for first in range(column_part.start, column_part.stop, band):
        part = slice(first, min(first + band, column_part.stop))
        values = interpolate(logits, rows, columns, (row_part, part))
        values = compute_sigmoid(values, out=values)
        inside = values >= mask_threshold
        total += float(values[inside].sum())
        # (columns, H + 2) with a border of zeros: a run begins and ends in its own column.
        bordered = np.zeros((part.stop - first, height + 2), np.int8)
        bordered[:, 1 + row_part.start : 1 + row_part.stop] = inside.T
        steps = np.diff(bordered, axis=1)
        starts.append(_number_pixels(steps == 1, first, height))
        ends.append(_number_pixels(steps == -1, first, height))
    start, end = np.concatenate(starts), np.concatenate(ends)
    if not len(start):
        return None
    area = int((end - start).sum())
    top, bottom = int((start % height).min()), int(((end - 1) % height).max()) + 1
    left, right = int(start[0]) // height, int(end[-1] - 1) // height + 1
    # Runs that meet at the foot of one column and the head of the next are one run.
    joined = np.flatnonzero(start[1:] == end[:-1])
    edges = np.stack([np.delete(start, joined + 1), np.delete(end, joined)], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width)
    return _BinaryMask(
        area=area,
        bbox=(left, top, right - left, bottom - top),
        counts=counts[:-1] if counts[-1] == 0 else counts,
        mean_probability=total / area,
    )


def _find_reach(axis: SamplingAxis, samples: NDArray[np.bool_]) -> slice:
    """The pixels that samples can reach: those of cells with such a sample at an end."""
    cells = np.flatnonzero(samples[axis.lower] | samples[axis.upper])
    if not len(cells):
        return slice(0, 0)
    return slice(int(axis.start[cells[0]]), int(axis.start[cells[-1] + 1]))


def _number_pixels(is_step: NDArray[np.bool_], first_column: int, height: int) -> NDArray[np.int64]:
    """Places in (columns, H + 1) → numbers of pixels down the columns of the picture."""
    column, row = np.nonzero(is_step)
    return (column + first_column) * height + row
