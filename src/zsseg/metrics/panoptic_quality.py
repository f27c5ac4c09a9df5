"""Panoptic quality from per-label sums: exact to panopticapi, mergeable across shards."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zsseg.metrics.class_averages import average_over_groups
from zsseg.metrics.label_sums import LabelSumsMetric
from zsseg.metrics.segment_matching import MatchCounts, SegmentTable, match_segments
from zsseg.structures import PanopticSegmentation


class PanopticQuality(LabelSumsMetric):
    """PQ, SQ and RQ over images, for all labels, things, stuff, seen and unseen.

    For one label with matched pairs TP, unmatched predictions FP and unmatched targets FN (the rules are
    those of :func:`~zsseg.metrics.segment_matching.match_segments`):

    - SQ = Σ IoU(TP) / TP, 0 without a TP;
    - RQ = TP / (TP + ½ FP + ½ FN);
    - PQ = SQ · RQ.

    :meth:`compute` averages them over labels in two conventions, which differ where a label occurs neither
    in a target nor in a prediction:

    - ``PQ``, ``PQ_th``, ``PQ_st``, ``PQ_seen``, ``PQ_unseen`` skip absent labels, as panopticapi does; NaN
      if none of the group is present;
    - the same names with ``_all_classes`` count an absent label as 0, as the zero-shot literature does;
    - ``hPQ`` is the harmonic mean of ``PQ_seen_all_classes`` and ``PQ_unseen_all_classes``, and
      ``hPQ_present_classes`` that of ``PQ_seen`` and ``PQ_unseen``;
    - SQ and RQ likewise. Averages are taken per figure, so ``PQ`` is not ``SQ · RQ``.

    Groups without a label in the vocabulary have no key; so the keys depend on the vocabulary alone.

    Args:
        vocabulary: gives ``label_id`` its meaning in predictions and targets.

    Example:
        >>> from zsseg.structures import SegmentInfo
        >>> from zsseg.vocabulary import Vocabulary
        >>> vocabulary = Vocabulary.from_labels(["car", "road"], stuff_labels=["road"])
        >>> car = SegmentInfo(id=1, label_id=0, isthing=True, area=2, bbox=(0, 0, 2, 1))
        >>> image = PanopticSegmentation(np.array([[1, 1, 0]], dtype=np.int32), (car,))
        >>> metric = PanopticQuality(vocabulary)
        >>> metric.update(image, image)
        >>> results = metric.compute()
        >>> results["PQ"], results["PQ_all_classes"], results["PQ_st"]
        (1.0, 0.5, nan)

    Reference:
        Panoptic Segmentation, Kirillov et al., Sec. 4 (arXiv:1801.00868); averages over seen and unseen
        labels as in PADing, He et al. (CVPR 2023, arXiv:2306.11087).
    """

    SUM_DTYPES: ClassVar[Mapping[str, DTypeLike]] = {
        "iou_sum": np.float64,
        "true_positives": np.int64,
        "false_positives": np.int64,
        "false_negatives": np.int64,
    }

    def update(self, prediction: PanopticSegmentation, target: PanopticSegmentation) -> None:
        """Add one image.

        Args:
            prediction: what a model found, at the target's size.
            target: ground truth; its crowd segments are ignored, its void is no part of a union.

        Raises:
            ValueError: as :func:`~zsseg.metrics.segment_matching.match_segments`; nothing is added then.
        """
        self.add(
            match_segments(
                prediction.segment_ids,
                target.segment_ids,
                SegmentTable.from_segmentation(prediction),
                SegmentTable.from_segmentation(target),
                len(self.vocabulary),
            )
        )

    def add(self, counts: MatchCounts) -> None:
        """Add the counts of one image, for readers that match segments without building a result of them."""
        self._add_image_sums({name: getattr(counts, name) for name in self.SUM_DTYPES}, num_images=1)

    def compute(self) -> dict[str, float]:
        """All averages by name, in [0, 1]; see the class for the names.

        Raises:
            ValueError: if no image was added.
        """
        self._check_has_images()
        return average_over_groups(self._figures(), self._denominators() > 0, self.vocabulary)

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Label name → PQ, SQ, RQ in [0, 1] and the counts TP, FP, FN; all are 0 for an absent label.

        Raises:
            ValueError: if no image was added.
        """
        self._check_has_images()
        columns = self._figures() | {
            "TP": self._sums["true_positives"],
            "FP": self._sums["false_positives"],
            "FN": self._sums["false_negatives"],
        }
        return {
            name: {figure: values[label_id].item() for figure, values in columns.items()}
            for label_id, name in enumerate(self.vocabulary.names)
        }

    def _denominators(self) -> NDArray[np.float64]:
        """(K,) TP + ½ FP + ½ FN."""
        return self._sums["true_positives"] + 0.5 * (
            self._sums["false_positives"] + self._sums["false_negatives"]
        )

    def _figures(self) -> dict[str, NDArray[np.float64]]:
        """PQ, SQ and RQ of each label, (K,), 0 where the denominator is."""
        iou_sum, true_positives = self._sums["iou_sum"], self._sums["true_positives"]
        denominators = self._denominators()
        # A denominator of 0 has a numerator of 0, so any other denominator gives the 0 wanted.
        safe_denominators = np.where(denominators > 0, denominators, 1.0)
        return {
            "PQ": iou_sum / safe_denominators,
            "SQ": iou_sum / np.maximum(true_positives, 1),
            "RQ": true_positives / safe_denominators,
        }
