"""From overlapping query masks to one panoptic map: the only merge."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis, build_sampling_axis
from zsseg.postprocessing.mask_competition import MaskCompetition
from zsseg.postprocessing.query_logits import (
    check_label_ids,
    check_query_logits,
    check_target,
    check_unit_interval,
    compute_class_probabilities,
)
from zsseg.structures import VOID_ID, PanopticSegmentation, SegmentInfo

# Pixels in one work array while the map is measured.
PIXELS_PER_BAND = 1 << 20


@dataclass(slots=True)
class _Segment:
    """A segment in the making; its score is that of its largest part, the higher one at equal areas."""

    label_id: int
    score: float
    area: int
    largest_part: int

    def add(self, score: float, area: int) -> None:
        """Fuse another query's pixels."""
        self.area += area
        self.largest_part, self.score = max((self.largest_part, self.score), (area, score))


def merge_panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    stuff_label_ids: Collection[int],
    target_size: tuple[int, int] | None = None,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    valid_fraction: tuple[float, float] = (1.0, 1.0),
) -> PanopticSegmentation:
    """Resolve overlapping query masks into one non-overlapping panoptic map.

    A query is kept when its most probable label is not no-object and scores above ``threshold``. A pixel goes
    to the kept query with the largest score × mask probability, the first one on a tie, and is painted if
    that query's own mask probability reaches ``mask_threshold`` there. A query survives when it has painted a
    pixel and the area that it wins, painted or not, is at least ``overlap_mask_area_threshold`` of its own
    unweighted binary mask; the pixels of a query that does not survive stay void. Queries of one stuff label
    share a segment, whose score is that of the query with the largest part in it.

    The masks are never resized as a whole: time and memory follow the map and the boundaries in it, not
    pixels × queries.

    Args:
        class_logits: (Q, K + 1), last column is no-object.
        mask_logits: (Q, h, w) before sigmoid, at any resolution, on any device; read in float32.
        stuff_label_ids: labels in [0, K) merged into one segment each.
        target_size: (H, W) of the map; bilinear (``align_corners=False``), as if the logits were resized
            first. None keeps (h, w).
        threshold: in [0, 1].
        mask_threshold: in [0, 1].
        overlap_mask_area_threshold: in [0, 1].
        valid_fraction: shares of (h, w), each in (0, 1], that show the picture; the rest, at the bottom and
            on the right, is padding.

    Returns:
        ``segment_ids`` (H, W) int32, 0 = void, ids 1..S without gaps in the order of the queries, and S
        segments.

    Raises:
        TypeError: if the logits are not floating-point tensors.
        ValueError: if Q differs between inputs, a logit is NaN or infinite, a stuff label is outside [0, K),
            or another argument is outside its range.

    Reference:
        MaskFormer, Sec. 3.4 "general inference" (arXiv:2107.06278).
    """
    check_query_logits(class_logits, mask_logits)
    stuff = check_label_ids("stuff_label_ids", stuff_label_ids, class_logits.shape[1] - 1)
    height, width = check_target(target_size, valid_fraction, mask_logits)
    check_unit_interval(
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_mask_area_threshold=overlap_mask_area_threshold,
    )
    probabilities = compute_class_probabilities(class_logits)
    labels, scores = probabilities.argmax(1), probabilities.max(1)
    kept = np.flatnonzero((labels != class_logits.shape[1] - 1) & (scores > threshold))
    if not len(kept):
        return PanopticSegmentation(np.full((height, width), VOID_ID, np.int32), ())

    rows = build_sampling_axis(mask_logits.shape[1], height, valid_fraction[0])
    columns = build_sampling_axis(mask_logits.shape[2], width, valid_fraction[1])
    competition = MaskCompetition(mask_logits, kept, scores[kept], rows, columns, mask_threshold)
    survives = _find_survivors(competition, overlap_mask_area_threshold)

    segment_id_of, segments = _group(
        labels[kept], scores[kept], np.where(survives, competition.owned_areas, 0), stuff
    )
    segment_ids = _paint(competition, segment_id_of, rows, columns)
    boxes = _compute_boxes(segment_ids, len(segments))
    return PanopticSegmentation(
        segment_ids,
        tuple(
            SegmentInfo(
                id=segment_id,
                label_id=segment.label_id,
                isthing=segment.label_id not in stuff,
                area=segment.area,
                bbox=box,
                score=segment.score,
            )
            for segment_id, (segment, box) in enumerate(zip(segments, boxes, strict=True), start=1)
        ),
    )


def _group(
    labels: NDArray[np.intp],
    scores: NDArray[np.float64],
    areas: NDArray[np.int64],
    stuff: frozenset[int],
) -> tuple[NDArray[np.int32], list[_Segment]]:
    """Give the queries with pixels their segments.

    Returns:
        The segment id of every query, void for those without, with one more void entry at the end, where
        index -1 (nobody) points; and the segments 1, 2, …
    """
    segment_id_of = np.full(len(labels) + 1, VOID_ID, np.int32)
    segments: list[_Segment] = []
    id_of_stuff: dict[int, int] = {}
    for query in np.flatnonzero(areas).tolist():
        label, score, area = int(labels[query]), float(scores[query]), int(areas[query])
        if label in id_of_stuff:
            segments[id_of_stuff[label] - 1].add(score, area)
        else:
            segments.append(_Segment(label, score, area, largest_part=area))
            if label in stuff:
                id_of_stuff[label] = len(segments)
        segment_id_of[query] = id_of_stuff.get(label, len(segments))
    return segment_id_of, segments


def _find_survivors(competition: MaskCompetition, overlap_mask_area_threshold: float) -> NDArray[np.bool_]:
    """(Q,) whether each query is painted; won areas are settled only if the answer depends on it."""

    def wins_enough(won_areas: NDArray[np.int64]) -> NDArray[np.bool_]:
        return won_areas / np.maximum(competition.own_areas, 1) >= overlap_mask_area_threshold

    visible = competition.owned_areas > 0
    at_most = competition.won_areas + competition.unsettled_areas
    open_queries = visible & wins_enough(at_most) & ~wins_enough(competition.won_areas)
    if open_queries.any():
        competition.settle_won_areas(open_queries)
    return visible & wins_enough(competition.won_areas)


def _paint(
    competition: MaskCompetition,
    segment_id_of: NDArray[np.int32],
    rows: SamplingAxis,
    columns: SamplingAxis,
) -> NDArray[np.int32]:
    """(H, W) segment ids: whole cells first, then the contested pixels."""
    segment_ids = np.empty((len(rows.cell), len(columns.cell)), np.int32)
    cells = segment_id_of[competition.cell_owner[: len(rows.lower), : len(columns.lower)]]
    for cell_row, row_owners in enumerate(cells):
        segment_ids[rows.start[cell_row] : rows.start[cell_row + 1]] = row_owners[columns.cell]
    for pixels in competition.contested:
        segment_ids[pixels.rows[:, None], pixels.columns[None]] = segment_id_of[pixels.owner]
    return segment_ids


def _compute_boxes(segment_ids: NDArray[np.int32], count: int) -> list[tuple[int, int, int, int]]:
    """(x, y, width, height) of segments 1..count, from the runs of equal ids along the rows."""
    height, width = segment_ids.shape
    left, top = np.full(count + 1, width), np.full(count + 1, height)
    right, bottom = np.full(count + 1, -1), np.full(count + 1, -1)
    band = max(1, PIXELS_PER_BAND // width)
    for first in range(0, height, band):
        ids = segment_ids[first : first + band]
        is_start = np.ones(ids.shape, np.bool_)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=is_start[:, 1:])
        starts = np.flatnonzero(is_start)
        row, start = np.divmod(starts, width)
        end = np.append(starts[1:], ids.size) - 1 - row * width
        run_ids = ids.ravel()[starts]
        np.minimum.at(left, run_ids, start)
        np.maximum.at(right, run_ids, end)
        np.minimum.at(top, run_ids, row + first)
        np.maximum.at(bottom, run_ids, row + first)
    return [
        (int(left[i]), int(top[i]), int(right[i] - left[i]) + 1, int(bottom[i] - top[i]) + 1)
        for i in range(1, count + 1)
    ]
