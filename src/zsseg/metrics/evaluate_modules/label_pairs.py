"""Counting pixels by pairs of labels, which the modules for semantic maps share."""

from typing import Any

import numpy as np
from datasets import Features, List, Value
from numpy.typing import NDArray

from zsseg.metrics.evaluate_modules.streamed_metric import StreamedMetric, Sums
from zsseg.metrics.mean_iou import MeanIoU
from zsseg.metrics.run_lengths import find_runs

FEATURES = Features(
    {"predictions": List(List(Value("int32"))), "references": List(List(Value("int32")))},
)
"""(H, W) maps of label ids."""


class LabelPairMetric(StreamedMetric):
    """A metric that follows from how many pixels each pair of predicted and true label has."""

    def _count(self, prediction: Any, reference: Any) -> Sums:
        predicted, true, lengths = find_runs(np.asarray(prediction), np.asarray(reference))
        pairs, places = np.unique(np.stack([predicted, true]), axis=1, return_inverse=True)
        pixels = np.bincount(places.ravel(), weights=lengths)
        return {
            (int(pair[0]), int(pair[1])): np.array([count])
            for pair, count in zip(pairs.T, pixels, strict=True)
        }

    def _fill(self, metric: MeanIoU, labels: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        predicted, true = labels.T
        metric.add_runs(predicted, true, sums[:, 0].astype(np.int64))
