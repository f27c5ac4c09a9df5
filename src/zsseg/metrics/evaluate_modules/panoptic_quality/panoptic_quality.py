"""Panoptic quality, hPQ and their groups of labels, for the ``evaluate`` library."""

from collections.abc import Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from zsseg import metrics
from zsseg.metrics import segment_matching
from zsseg.metrics.evaluate_modules import streamed_metric
from zsseg.structures import VOID_ID, PanopticSegmentation
from zsseg.vocabulary import Vocabulary

_DESCRIPTION = """
Panoptic quality (PQ), segmentation quality (SQ) and recognition quality (RQ) over all labels, things, stuff,
seen and unseen ones, and hPQ, the harmonic mean of seen and unseen. Void and crowds as panopticapi has them.
Labels that occur nowhere are left out, and in the figures "_all_classes" count as 0.
"""
_CITATION = """
@inproceedings{kirillov2019panoptic, title={Panoptic Segmentation},
  author={Kirillov, Alexander and He, Kaiming and Girshick, Ross and Rother, Carsten and Doll{\\'a}r, Piotr},
  booktitle={CVPR}, year={2019}}
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: each a picture: `{"segmentation": (H, W) ids, "segments_info": [{"id", "label_id"}, …]}`,
        as transformers' post-processing returns them, or a `zsseg.PanopticSegmentation`. Ids are unique in
        a picture; 0 is void. Sizes may differ.
    references: the truth, likewise; a segment with `iscrowd` is a group nobody separated.
    labels (`list` of `str`): their names in the order of their ids; for `compute`.
    stuff_labels (`list` of `str`): those that are stuff; the others are things.
    unseen_labels (`list` of `str`): those that training never showed.
    per_class (`bool`): add `per_class`, PQ, SQ, RQ and the counts TP, FP, FN of each label.

Returns:
    PQ, PQ_th, PQ_st, PQ_seen, PQ_unseen, hPQ, SQ, RQ and so on, in [0, 1]; NaN where no label of a group
    occurs.

Examples:
    >>> import evaluate, numpy as np
    >>> from zsseg.metrics.evaluate_modules import locate_evaluate_module
    >>> module = evaluate.load(locate_evaluate_module("panoptic_quality"))
    >>> truth = {"segmentation": np.array([[1, 1, 2, 2]]),
    ...          "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}]}
    >>> found = {"segmentation": np.array([[7, 7, 0, 0]]), "segments_info": [{"id": 7, "label_id": 0}]}
    >>> module.add(prediction=found, reference=truth)
    >>> module.compute(labels=["car", "road"], stuff_labels=["road"])["PQ"]
    0.5
"""
_PICTURE = {
    "segmentation": datasets.List(datasets.List(datasets.Value("int32"))),
    "segments_info": datasets.List(
        {
            "id": datasets.Value("int32"),
            "label_id": datasets.Value("int32"),
            "iscrowd": datasets.Value("bool"),
        }
    ),
}


class PanopticQuality(streamed_metric.StreamedMetric):
    """:class:`zsseg.metrics.PanopticQuality` for ``evaluate``."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": _PICTURE, "references": _PICTURE}),
        )

    def _count(self, prediction: Any, reference: Any) -> streamed_metric.Sums:
        predicted_ids, predicted = _read_picture(prediction, "prediction")
        true_ids, true = _read_picture(reference, "reference")
        num_labels = 1 + max([0, *predicted.label_ids.tolist(), *true.label_ids.tolist()])
        counts = segment_matching.match_segments(predicted_ids, true_ids, predicted, true, num_labels)
        sums = np.stack([getattr(counts, name) for name in metrics.PanopticQuality.SUM_DTYPES], axis=1)
        return {(int(label_id),): sums[label_id] for label_id in np.flatnonzero(sums.any(axis=1))}

    def _build(self, vocabulary: Vocabulary, **options: Any) -> metrics.PanopticQuality:
        return metrics.PanopticQuality(vocabulary, **options)

    def _fill(
        self, metric: metrics.PanopticQuality, labels: NDArray[np.int64], sums: NDArray[np.float64]
    ) -> None:
        label_ids = labels.reshape(-1)
        num_labels = len(metric.vocabulary)
        if unknown := label_ids[label_ids >= num_labels].tolist():
            raise ValueError(
                f"segments have the label ids {unknown[:10]}, but labels holds {num_labels} names: list all "
                "labels, in the order of their ids"
            )
        columns = {}
        for column, (name, dtype) in enumerate(metric.SUM_DTYPES.items()):
            columns[name] = np.zeros(num_labels, dtype=dtype)
            columns[name][label_ids] = sums.reshape(len(label_ids), -1)[:, column] if len(label_ids) else 0
        metric.add(segment_matching.MatchCounts(**columns))

    def _describe_labels(self, metric: metrics.PanopticQuality) -> dict[str, Any]:
        return metric.compute_per_class()


def _read_picture(picture: Any, role: str) -> tuple[NDArray[np.integer], segment_matching.SegmentTable]:
    if isinstance(picture, PanopticSegmentation):
        return picture.segment_ids, segment_matching.SegmentTable.from_segmentation(picture)
    if not isinstance(picture, Mapping) or not {"segmentation", "segments_info"} <= picture.keys():
        got = sorted(map(str, picture)) if isinstance(picture, Mapping) else type(picture).__name__
        raise ValueError(f"a {role} must hold 'segmentation' and 'segments_info', got {got}")
    segments = picture["segments_info"]
    if lacking := [segment for segment in segments if "id" not in segment or "label_id" not in segment]:
        raise ValueError(
            f"each segment of a {role} needs an 'id' and a 'label_id', which counts the labels from 0, got "
            f"{lacking[0]}"
        )
    ids = [int(segment["id"]) for segment in segments]
    if len(set(ids)) != len(ids) or any(segment_id <= 0 for segment_id in ids):
        raise ValueError(f"segment ids must be positive (0 is void) and unique, a {role} has {ids[:20]}")
    segment_ids = np.asarray(picture["segmentation"])
    # transformers writes -1 where it found no segment at all.
    return np.where(segment_ids == -1, VOID_ID, segment_ids), segment_matching.SegmentTable(
        ids=np.array(ids, dtype=np.int64),
        label_ids=np.array([int(segment["label_id"]) for segment in segments], dtype=np.int64),
        is_crowd=np.array([bool(segment.get("iscrowd")) for segment in segments], dtype=np.bool_),
    )
