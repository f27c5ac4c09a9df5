"""CONCAT's image processor on torchvision; imported only where torchvision is installed."""

from zsseg.processing.image_processing_torchvision import ZeroShotSegmentationImageProcessor


class ConcatImageProcessor(ZeroShotSegmentationImageProcessor):
    """Resize, rescale, normalise and pad on torchvision."""
