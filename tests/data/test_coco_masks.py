import json
from pathlib import Path

import numpy as np
import pytest

from zsseg.data.coco_masks import decode_coco_mask, fill_polygon

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "coco_masks.json").read_text("utf-8"))["cases"]


def from_counts(counts, height, width):
    """Run lengths down the columns, one pixel at a time."""
    pixels = [inside for i, count in enumerate(counts) for inside in [i % 2 == 1] * count]
    mask = np.zeros((height, width), dtype=bool)
    for position, inside in enumerate(pixels):
        mask[position % height, position // height] = inside
    return mask


@pytest.mark.parametrize("case", GOLDEN)
def test_masks_equal_those_of_cocos_own_tools(case):
    height, width = case["size"]
    expected = from_counts(case["counts"], height, width)
    for segmentation in (
        case["polygons"],
        {"size": [height, width], "counts": case["counts"]},
        {"size": [height, width], "counts": case["compressed"]},
        {"size": [height, width], "counts": case["compressed"].encode()},
    ):
        np.testing.assert_array_equal(decode_coco_mask(segmentation, height, width), expected)


def test_no_polygon_is_an_empty_mask():
    assert not decode_coco_mask([], 3, 4).any()


def test_rectangle_on_pixel_borders():
    mask = fill_polygon([1, 1, 4, 1, 4, 3, 1, 3], 5, 6)
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 1]], "three points or more, got 4 coordinates"),
        ([[0, 0, 1, 1, 2, 2, 3]], "got 7 coordinates"),
        ([0, 0, 1, 1, 2, 2], "three points or more"),
        ("abc", "list of polygons or .* got str"),
        (None, "got NoneType"),
        ({"size": [3, 2], "counts": [6]}, r"is for \[height, width\] \[3, 2\], but the picture is \[2, 3\]"),
        ({"size": [2, 3], "counts": [5]}, "sum to 6 pixels, got a sum of 5"),
        ({"size": [2, 3], "counts": [7, -1]}, "must be 0 or more"),
        ({"size": [2, 3], "counts": "P"}, "end in the middle of a number"),
    ],
)
def test_broken_masks(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_coco_mask(segmentation, 2, 3)
