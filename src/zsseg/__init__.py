"""Zero-shot panoptic and semantic segmentation by words."""

from zsseg._version import __version__

__all__ = ["__version__"]
