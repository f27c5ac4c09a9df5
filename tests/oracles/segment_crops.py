"""A masked picture before it is resized, pixel by pixel."""

import numpy as np


def masked_square(pixels, segment_ids, segment_id, fill_color, mode):
    """The square whose middle is the segment's box, or the picture; all but the segment's pixels filled."""
    rows, columns = np.nonzero(segment_ids == segment_id)
    if mode == "box":
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    else:
        top, left, (bottom, right) = 0, 0, segment_ids.shape
    side = max(bottom - top, right - left)
    margin_above, margin_left = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square = np.zeros((side, side, 3), np.uint8)
    for row in range(side):
        for column in range(side):
            y, x = row - margin_above + top, column - margin_left + left
            is_inside = 0 <= y < segment_ids.shape[0] and 0 <= x < segment_ids.shape[1]
            is_segment = is_inside and segment_ids[y, x] == segment_id
            square[row, column] = pixels[y, x] if is_segment else fill_color
    return square
