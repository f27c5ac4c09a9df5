"""Where each segment lies: a compact index map, boxes and contours, counted along rows of equal ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsseg.structures import VOID_ID


@dataclass(frozen=True, eq=False)
class SegmentRegions:
    """A panoptic map by position in the list of segments instead of by id.

    Attributes:
        index: (H, W) int32; 0 is void, i + 1 is ``segments[i]``.
        boxes: (S, 4) x0, y0, x1, y1 in pixels, the ends exclusive; counted, not taken from the list.
        has_void: whether any pixel is void.
    """

    index: NDArray[np.int32]
    boxes: NDArray[np.int64]
    has_void: bool

    @classmethod
    def from_ids(cls, segment_ids: NDArray[np.int32], listed_ids: Sequence[int]) -> "SegmentRegions":
        """Find the regions.

        Args:
            segment_ids: (H, W), 0 is void.
            listed_ids: the S ids of the list, in its order.

        Raises:
            ValueError: if there are no pixels, a pixel's id is not listed or a listed segment has no pixel.
        """
        if segment_ids.size == 0:
            raise ValueError(f"a map must have at least one pixel, got shape {segment_ids.shape}")
        height, width = segment_ids.shape
        ids = segment_ids.ravel()
        is_start = np.empty(ids.size, dtype=np.bool_)
        np.not_equal(ids[1:], ids[:-1], out=is_start[1:])
        is_start[::width] = True
        starts = np.flatnonzero(is_start)
        lengths = np.diff(starts, append=ids.size)
        positions = _positions(listed_ids, ids[starts])

        index = np.repeat(positions, lengths).reshape(height, width)
        x0, rows = starts % width, starts // width
        count = len(listed_ids) + 1
        boxes = np.array([[width, height, 0, 0]] * count, dtype=np.int64)
        np.minimum.at(boxes[:, 0], positions, x0)
        np.minimum.at(boxes[:, 1], positions, rows)
        np.maximum.at(boxes[:, 2], positions, x0 + lengths)
        np.maximum.at(boxes[:, 3], positions, rows + 1)
        if absent := [i for i, box in zip(listed_ids, boxes[1:], strict=True) if box[2] == 0]:
            raise ValueError(f"segments without a pixel: {absent[:10]}; drop them from the list")
        return cls(index, boxes[1:], has_void=bool((positions == 0).any()))

    def mask(self, position: int) -> NDArray[np.bool_]:
        """Mask of ``segments[position]`` within its box, (y1 - y0, x1 - x0)."""
        x0, y0, x1, y1 = self.boxes[position]
        return self.index[y0:y1, x0:x1] == position + 1


def contour_mask(index: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Pixels on the border between two regions, at least ``width`` pixels thick.

    Args:
        index: (H, W) region of each pixel.
        width: thickness in pixels, from 1; even widths lie evenly on both sides.

    Returns:
        (H, W) boolean.
    """
    edge = np.zeros(index.shape, dtype=np.bool_)
    for axis in (0, 1):
        change = index[1:] != index[:-1] if axis == 0 else index[:, 1:] != index[:, :-1]
        # the border lies between pixel i and i + 1; paint i + 1 - width//2 … i + (width + 1)//2
        for offset in range(1 - (width // 2), 1 + (width + 1) // 2):
            _paint_shifted(edge, change, offset, axis)
    return edge


def _paint_shifted(target: NDArray[np.bool_], change: NDArray[np.bool_], offset: int, axis: int) -> None:
    size = target.shape[axis]
    first, last = max(0, offset), min(size, size - 1 + offset)
    if first >= last:
        return
    into = [slice(None), slice(None)]
    source = [slice(None), slice(None)]
    into[axis] = slice(first, last)
    source[axis] = slice(first - offset, last - offset)
    target[tuple(into)] |= change[tuple(source)]


def _positions(listed_ids: Sequence[int], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    listed = np.array([VOID_ID, *listed_ids], dtype=np.int64)
    order = np.argsort(listed)
    found = np.searchsorted(listed[order], ids).clip(max=len(listed) - 1)
    positions = order[found].astype(np.int32)
    if (unlisted := ids[listed[positions] != ids]).size:
        raise ValueError(
            f"pixels carry ids that no segment lists: {np.unique(unlisted)[:10].tolist()}; list them or "
            f"set those pixels to {VOID_ID} (void)"
        )
    return positions
