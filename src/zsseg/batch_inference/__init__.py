"""Many pictures on many workers: Ray Data in front, tables of results behind; see docs/batch_inference.md.

Needs the extra ``scale``: ``pip install "zsseg[scale]"``.
"""

from zsseg.batch_inference.ray_engine import segment_dataset, segment_pictures

__all__ = ["segment_dataset", "segment_pictures"]
