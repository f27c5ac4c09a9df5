"""Metrics as sums by label: panoptic quality, its file form, and mean IoU. NumPy only."""

from zsseg.metrics.coco_panoptic_evaluation import coco_panoptic_quality, evaluate_coco_panoptic
from zsseg.metrics.harmonic import harmonic_mean
from zsseg.metrics.mean_iou import MeanIoU
from zsseg.metrics.panoptic_quality import PanopticQuality

__all__ = [
    "MeanIoU",
    "PanopticQuality",
    "coco_panoptic_quality",
    "evaluate_coco_panoptic",
    "harmonic_mean",
]
