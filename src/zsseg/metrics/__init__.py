"""Metrics as sums by label: panoptic quality, its file form, mean IoU and SG-IoU. NumPy only."""

from zsseg.metrics.coco_panoptic_evaluation import coco_panoptic_quality, evaluate_coco_panoptic
from zsseg.metrics.harmonic import harmonic_mean
from zsseg.metrics.label_parents import read_parents
from zsseg.metrics.mean_iou import MeanIoU
from zsseg.metrics.panoptic_quality import PanopticQuality
from zsseg.metrics.semantic_guided_iou import SemanticGuidedIoU

__all__ = [
    "MeanIoU",
    "PanopticQuality",
    "SemanticGuidedIoU",
    "coco_panoptic_quality",
    "evaluate_coco_panoptic",
    "harmonic_mean",
    "read_parents",
]
