"""Mean IoU, hIoU and their groups of labels, for the ``evaluate`` library."""

from typing import Any

import evaluate

from zsseg import metrics
from zsseg.metrics.evaluate_modules import label_pairs
from zsseg.vocabulary import Vocabulary

_DESCRIPTION = """
Mean IoU of semantic maps over all labels, things, stuff, seen and unseen ones, and hIoU, the harmonic mean of
seen and unseen. Labels that occur nowhere are left out, and in the figures "_all_classes" count as 0.
"""
_CITATION = """
@inproceedings{xian2019spnet,
  title={Semantic Projection Network for Zero- and Few-Label Semantic Segmentation},
  author={Xian, Yongqin and Choudhury, Subhabrata and He, Yang and Schiele, Bernt and Akata, Zeynep},
  booktitle={CVPR}, year={2019}}
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: (H, W) maps of label ids, as arrays, tensors, pictures or lists; sizes may differ.
    references: the true maps.
    labels (`list` of `str`): their names in the order of their ids; for `compute`.
    stuff_labels (`list` of `str`): those that are stuff; the others are things.
    unseen_labels (`list` of `str`): those that training never showed.
    ignore_index (`int`): true pixels that do not count, and predicted pixels without a label; 255.
    per_class (`bool`): add `per_class`, the IoU of each label.

Returns:
    mIoU, mIoU_seen, mIoU_unseen, hIoU, pixel_accuracy and so on, in [0, 1]; NaN where no label of a group
    occurs.

Examples:
    >>> import evaluate, numpy as np
    >>> from zsseg.metrics.evaluate_modules import locate_evaluate_module
    >>> module = evaluate.load(locate_evaluate_module("mean_iou"))
    >>> module.add_batch(predictions=[np.array([[0, 0, 1, 1]])], references=[np.array([[0, 1, 1, 255]])])
    >>> module.compute(labels=["road", "car", "tree"])["mIoU"]
    0.5
"""


class MeanIou(label_pairs.LabelPairMetric):
    """:class:`zsseg.metrics.MeanIoU` for ``evaluate``."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=label_pairs.FEATURES,
        )

    def _build(self, vocabulary: Vocabulary, **options: Any) -> metrics.MeanIoU:
        return metrics.MeanIoU(vocabulary, **options)

    def _describe_labels(self, metric: metrics.MeanIoU) -> dict[str, Any]:
        return {name: {"IoU": iou} for name, iou in metric.compute_per_class().items()}
