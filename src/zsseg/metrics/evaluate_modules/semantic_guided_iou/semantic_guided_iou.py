"""SG-IoU beside the mean IoU, for the ``evaluate`` library."""

from typing import Any

import evaluate

from zsseg import metrics
from zsseg.metrics.evaluate_modules import label_pairs
from zsseg.vocabulary import Vocabulary

_DESCRIPTION = """
Semantic-guided IoU: a mean IoU in which pixels that were given a parent or synonym of their label, such as
"chair" for an armchair, count in part. The plain mean IoU comes with it.
"""
_CITATION = """
@inproceedings{liu2024scan, title={Open-Vocabulary Segmentation with Semantic-Assisted Calibration},
  author={Liu, Yong and Bai, Sule and Li, Guanbin and Wang, Yitong and Tang, Yansong},
  booktitle={CVPR}, year={2024}}
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: (H, W) maps of label ids, as arrays, tensors, pictures or lists; sizes may differ.
    references: the true maps.
    labels (`list` of `str`): their names in the order of their ids; for `compute`.
    parents (`dict` of `str` to `list` of `str`): label → its parents or synonyms among the labels.
    stuff_labels (`list` of `str`): those that are stuff; the others are things.
    unseen_labels (`list` of `str`): those that training never showed.
    ignore_index (`int`): true pixels that do not count, and predicted pixels without a label; 255.
    count_false_labels (`bool`): whether a label that is predicted but never true counts as 0 in SG-IoU; True.
    per_class (`bool`): add `per_class`, the IoU and SG-IoU of each label.

Returns:
    SG-IoU, SG-IoU_seen, hSG-IoU and so on, and all of mean_iou, in [0, 1].

Examples:
    >>> import evaluate, numpy as np
    >>> from zsseg.metrics.evaluate_modules import locate_evaluate_module
    >>> module = evaluate.load(locate_evaluate_module("semantic_guided_iou"))
    >>> module.add(prediction=np.array([[0, 0, 0, 1]]), reference=np.array([[0, 0, 1, 1]]))
    >>> results = module.compute(labels=["chair", "armchair"], parents={"armchair": ["chair"]})
    >>> round(results["mIoU"], 4), round(results["SG-IoU"], 4)
    (0.5833, 0.8333)
"""


class SemanticGuidedIou(label_pairs.LabelPairMetric):
    """:class:`zsseg.metrics.SemanticGuidedIoU` for ``evaluate``."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=label_pairs.FEATURES,
        )

    def _build(self, vocabulary: Vocabulary, **options: Any) -> metrics.SemanticGuidedIoU:
        if "parents" not in options:
            raise ValueError('name the parents: compute(labels=…, parents={"armchair": ["chair"]})')
        return metrics.SemanticGuidedIoU(vocabulary, **options)

    def _describe_labels(self, metric: metrics.SemanticGuidedIoU) -> dict[str, Any]:
        guided = metric.compute_guided_per_class()
        return {
            name: {"IoU": iou, "SG-IoU": guided[name]} for name, iou in metric.compute_per_class().items()
        }
