import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.visualization import draw_comparison, draw_panoptic, draw_semantic
from zsseg.visualization.colors import ColorScheme
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(
    ["road", "car", "tree", "person"], stuff_labels=["road", "tree"], unseen_labels=["tree"]
)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def segmentation_of(ids, label_ids, vocabulary=VOCABULARY, score=0.9):
    """Segment i of the map has label ``label_ids[i - 1]``."""
    ids = np.asarray(ids, dtype=np.int32)
    segments = tuple(
        SegmentInfo(i, label_id, vocabulary[label_id].is_thing, int((ids == i).sum()), (0, 0, 1, 1), score)
        for i, label_id in enumerate(label_ids, start=1)
    )
    return PanopticSegmentation(ids, segments)


def grid(rows, columns, height, width):
    y, x = np.arange(height) * rows // height, np.arange(width) * columns // width
    return y[:, None] * columns + x + 1


def expected_blend(pixel, color, alpha):
    pixel, color = np.asarray(pixel, dtype=float), np.asarray(color, dtype=float)
    grey = pixel @ (0.299, 0.587, 0.114)
    return (1 - alpha) * ((1 - alpha) * pixel + alpha * grey) + alpha * color


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.55, 1.0])
def test_inside_a_segment_the_picture_is_blended_with_its_color(alpha):
    image = picture(200, 120)
    result = draw_panoptic(
        image, segmentation_of(grid(1, 2, 120, 200), [0, 1]), VOCABULARY, alpha=alpha, legend=False
    )
    assert result.mode == "RGB"
    assert result.size == image.size
    scheme = ColorScheme(VOCABULARY, [0, 1])
    for x, label_id in ((3, 0), (195, 1)):
        for y in range(3, 30):
            expected = expected_blend(image.getpixel((x, y)), scheme.color(label_id), alpha)
            assert np.abs(np.array(result.getpixel((x, y))) - expected).max() <= 3


def test_void_is_grey_darker_and_hatched():
    image = Image.new("RGB", (120, 80), (220, 120, 40))
    pixels = np.array(
        draw_panoptic(image, segmentation_of(np.zeros((80, 120)), []), VOCABULARY, legend=False)
    )
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 1] == pixels[..., 2]).all()
    values, counts = np.unique(pixels[..., 0], return_counts=True)
    brightness = 0.299 * 220 + 0.587 * 120 + 0.114 * 40
    assert len(values) == 2
    assert values.max() < brightness
    assert counts[values.argmin()] > 3 * counts[values.argmax()]


def test_the_hatching_runs_on_where_strips_of_a_tall_picture_meet():
    image = Image.new("RGB", (64, 600), (200, 200, 200))
    pixels = np.array(
        draw_panoptic(image, segmentation_of(np.zeros((600, 64)), []), VOCABULARY, legend=False)
    )
    assert np.array_equal(pixels[1:, :-1], pixels[:-1, 1:])


def test_borders_between_segments_have_their_solid_colors():
    image = picture(100, 60)
    result = draw_panoptic(image, segmentation_of(grid(1, 2, 60, 100), [0, 1]), VOCABULARY, legend=False)
    scheme = ColorScheme(VOCABULARY, [0, 1])
    assert result.getpixel((49, 2)) == scheme.color(0)
    assert result.getpixel((50, 2)) == scheme.color(1)


def test_instances_of_a_label_have_colors_of_their_own():
    image = Image.new("RGB", (600, 60))
    result = draw_panoptic(image, segmentation_of(grid(1, 8, 60, 600), [1] * 8), VOCABULARY, legend=False)
    assert len({result.getpixel((i * 75 + 8, 5)) for i in range(8)}) == 8


def test_the_legend_below_lists_every_label_and_leaves_the_picture_alone():
    image = picture(480, 360)
    segmentation = segmentation_of(grid(2, 2, 360, 480), [0, 1, 2, 3])
    bare = draw_panoptic(image, segmentation, VOCABULARY, legend=False)
    full = draw_panoptic(image, segmentation, VOCABULARY)
    assert full.width == 480
    assert full.height > 360
    assert np.array_equal(np.array(full)[:360], np.array(bare))
    shown = {color for _, color in full.crop((0, 360, *full.size)).getcolors(480 * 360)}
    scheme = ColorScheme(VOCABULARY, range(4))
    assert {scheme.color(i) for i in range(4)} <= shown


@pytest.mark.parametrize(("width", "has_number"), [(300, False), (20, True)])
def test_the_legend_explains_numbers_where_the_picture_shows_them(width, has_number):
    ids = np.zeros((200, 300))
    ids[:, :width] = 1
    full = draw_panoptic(Image.new("RGB", (300, 200)), segmentation_of(ids, [1]), VOCABULARY)
    legend = np.array(full)[200:]
    color = ColorScheme(VOCABULARY, [1]).color(1)
    rows, columns = np.nonzero((legend == color).all(axis=2))
    before_the_patch = legend[rows.min() : rows.max(), : columns.min()]
    assert bool((before_the_patch < 100).any()) == has_number


def test_unseen_labels_are_marked_in_picture_and_legend():
    image = Image.new("RGB", (300, 200))
    segmentation = segmentation_of(np.ones((200, 300)), [2])
    seen = Vocabulary.from_labels(VOCABULARY.names, stuff_labels=["road", "tree"])
    marked = np.array(draw_panoptic(image, segmentation, VOCABULARY))
    unmarked = np.array(draw_panoptic(image, segmentation, seen))
    assert not np.array_equal(marked[:200], unmarked[:200])
    assert not np.array_equal(marked[200:220], unmarked[200:220])


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (300, 1), (17, 9), (40, 30)])
def test_tiny_pictures_are_drawn(size):
    width, height = size
    ones = segmentation_of(np.ones((height, width)), [2])
    void = segmentation_of(np.zeros((height, width)), [])
    for segmentation in (ones, void):
        assert draw_panoptic(picture(*size), segmentation, VOCABULARY, legend=False).size == size
        result = draw_panoptic(picture(*size), segmentation, VOCABULARY)
        assert result.height > height
        assert draw_comparison(picture(*size), segmentation, ones, VOCABULARY).width >= 3 * width


def test_three_hundred_segments_are_drawn_each_in_its_color():
    image = Image.new("RGB", (480, 360))
    result = draw_panoptic(
        image, segmentation_of(grid(15, 20, 360, 480), [1] * 300), VOCABULARY, legend=False
    )
    corners = {result.getpixel((x * 24 + 2, y * 24 + 2)) for x in range(20) for y in range(15)}
    assert len(corners) > 250


def test_labels_in_any_script_and_of_any_length_are_drawn():
    names = ["🚗", "一二三四五六七八九十", "Straße", "word " * 40, "a\nb", "\u200d", "👩‍🚀 astronaut"]
    vocabulary = Vocabulary.from_labels(names)
    segmentation = segmentation_of(grid(2, 4, 200, 400) * (grid(2, 4, 200, 400) <= 7), range(7), vocabulary)
    with pytest.warns(UserWarning, match="2 labels"):
        result = draw_panoptic(picture(400, 200), segmentation, vocabulary)
    assert result.width == 400


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_eight_bits_in_any_mode_are_drawn(mode):
    image = picture(60, 40).convert(mode)
    result = draw_panoptic(
        image, segmentation_of(np.ones((40, 60)), [1]), VOCABULARY, alpha=0.0, legend=False
    )
    assert result.getpixel((5, 5)) == pytest.approx(image.convert("RGB").getpixel((5, 5)), abs=1)


def test_a_semantic_map_is_drawn_with_the_colors_of_its_labels():
    image = picture(200, 120)
    label_map = np.zeros((120, 200), dtype=np.uint8)
    label_map[:, 100:] = 2
    label_map[60:, :] = 255
    result = draw_semantic(image, label_map, VOCABULARY)
    scheme = ColorScheme(VOCABULARY, [0, 2])
    for x, label_id in ((3, 0), (195, 2)):
        expected = expected_blend(image.getpixel((x, 3)), scheme.color(label_id), 0.55)
        assert np.abs(np.array(result.getpixel((x, 3))) - expected).max() <= 3
    red, green, blue = result.getpixel((3, 115))
    assert red == green == blue
    assert np.array_equal(
        np.array(result)[:120], np.array(draw_semantic(image, label_map, VOCABULARY, legend=False))
    )


def test_a_comparison_shows_picture_prediction_and_truth_in_one_color_scheme():
    image = Image.new("RGB", (300, 150), (90, 90, 90))
    truth = segmentation_of(grid(1, 3, 150, 300), [0, 1, 3], score=None)
    guess = segmentation_of(grid(1, 3, 150, 300), [1, 1, 0])
    pixels = np.array(draw_comparison(image, guess, truth, VOCABULARY))
    header = next(y for y in range(pixels.shape[0]) if (pixels[y, 2] == 90).all())
    pitch = (pixels.shape[1] - 300) // 2
    y = header + 4
    assert (pixels[y, :300] == 90).all()
    prediction, target = pixels[y, pitch : pitch + 300], pixels[y, 2 * pitch : 2 * pitch + 300]
    assert np.array_equal(prediction[250], target[50])  # road
    assert np.array_equal(prediction[150], target[150])  # the car that was found
    assert not np.array_equal(prediction[50], target[150])  # the car that is none has a shade of its own
    swapped = np.array(draw_comparison(image, truth, guess, VOCABULARY))
    assert swapped.shape == pixels.shape


def test_without_ground_truth_picture_and_prediction_stand_alone():
    image = Image.new("RGB", (300, 150), (90, 90, 90))
    guess = segmentation_of(grid(1, 3, 150, 300), [1, 1, 0])
    pixels = np.array(draw_comparison(image, guess, None, VOCABULARY))
    assert 600 < pixels.shape[1] < 620
    header = next(y for y in range(pixels.shape[0]) if (pixels[y, 2] == 90).all())
    prediction = np.array(draw_panoptic(image, guess, VOCABULARY))[:150]
    assert np.array_equal(pixels[header : header + 150, -300:], prediction)


def test_semantic_maps_can_be_compared():
    image = picture(120, 80)
    label_map = np.full((80, 120), 1, dtype=np.int64)
    pixels = np.array(draw_comparison(image, label_map, label_map, VOCABULARY))
    pitch = (pixels.shape[1] - 120) // 2
    height = 80 + 12
    assert np.array_equal(
        pixels[:height, pitch + 1 : pitch + 119][20:], pixels[:height, 2 * pitch + 1 : 2 * pitch + 119][20:]
    )


def test_drawing_twice_gives_the_same_picture_and_leaves_the_input_alone():
    image = picture(160, 120)
    before = np.array(image)
    segmentation = segmentation_of(grid(2, 2, 120, 160), [0, 1, 2, 3])
    first, second = (np.array(draw_panoptic(image, segmentation, VOCABULARY)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(np.array(image), before)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (picture(30, 20), {}, r"one size, got \(30, 20\) and \(20, 30\)"),
        (picture(20, 30), {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        (Image.fromarray(np.zeros((30, 20), dtype=np.uint16)), {}, "eight bits a channel, got mode 'I;16'"),
        (Image.new("F", (20, 30)), {}, "got mode 'F'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_panoptic(image, segmentation_of(np.ones((30, 20)), [1]), VOCABULARY, **arguments)


@pytest.mark.real_data
@pytest.mark.skipif(
    "ZSSEG_REAL_DATA" not in os.environ, reason="ZSSEG_REAL_DATA names no folder of photographs"
)
def test_photographs_with_ground_truth_are_drawn():
    folder = Path(os.environ["ZSSEG_REAL_DATA"]) / "camvid" / "val"
    vocabulary = Vocabulary.from_labels([f"label {i}" for i in range(11)])
    for path in sorted((folder / "images").iterdir())[:3]:
        image = Image.open(path)
        label_map = np.array(Image.open(folder / "labels" / f"{path.stem}.png"))
        result = draw_comparison(image, label_map, label_map, vocabulary)
        pitch = (result.width - image.width) // 2
        assert np.array_equal(
            np.array(result)[40:300, pitch : pitch + 480],
            np.array(result)[40:300, 2 * pitch : 2 * pitch + 480],
        )
