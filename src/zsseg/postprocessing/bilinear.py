"""Where the pixels of a resized map fall on the grid it is interpolated from.

One convention for every post-processing step: pixel centres (``align_corners=False``), coordinates clamped to
the grid, first along the row, then between rows, in float64. Whoever follows the order written here gets
the same bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SamplingAxis:
    """One axis of a bilinear resize from a grid of samples to pixels.

    A *cell* is the gap between two neighbouring samples; two more lie beyond the first and the last sample,
    where the value is constant. Cells are numbered from the first one that the axis touches.

    Attributes:
        coordinate: (pixels,) float64, grid coordinate of each pixel before clamping.
        cell: (pixels,) int64, the cell of each pixel, ascending.
        lower: (cells,) int64, the grid sample on the low side of each cell.
        upper: (cells,) int64, the grid sample on the high side.
        weight: (pixels,) float64 in [0, 1), the share of the upper sample.
        start: (cells + 1,) int64, the first pixel of each cell; a cell may hold none.
    """

    coordinate: NDArray[np.float64]
    cell: NDArray[np.int64]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]
    start: NDArray[np.int64]

    @property
    def pixel_counts(self) -> NDArray[np.int64]:
        """(cells,) pixels in each cell."""
        return np.diff(self.start)


def build_sampling_axis(samples: int, pixels: int, valid_fraction: float = 1.0) -> SamplingAxis:
    """Place ``pixels`` on the first ``valid_fraction`` of a grid of ``samples``.

    Pixel i lies at ((i + 0.5) · valid_fraction · samples / pixels) − 0.5.

    Example:
        >>> axis = build_sampling_axis(2, 4)
        >>> axis.coordinate.tolist(), axis.cell.tolist(), axis.weight.tolist()
        ([-0.25, 0.25, 0.75, 1.25], [0, 1, 1, 2], [0.75, 0.25, 0.75, 0.25])
    """
    coordinate = (np.arange(pixels) + 0.5) * valid_fraction * samples / pixels - 0.5
    floor = np.floor(coordinate).astype(np.int64)
    first, last = int(floor[0]), int(floor[-1])
    cells = np.arange(first, last + 1)
    return SamplingAxis(
        coordinate=coordinate,
        cell=floor - first,
        lower=np.clip(cells, 0, samples - 1),
        upper=np.clip(cells + 1, 0, samples - 1),
        weight=coordinate - floor,
        start=np.searchsorted(floor, np.arange(first, last + 2)),
    )


def interpolate(
    samples: NDArray[np.float32],
    rows: SamplingAxis,
    columns: SamplingAxis,
    part: tuple[slice, slice | NDArray[np.intp]],
) -> NDArray[np.float64]:
    """Interpolate some rows and columns of the pixels.

    Args:
        samples: (…, h, w).
        rows: sampling of the pixel rows on h.
        columns: sampling of the pixel columns on w.
        part: the n rows and m columns wanted.

    Returns:
        (…, n, m).
    """
    row_cell, column_cell = rows.cell[part[0]], columns.cell[part[1]]
    top, bottom = rows.lower[row_cell], rows.upper[row_cell]
    first = top[0]
    band = samples[..., first : bottom[-1] + 1, :]
    left = band[..., columns.lower[column_cell]].astype(np.float64)
    widened = band[..., columns.upper[column_cell]] - left
    widened *= columns.weight[part[1]]
    widened += left
    result: NDArray[np.float64] = widened[..., bottom - first, :]
    upper = widened[..., top - first, :]
    result -= upper
    result *= rows.weight[part[0], None]
    result += upper
    return result
