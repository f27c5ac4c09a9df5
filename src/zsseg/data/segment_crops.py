"""Pictures as a CLIP takes them: one segment by itself, or the whole, square and of one size."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.structures import SegmentInfo

CropMode = Literal["box", "frame"]
Color = tuple[int, int, int]


def crop_segment(
    pixels: NDArray[np.uint8],
    segment_ids: NDArray[np.int32],
    segment: SegmentInfo,
    *,
    size: int,
    fill_color: Color,
    mode: CropMode = "box",
) -> NDArray[np.uint8]:
    """Show one segment on plain ground, everything else masked out.

    Args:
        pixels: (H, W, 3) RGB, 8 bits.
        segment_ids: (H, W) int32.
        segment: one of the map's, with its box.
        size: height and width of the result in pixels.
        fill_color: RGB, 8 bits, of what is masked out: CLIP's mean, which is zero after normalisation.
        mode: "box" shows the segment large, in a square around its box; "frame" where it is in the picture,
            with plain ground added above and below, or left and right, to make a square.

    Returns:
        (size, size, 3) RGB, 8 bits, resized bilinearly.

    Raises:
        ValueError: if the mode is another.

    Reference:
        The masked image of CONCAT (arXiv:2402.13697); how it is cropped and filled is a choice of ours.
    """
    if mode not in get_args(CropMode):
        raise ValueError(f"mode must be one of {list(get_args(CropMode))}, got {mode!r}")
    height, width = segment_ids.shape
    left, top, width, height = segment.bbox if mode == "box" else (0, 0, width, height)
    window = slice(top, top + height), slice(left, left + width)
    is_segment = segment_ids[window][..., None] == segment.id
    masked = np.where(is_segment, pixels[window], np.array(fill_color, dtype=np.uint8))
    return crop_whole(masked, size=size, fill_color=fill_color)


def crop_whole(pixels: NDArray[np.uint8], *, size: int, fill_color: Color) -> NDArray[np.uint8]:
    """Show a whole picture: plain ground makes it square, so that nothing is cut off or distorted.

    Args:
        pixels: (H, W, 3) RGB, 8 bits.
        size: height and width of the result in pixels.
        fill_color: RGB, 8 bits, of the ground.

    Returns:
        (size, size, 3) RGB, 8 bits, resized bilinearly.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), fill_color, dtype=np.uint8)
    square[top : top + height, left : left + width] = pixels
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
