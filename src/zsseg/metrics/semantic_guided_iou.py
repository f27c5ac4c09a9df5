"""SG-IoU: a mean IoU that knows that "chair" is no wrong answer for an armchair."""

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zsseg.metrics.class_averages import average_over_groups
from zsseg.metrics.label_parents import Parents, index_parents
from zsseg.metrics.mean_iou import MeanIoU
from zsseg.vocabulary import Vocabulary


class SemanticGuidedIoU(MeanIoU):
    """Mean IoU, and beside it the same with pixels that were given a parent of their label counted in part.

    With M[p, g] the pixels of target g predicted as p, P_c and G_c the predicted and the true pixels of label
    c (all without ignored targets), and f a parent of c:

    - β(f, c) = (M[f, c] + M[f, f]) / P_f, the share of f's predictions that are right or stand for c;
    - TP'_c = M[c, c] + Σ_f M[f, c] · β(f, c);
    - SG-IoU_c = TP'_c / (G_c + P_c − M[c, c]).

    A label without parents has the same IoU in both. :meth:`compute` returns what :class:`MeanIoU` does, and
    ``SG-IoU``, ``SG-IoU_seen``, …, ``hSG-IoU`` with the same groups and in the same two conventions.

    Args:
        vocabulary: K labels.
        parents: label name → names of its parents or synonyms; labels without any may be left out.
            :func:`~zsseg.metrics.label_parents.read_parents` reads a file of them.
        ignore_index: as for :class:`MeanIoU`.
        count_false_labels: whether a label that is predicted somewhere and true nowhere counts as 0, as in
            the paper's code; False averages SG-IoU over the labels that are true somewhere.

    Raises:
        ValueError: if the table names unknown labels, a label as its own parent, or a parent twice; or as for
            :class:`MeanIoU`.

    Example:
        >>> vocabulary = Vocabulary.from_labels(["chair", "armchair"])
        >>> metric = SemanticGuidedIoU(vocabulary, {"armchair": ["chair"]})
        >>> metric.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
        >>> metric.compute_per_class()["armchair"], metric.compute_guided_per_class()["armchair"]
        (0.5, 1.0)

    Reference:
        SCAN, Liu et al. (arXiv:2312.04089).
    """

    SUM_DTYPES: ClassVar[Mapping[str, DTypeLike]] = {**MeanIoU.SUM_DTYPES, "parent_areas": np.int64}

    def __init__(
        self,
        vocabulary: Vocabulary,
        parents: Parents,
        ignore_index: int = 255,
        *,
        count_false_labels: bool = True,
    ) -> None:
        pairs = np.array(index_parents(parents, vocabulary), dtype=np.int64).reshape(-1, 2)
        self._children, self._parents = pairs.T
        super().__init__(vocabulary, ignore_index)
        self.count_false_labels = count_false_labels

    def merge(self, other: Self) -> None:
        """Add the images of another metric of the same vocabulary and parents.

        Raises:
            TypeError: if the other is another kind of metric.
            ValueError: if vocabularies or parents differ.
        """
        if type(other) is type(self) and not (
            np.array_equal(self._children, other._children) and np.array_equal(self._parents, other._parents)
        ):
            raise ValueError("only metrics of one table of parents can be merged, and these have two")
        super().merge(other)

    def compute(self) -> dict[str, float]:
        """All averages by name, in [0, 1]; see the class for the names.

        Raises:
            ValueError: if no image was added.
        """
        averages = super().compute()
        is_present = self._unions() > 0 if self.count_false_labels else self._sums["target_areas"] > 0
        return averages | average_over_groups({"SG-IoU": self._guided_iou()}, is_present, self.vocabulary)

    def compute_guided_per_class(self) -> dict[str, float]:
        """Label name → SG-IoU in [0, 1]; NaN for a label in neither targets nor predictions.

        Raises:
            ValueError: if no image was added.
        """
        self._check_has_images()
        return dict(zip(self.vocabulary.names, self._guided_iou().tolist(), strict=True))

    def _sum_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._sum_shapes(), "parent_areas": self._children.shape}

    def _sum_runs(
        self,
        prediction_labels: NDArray[np.int64],
        target_labels: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> dict[str, NDArray[np.int64]]:
        sums = super()._sum_runs(prediction_labels, target_labels, lengths)
        num_labels, num_pairs = len(self.vocabulary), len(self._children)
        # Pairs are sorted by child and then by parent, so their keys are too.
        keys = self._children * num_labels + self._parents
        is_predicted = prediction_labels != self.ignore_index
        run_keys = target_labels[is_predicted] * num_labels + prediction_labels[is_predicted]
        places = np.searchsorted(keys, run_keys)
        is_pair = np.append(keys, -1)[places] == run_keys
        areas = np.bincount(
            places[is_pair], weights=lengths[is_predicted][is_pair], minlength=num_pairs
        ).astype(np.int64)
        return {**sums, "parent_areas": areas}

    def _guided_iou(self) -> NDArray[np.float64]:
        """(K,) SG-IoU of each label, NaN where its union is empty."""
        intersections, areas = self._sums["intersections"], self._sums["parent_areas"]
        predicted = self._sums["prediction_areas"][self._parents]
        # A parent that was never predicted has nothing to give; its β does not matter.
        shares = (areas + intersections[self._parents]) / np.maximum(predicted, 1)
        guided = intersections + np.bincount(
            self._children, weights=areas * shares, minlength=len(intersections)
        )
        unions = self._unions()
        iou = np.full(len(unions), np.nan)
        np.divide(guided, unions, out=iou, where=unions > 0)
        return iou
