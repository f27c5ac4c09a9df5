"""SCAN's image processor; checkpoints store its name."""

from zsseg.processing.image_processing import ZeroShotSegmentationImageProcessorPil


class ScanImageProcessorPil(ZeroShotSegmentationImageProcessorPil):
    """Resize, rescale, normalise and pad on PIL and NumPy; short side 640 by default, as in the paper."""

    size = {"shortest_edge": 640, "longest_edge": 2560}  # noqa: RUF012
