"""Mean IoU of semantic maps from per-label sums."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zsseg.metrics.class_averages import average_over_groups
from zsseg.metrics.label_sums import LabelSumsMetric
from zsseg.metrics.run_lengths import find_runs
from zsseg.vocabulary import Vocabulary


class MeanIoU(LabelSumsMetric):
    """Mean IoU over images, for all labels, things, stuff, seen and unseen, and pixel accuracy.

    For one label, IoU = intersection / (predicted pixels + target pixels − intersection), each summed over
    all images and over the pixels whose target is not ``ignore_index``. :meth:`compute` averages in two
    conventions, which differ where a label occurs neither in a target nor in a prediction:

    - ``mIoU``, ``mIoU_th``, ``mIoU_st``, ``mIoU_seen``, ``mIoU_unseen`` skip absent labels, as the semantic
      benchmarks do; NaN if none of the group is present;
    - the same names with ``_all_classes`` count an absent label as 0;
    - ``hIoU`` is the harmonic mean of ``mIoU_seen_all_classes`` and ``mIoU_unseen_all_classes``, and
      ``hIoU_present_classes`` that of ``mIoU_seen`` and ``mIoU_unseen``;
    - ``pixel_accuracy`` is the share of pixels with the right label; NaN without a pixel that counts.

    Groups without a label in the vocabulary have no key; so the keys depend on the vocabulary alone.

    Args:
        vocabulary: K labels; values 0..K − 1 of the maps are its label ids.
        ignore_index: in a target, pixels that do not count; in a prediction, pixels without a label, which
            miss their target.

    Raises:
        ValueError: if ``ignore_index`` is a label id of the vocabulary.

    Example:
        >>> metric = MeanIoU(Vocabulary.from_labels(["road", "car", "tree"]))
        >>> metric.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 255]]))
        >>> results = metric.compute()
        >>> results["mIoU"], results["pixel_accuracy"]
        (0.5, 0.6666666666666666)
    """

    SUM_DTYPES: ClassVar[Mapping[str, DTypeLike]] = {
        "intersections": np.int64,
        "prediction_areas": np.int64,
        "target_areas": np.int64,
    }

    def __init__(self, vocabulary: Vocabulary, ignore_index: int = 255) -> None:
        super().__init__(vocabulary)
        if 0 <= ignore_index < len(vocabulary):
            raise ValueError(
                f"ignore_index={ignore_index} is a label id of this vocabulary of {len(vocabulary)} labels; "
                "choose a value outside, such as -1 or 65535, and write the maps with it"
            )
        self.ignore_index = ignore_index

    def update(self, prediction: NDArray[np.integer], target: NDArray[np.integer]) -> None:
        """Add one image.

        Args:
            prediction: (H, W) label ids, or ``ignore_index`` where nothing is predicted.
            target: (H, W) label ids, or ``ignore_index``.

        Raises:
            ValueError: if the maps differ in size, are not two-dimensional integers, or hold another value
                (a prediction may, where the target is ignored); nothing is added then.
        """
        self.add_runs(*find_runs(prediction, target))

    def add_runs(
        self,
        prediction_labels: NDArray[np.int64],
        target_labels: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        """Add one image of which only the pixels of each pair of labels are known.

        Args:
            prediction_labels: (R,) label ids, or ``ignore_index``.
            target_labels: (R,) likewise.
            lengths: (R,) how many pixels have this pair.

        Raises:
            ValueError: as :meth:`update`, for the labels.
        """
        counts = target_labels != self.ignore_index
        prediction_labels, target_labels, lengths = (
            prediction_labels[counts],
            target_labels[counts],
            lengths[counts],
        )
        self._check_labels(target_labels, "target")
        self._check_labels(prediction_labels[prediction_labels != self.ignore_index], "prediction")
        self._add_image_sums(self._sum_runs(prediction_labels, target_labels, lengths), num_images=1)

    def compute(self) -> dict[str, float]:
        """All averages by name, in [0, 1]; see the class for the names.

        Raises:
            ValueError: if no image was added.
        """
        self._check_has_images()
        unions = self._unions()
        num_pixels = int(self._sums["target_areas"].sum())
        num_right = int(self._sums["intersections"].sum())
        return average_over_groups({"IoU": self._iou()}, unions > 0, self.vocabulary, prefix="m") | {
            "pixel_accuracy": num_right / num_pixels if num_pixels else float("nan")
        }

    def compute_per_class(self) -> dict[str, float]:
        """Label name → IoU in [0, 1]; NaN for a label in neither targets nor predictions.

        Raises:
            ValueError: if no image was added.
        """
        self._check_has_images()
        return dict(zip(self.vocabulary.names, self._iou().tolist(), strict=True))

    def _sum_runs(
        self,
        prediction_labels: NDArray[np.int64],
        target_labels: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> dict[str, NDArray[np.int64]]:
        """The sums by label of runs that count."""
        is_predicted = prediction_labels != self.ignore_index
        is_right = prediction_labels == target_labels
        return {
            "intersections": self._areas(target_labels[is_right], lengths[is_right]),
            "prediction_areas": self._areas(prediction_labels[is_predicted], lengths[is_predicted]),
            "target_areas": self._areas(target_labels, lengths),
        }

    def _unions(self) -> NDArray[np.int64]:
        return self._sums["prediction_areas"] + self._sums["target_areas"] - self._sums["intersections"]

    def _iou(self) -> NDArray[np.float64]:
        unions = self._unions()
        iou = np.full(len(unions), np.nan)
        np.divide(self._sums["intersections"], unions, out=iou, where=unions > 0)
        return iou

    def _areas(self, labels: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) pixels of each label; float64 sums are exact below 2**53."""
        return np.bincount(labels, weights=lengths, minlength=len(self.vocabulary)).astype(np.int64)

    def _check_labels(self, labels: NDArray[np.int64], role: str) -> None:
        is_outside = (labels < 0) | (labels >= len(self.vocabulary))
        if is_outside.any():
            raise ValueError(
                f"the {role} must hold label ids in [0, {len(self.vocabulary)}) or "
                f"ignore_index={self.ignore_index}, got {np.unique(labels[is_outside])[:10].tolist()}; "
                "map the data set's values to the vocabulary's label ids"
            )
