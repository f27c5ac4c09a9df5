"""Matching of predicted with true segments in one image, by panopticapi's rules."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsseg.metrics.run_lengths import find_runs
from zsseg.structures import VOID_ID, PanopticSegmentation

VOID_ROW = 0


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """The segments of one map as columns, S rows in the order in which they are listed.

    Attributes:
        ids: (S,) positive, unique.
        label_ids: (S,) in [0, K).
        is_crowd: (S,) groups that nobody separated; read for the target only.
        areas: (S,) pixels as listed, to be compared with those counted; None where a format lists none.
    """

    ids: NDArray[np.int64]
    label_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.int64 | np.float64] | None = None

    @classmethod
    def from_segmentation(cls, segmentation: PanopticSegmentation) -> "SegmentTable":
        """The columns of a result's segments."""
        segments = segmentation.segments
        return cls(
            ids=np.array([segment.id for segment in segments], dtype=np.int64),
            label_ids=np.array([segment.label_id for segment in segments], dtype=np.int64),
            is_crowd=np.array([segment.iscrowd for segment in segments], dtype=np.bool_),
            areas=np.array([segment.area for segment in segments], dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class MatchCounts:
    """What one image adds to each of K labels.

    Attributes:
        iou_sum: (K,) sum of the IoU of the matched pairs.
        true_positives: (K,) matched pairs.
        false_positives: (K,) predicted segments without a match.
        false_negatives: (K,) true segments without a match.
    """

    iou_sum: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]


def match_segments(
    prediction_ids: NDArray[np.integer],
    target_ids: NDArray[np.integer],
    prediction: SegmentTable,
    target: SegmentTable,
    num_labels: int,
) -> MatchCounts:
    """Match the segments of two maps and count by label.

    - A pair matches if its labels are equal, its IoU is above 0.5 and the target is no crowd. No segment can
      match twice then.
    - The union leaves out the prediction's pixels that are void in the target.
    - An unmatched target that is no crowd is a false negative.
    - An unmatched prediction is a false positive, unless more than half of it lies in the target's void and
      the crowd of its label.

    Args:
        prediction_ids: (H, W), 0 = void.
        target_ids: (H, W), 0 = void.
        prediction: the segments of ``prediction_ids``.
        target: the segments of ``target_ids``.
        num_labels: K.

    Raises:
        ValueError: if the maps differ in size, a label id is outside [0, K), a pixel's id is not listed, a
            listed segment has no pixel, or a listed area is not the number of its pixels.

    Reference:
        Panoptic Segmentation, Kirillov et al., Sec. 4 (arXiv:1801.00868).
    """
    prediction_values, target_values, lengths = find_runs(prediction_ids, target_ids)
    prediction_rows = _rows(prediction_values, prediction, "prediction", num_labels)
    target_rows = _rows(target_values, target, "target", num_labels)
    num_columns = len(prediction.ids) + 1
    # With weights the counts come as float64, exact below 2**53.
    overlaps = (
        np.bincount(
            target_rows * num_columns + prediction_rows,
            weights=lengths,
            minlength=(len(target.ids) + 1) * num_columns,
        )
        .astype(np.int64)
        .reshape(-1, num_columns)
    )
    prediction_areas = overlaps.sum(axis=0)[1:]
    target_areas = overlaps.sum(axis=1)[1:]
    _check_areas(prediction_areas, prediction, "prediction")
    _check_areas(target_areas, target, "target")

    void_overlaps = overlaps[VOID_ROW, 1:]
    intersections = overlaps[1:, 1:]
    unions = target_areas[:, None] + (prediction_areas - void_overlaps) - intersections
    iou = intersections / unions
    is_candidate = (target.label_ids[:, None] == prediction.label_ids) & ~target.is_crowd[:, None]
    is_match = is_candidate & (iou > 0.5)
    matched_targets, matched_predictions = np.nonzero(is_match)

    is_false_negative = ~target.is_crowd
    is_false_negative[matched_targets] = False
    is_false_positive = _ignored_areas(overlaps, prediction, target) / prediction_areas <= 0.5
    is_false_positive[matched_predictions] = False
    matched_labels = target.label_ids[matched_targets]
    return MatchCounts(
        iou_sum=np.bincount(matched_labels, weights=iou[is_match], minlength=num_labels).astype(np.float64),
        true_positives=np.bincount(matched_labels, minlength=num_labels),
        false_positives=np.bincount(prediction.label_ids[is_false_positive], minlength=num_labels),
        false_negatives=np.bincount(target.label_ids[is_false_negative], minlength=num_labels),
    )


def _ignored_areas(
    overlaps: NDArray[np.int64], prediction: SegmentTable, target: SegmentTable
) -> NDArray[np.int64]:
    """(S,) pixels of each predicted segment in the target's void and the crowd of its label."""
    ignored = overlaps[VOID_ROW, 1:].copy()
    # COCO has one crowd per label and image. Where a file has several, panopticapi reads the last one.
    crowd_row_by_label = {int(target.label_ids[row]): row + 1 for row in np.flatnonzero(target.is_crowd)}
    for label_id, crowd_row in crowd_row_by_label.items():
        has_label = prediction.label_ids == label_id
        ignored[has_label] += overlaps[crowd_row, 1:][has_label]
    return ignored


def _rows(values: NDArray[np.int64], segments: SegmentTable, role: str, num_labels: int) -> NDArray[np.int64]:
    """Segment ids → 0 for void and 1..S for the listed segments in their order."""
    is_outside = (segments.label_ids < 0) | (segments.label_ids >= num_labels)
    if is_outside.any():
        raise ValueError(
            f"the {role}'s label ids must lie in [0, {num_labels}), got "
            f"{_first(segments.label_ids[is_outside])}; number them by the vocabulary of this metric"
        )
    ids = np.append(VOID_ID, segments.ids)
    order = np.argsort(ids)
    sorted_ids = ids[order]
    positions = np.minimum(np.searchsorted(sorted_ids, values), len(ids) - 1)
    is_unlisted = sorted_ids[positions] != values
    if is_unlisted.any():
        raise ValueError(
            f"the {role}'s pixels carry ids that no segment lists: {_first(np.unique(values[is_unlisted]))}; "
            f"list these segments, or set their pixels to {VOID_ID} (void)"
        )
    return order[positions]


def _check_areas(counted: NDArray[np.int64], segments: SegmentTable, role: str) -> None:
    is_absent = counted == 0
    if is_absent.any():
        raise ValueError(
            f"the {role} lists segments without a pixel: {_first(segments.ids[is_absent])}; "
            "leave them out of the list"
        )
    if segments.areas is None:
        return
    is_wrong = counted != segments.areas
    if is_wrong.any():
        wrong = zip(segments.ids[is_wrong], segments.areas[is_wrong], counted[is_wrong], strict=True)
        raise ValueError(
            f"the {role}'s areas differ from the pixels counted (id, listed, counted): "
            f"{[(int(i), int(listed), int(pixels)) for i, listed, pixels in list(wrong)[:10]]}; "
            "count them again after the map was changed"
        )


def _first(values: NDArray[np.int64]) -> list[int]:
    return [int(value) for value in values[:10]]
