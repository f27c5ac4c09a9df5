"""The roomiest place for a box inside a segment."""

import numpy as np
from numpy.typing import NDArray

MAX_CELLS = 160
"""Longest side of the grid that large segments are searched on."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; the ends are exclusive."""


class InteriorBoxes:
    """Finds axis-parallel boxes that lie completely inside one mask.

    Large masks are searched on a grid of cells; a cell counts as inside only if all of its pixels are, so
    an answer is always right, though a very tight fit may be missed.

    Args:
        mask: (H, W) boolean.
        detail: size in pixels of what will be placed; cells stay below a quarter of it.
    """

    def __init__(self, mask: NDArray[np.bool_], detail: int) -> None:
        cell = max(1, min(-(-max(mask.shape) // MAX_CELLS), detail // 4))
        rows, columns = mask.shape[0] // cell, mask.shape[1] // cell
        self._cell = cell
        cells = mask[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
        inside = np.asarray(cells.all(axis=(1, 3)))
        self._count = np.zeros((rows + 1, columns + 1), dtype=np.int32)
        self._count[1:, 1:] = inside.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
        self._center = _center_of_mass(inside)

    def fit(self, width: int, height: int) -> tuple[int, int] | None:
        """Left upper corner of the place with the widest margin all around, nearest to the centre of mass.

        Args:
            width: of the box in pixels, positive.
            height: of the box in pixels, positive.

        Returns:
            (x, y) so that the mask is true on ``[y : y + height, x : x + width]``, or None if the box fits
            nowhere on the grid.
        """
        columns, rows = -(-width // self._cell), -(-height // self._cell)
        margin = self._widest_margin(columns, rows)
        if margin is None:
            return None
        x, y = self._nearest_to_center(columns + 2 * margin, rows + 2 * margin)
        return (
            (x + margin) * self._cell + (columns * self._cell - width) // 2,
            (y + margin) * self._cell + (rows * self._cell - height) // 2,
        )

    def largest_square(self) -> tuple[int, int, int]:
        """The largest square inside the mask, to the cell.

        Returns:
            (x, y, side): left upper corner and side in pixels; the side is 0 if no cell is inside.
        """
        margin = self._widest_margin(1, 1)
        if margin is None:
            return 0, 0, 0
        cells = 2 * margin + 1
        if self._places(cells + 1, cells + 1).any():
            cells += 1
        x, y = self._nearest_to_center(cells, cells)
        return x * self._cell, y * self._cell, cells * self._cell

    def _widest_margin(self, columns: int, rows: int) -> int | None:
        fits, too_wide = -1, min(self._count.shape)
        while too_wide - fits > 1:
            middle = (fits + too_wide) // 2
            if self._places(columns + 2 * middle, rows + 2 * middle).any():
                fits = middle
            else:
                too_wide = middle
        return None if fits < 0 else fits

    def _nearest_to_center(self, columns: int, rows: int) -> tuple[int, int]:
        y, x = np.nonzero(self._places(columns, rows))
        center_y, center_x = self._center
        best = int(((y + rows / 2 - center_y) ** 2 + (x + columns / 2 - center_x) ** 2).argmin())
        return int(x[best]), int(y[best])

    def _places(self, columns: int, rows: int) -> NDArray[np.bool_]:
        count = self._count
        if rows >= count.shape[0] or columns >= count.shape[1]:
            return np.zeros((0, 0), dtype=np.bool_)
        covered = (
            count[rows:, columns:]
            - count[:-rows, columns:]
            - count[rows:, :-columns]
            + count[:-rows, :-columns]
        )
        return np.asarray(covered == rows * columns)


def overlaps(box: Box, others: NDArray[np.int64]) -> bool:
    """Whether a box shares a pixel with any of ``others`` (N, 4)."""
    x0, y0, x1, y1 = box
    return bool(((others[:, 0] < x1) & (others[:, 2] > x0) & (others[:, 1] < y1) & (others[:, 3] > y0)).any())


def _center_of_mass(inside: NDArray[np.bool_]) -> tuple[float, float]:
    total = max(1, int(np.count_nonzero(inside)))
    rows, columns = inside.sum(axis=1), inside.sum(axis=0)
    center_y = float(rows @ (np.arange(len(rows)) + 0.5)) / total
    center_x = float(columns @ (np.arange(len(columns)) + 0.5)) / total
    return center_y, center_x
