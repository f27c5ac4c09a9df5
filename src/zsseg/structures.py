"""The one result type: a map of segment ids and what each segment is.

Void is 0 everywhere. Predictions number their segments 1..S without gaps; ground truth keeps the ids of its
file.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VOID_ID = 0


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment of a panoptic map.

    Attributes:
        id: value of the segment's pixels in the map, positive.
        label_id: contiguous index of the label in the vocabulary in use, from 0.
        isthing: whether the label is countable (a thing) or not (stuff).
        area: number of pixels, positive.
        bbox: (x, y, width, height) in pixels, the smallest box around the segment.
        score: confidence in [0, 1]; None for ground truth.
        iscrowd: ground truth only: a group of things nobody separated.
        label: the label's text, where it is known.
    """

    id: int
    label_id: int
    isthing: bool
    area: int
    bbox: tuple[int, int, int, int]
    score: float | None = None
    iscrowd: bool = False
    label: str | None = None

    def __post_init__(self) -> None:
        if self.id <= VOID_ID:
            raise ValueError(f"a segment id must be positive ({VOID_ID} is void), got {self.id}")
        if self.label_id < 0:
            raise ValueError(f"segment {self.id}: label_id must be 0 or more, got {self.label_id}")
        if self.area <= 0:
            raise ValueError(
                f"segment {self.id}: area must be positive, got {self.area}; drop empty segments"
            )
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"segment {self.id}: score must lie in [0, 1], got {self.score}")


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """A non-overlapping map of segments: what models produce, readers read and metrics compare.

    Attributes:
        segment_ids: (H, W) int32; 0 is void, every other value is the id of exactly one segment.
        segments: the segments, ids unique.

    Raises:
        TypeError: if the map is no NumPy array.
        ValueError: if the map is not two-dimensional int32 or ids repeat. :meth:`check_pixels` compares
            the pixels with the list; readers of foreign files call it, the merge need not.
    """

    segment_ids: NDArray[np.int32]
    segments: tuple[SegmentInfo, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.segment_ids, np.ndarray):
            raise TypeError(
                f"segment_ids must be a NumPy array, got {type(self.segment_ids).__name__}: "
                "convert it with np.asarray(…, dtype=np.int32)"
            )
        if self.segment_ids.ndim != 2 or self.segment_ids.dtype != np.int32:
            raise ValueError(
                "segment_ids must be an (H, W) int32 array, "
                f"got shape {self.segment_ids.shape} and dtype {self.segment_ids.dtype}"
            )
        object.__setattr__(self, "segments", tuple(self.segments))
        ids = [segment.id for segment in self.segments]
        if len(set(ids)) != len(ids):
            repeated = sorted({segment_id for segment_id in ids if ids.count(segment_id) > 1})
            raise ValueError(f"segment ids must be unique, but {repeated} are listed more than once")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.segment_ids.shape
        return height, width

    def mask(self, segment_id: int) -> NDArray[np.bool_]:
        """(H, W) boolean mask of one segment."""
        return self.segment_ids == segment_id

    def check_pixels(self) -> None:
        """Compare the pixels with the list of segments.

        Raises:
            ValueError: if a pixel's id is not listed, a listed segment has no pixel, or an area is not the
                number of its pixels.
        """
        ids, areas = np.unique(self.segment_ids, return_counts=True)
        counted = {int(i): int(a) for i, a in zip(ids, areas, strict=True) if i != VOID_ID}
        listed = {segment.id: segment.area for segment in self.segments}
        if unlisted := sorted(counted.keys() - listed.keys()):
            raise ValueError(f"pixels carry ids that no segment lists: {unlisted[:10]}")
        if absent := sorted(listed.keys() - counted.keys()):
            raise ValueError(f"segments without a pixel: {absent[:10]}")
        if wrong := [(i, listed[i], counted[i]) for i in counted if listed[i] != counted[i]]:
            raise ValueError(f"areas differ from the pixels counted (id, listed, counted): {wrong[:10]}")
