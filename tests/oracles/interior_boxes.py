"""Where a box fits inside a mask, by trying every place."""

import numpy as np


def box_places(mask: np.ndarray, width: int, height: int) -> set[tuple[int, int]]:
    """All (x, y) for which ``mask[y : y + height, x : x + width]`` is true throughout."""
    rows, columns = mask.shape
    places = set()
    for y in range(rows - height + 1):
        for x in range(columns - width + 1):
            if all(mask[y + i, x + j] for i in range(height) for j in range(width)):
                places.add((x, y))
    return places


def largest_square_side(mask: np.ndarray) -> int:
    """Side of the largest square inside a mask, 0 if it is empty."""
    side = 0
    while box_places(mask, side + 1, side + 1):
        side += 1
    return side
