"""COCO's instance masks, polygons and run-length codes, as pixels; equal to COCO's own tools, in NumPy.

Run lengths go down the columns (column-major order) and alternate between outside and inside, starting
outside.

Reference:
    Microsoft COCO, Lin et al. (arXiv:1405.0312), and the mask format of the COCO API.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYGON_OVERSAMPLING = 5
_FIRST_CHARACTER = 48
_VALUE_BITS, _CONTINUES, _SIGN = 0x1F, 0x20, 0x10


def decode_coco_mask(
    segmentation: Sequence[Sequence[float]] | Mapping[str, Any], height: int, width: int
) -> NDArray[np.bool_]:
    """Rasterise the ``segmentation`` field of a COCO annotation.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, …]`` in pixels, their union taken, or
            ``{"counts", "size": [height, width]}`` with counts as numbers or as COCO's compressed string.
        height: H of the picture.
        width: W of the picture.

    Returns:
        (H, W) boolean mask.

    Raises:
        ValueError: if the size differs from the picture's, the runs do not fill it, or a polygon has fewer
            than three points.
    """
    if isinstance(segmentation, Mapping):
        return _decode_runs(segmentation, height, width)
    if isinstance(segmentation, str) or not isinstance(segmentation, Sequence):
        raise ValueError(
            "a COCO segmentation must be a list of polygons or {'counts', 'size'}, "
            f"got {type(segmentation).__name__}"
        )
    mask = np.zeros((height, width), dtype=np.bool_)
    for polygon in segmentation:
        mask |= fill_polygon(polygon, height, width)
    return mask


def fill_polygon(polygon: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """Fill one polygon as COCO does.

    The outline is drawn on a grid five times finer; where it crosses the centre of a pixel column, the column
    switches between outside and inside.

    Args:
        polygon: ``[x0, y0, x1, y1, …]`` in pixels, at least three points.
        height: H.
        width: W.

    Returns:
        (H, W) boolean mask.

    Raises:
        ValueError: if the polygon has fewer than three points or an odd number of coordinates.
    """
    coordinates = np.asarray(polygon, dtype=np.float64)
    if coordinates.ndim != 1 or len(coordinates) < 6 or len(coordinates) % 2:
        raise ValueError(
            "a polygon must be [x0, y0, x1, y1, x2, y2, …] with three points or more, "
            f"got {coordinates.size} coordinates"
        )
    points = (coordinates.reshape(-1, 2) * _POLYGON_OVERSAMPLING + 0.5).astype(np.int64)
    x, y = _draw_outline(points)
    is_step = x[1:] != x[:-1]
    # The finer column that a step belongs to is the left one; the row is the upper of the two.
    column = _to_pixels(np.where(x[1:] < x[:-1], x[1:], x[1:] - 1)[is_step])
    row = np.ceil(np.clip(_to_pixels(np.minimum(y[1:], y[:-1])[is_step]), 0, height)).astype(np.int64)
    crosses_centre = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    switches = column[crosses_centre].astype(np.int64) * height + row[crosses_centre]
    return _fill_runs(np.diff(np.sort(switches), prepend=0, append=height * width), height, width)


def _to_pixels(fine: NDArray[np.int64]) -> NDArray[np.float64]:
    return (fine + 0.5) / _POLYGON_OVERSAMPLING - 0.5


def _draw_outline(points: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every fine grid point along the closed outline of (n, 2) points, in its order: (x, y)."""
    start, end = points, np.roll(points, -1, axis=0)
    lengths = np.abs(end - start)
    is_flat = lengths[:, 0] >= lengths[:, 1]
    steps = lengths.max(axis=1)
    # Rounding depends on the direction, so an edge is always computed along its longer axis, ascending.
    is_reversed = np.where(is_flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])
    low = np.where(is_reversed[:, None], end, start)
    high = np.where(is_reversed[:, None], start, end)
    slope = (high - low) / np.maximum(steps, 1)[:, None]
    edge = np.repeat(np.arange(len(points)), steps + 1)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    along = np.where(is_reversed[edge], steps[edge] - along, along)
    major = low[edge, np.where(is_flat, 0, 1)[edge]] + along
    minor_axis = np.where(is_flat, 1, 0)[edge]
    minor = (low[edge, minor_axis] + slope[edge, minor_axis] * along + 0.5).astype(np.int64)
    return np.where(is_flat[edge], major, minor), np.where(is_flat[edge], minor, major)


def _decode_runs(segmentation: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, counts = list(segmentation.get("size", ())), segmentation.get("counts", ())
    if size != [height, width]:
        raise ValueError(
            f"run-length code is for [height, width] {size}, but the picture is {[height, width]}"
        )
    if isinstance(counts, str | bytes):
        counts = _decode_count_string(counts)
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.ndim != 1 or lengths.sum() != height * width or (lengths < 0).any():
        raise ValueError(
            f"run lengths must be 0 or more and sum to {height * width} pixels, got a sum of {lengths.sum()}"
        )
    return _fill_runs(lengths, height, width)


def _fill_runs(lengths: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    is_inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_inside, lengths).reshape(width, height).T


def _decode_count_string(text: str | bytes) -> list[int]:
    """COCO's compressed counts: five bits a character, low ones first; from the fourth, differences."""
    codes = text.encode("ascii") if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - _FIRST_CHARACTER
        value |= (bits & _VALUE_BITS) << shift
        shift += 5
        if bits & _CONTINUES:
            continue
        if bits & _SIGN:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end in the middle of a number; copy the annotation again")
    return counts
