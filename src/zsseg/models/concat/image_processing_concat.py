"""CONCAT's image processors: the shared ones under the names that checkpoints store."""

from zsseg.processing.image_processing import ZeroShotSegmentationImageProcessorPil


class ConcatImageProcessorPil(ZeroShotSegmentationImageProcessorPil):
    """Resize, rescale, normalise and pad on PIL and NumPy."""
