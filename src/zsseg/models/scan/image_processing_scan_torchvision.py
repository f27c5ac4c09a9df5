"""SCAN's image processor on torchvision; imported only where torchvision is installed."""

from zsseg.processing.image_processing_torchvision import ZeroShotSegmentationImageProcessor


class ScanImageProcessor(ZeroShotSegmentationImageProcessor):
    """Resize, rescale, normalise and pad on torchvision; short side 640 by default, as in the paper."""

    size = {"shortest_edge": 640, "longest_edge": 2560}  # noqa: RUF012
