from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsseg.data.examples import PanopticExample, SegmentLabel, build_target
from zsseg.data.transforms import (
    IMAGENET_MEAN_COLOUR,
    ColorJitter,
    Compose,
    LargeScaleJitter,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    SsdColorJitter,
)
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["a", "b", "c", "d"], stuff_labels=["a"])


def make_example(height, width, seed=0):
    """A picture whose colours say what its map says, in blocks of 4 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 5, (-(-height // 4), -(-width // 4)))
    segment_ids = np.kron(blocks, np.ones((4, 4), int))[:height, :width].astype(np.int32)
    labels = {i: SegmentLabel(i - 1) for i in range(1, 5)}
    image = Image.fromarray(np.stack([segment_ids * 60] * 3, axis=2).astype(np.uint8))
    return PanopticExample(image, build_target(segment_ids, labels, VOCABULARY), 1, "a.png")


def rng(seed=0):
    return np.random.default_rng(seed)


TRANSFORMS = [
    LargeScaleJitter((24, 20)),
    LargeScaleJitter((9, 40), min_scale=1.5, max_scale=3.0),
    RandomCrop((7, 30)),
    RandomHorizontalFlip(),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    Resize(size=(13, 8)),
    Resize(shortest_edge=(8, 16, 24), longest_edge=30),
    Compose([Resize(shortest_edge=20), RandomCrop((12, 12)), RandomHorizontalFlip()]),
    SsdColorJitter(),
    Compose([RandomCrop((16, 9)), Pad((20, 12))]),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@settings(max_examples=15)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_results_hold_together_and_follow_the_generator(transform, height, width, seed):
    example = make_example(height, width, seed)
    pixels = np.asarray(example.image).copy()
    first, again = transform(example, rng(seed)), transform(example, rng(seed))
    first.target.check_pixels()
    for segment in first.target.segments:
        rows, columns = np.nonzero(first.target.segment_ids == segment.id)
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        assert segment.bbox == box
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
    np.testing.assert_array_equal(first.target.segment_ids, again.target.segment_ids)
    np.testing.assert_array_equal(np.asarray(example.image), pixels)
    assert first.image.size == first.target.size[::-1]
    assert (first.image_id, first.file_name) == (1, "a.png")


@pytest.mark.parametrize("transform", TRANSFORMS[:5] + TRANSFORMS[6:], ids=repr)
def test_other_generators_give_other_results(transform):
    example = make_example(36, 32)
    results = {np.asarray(transform(example, rng(seed)).image).tobytes() for seed in range(8)}
    assert len(results) > 1


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    for transform in TRANSFORMS:
        transform(make_example(20, 20), rng())
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("seed", range(12))
def test_jitter_equals_resizing_the_whole_picture_then_cropping(seed):
    example = make_example(40, 56, seed)
    jitter = LargeScaleJitter((30, 34), min_scale=0.3, max_scale=2.5)
    result = jitter(example, rng(seed))
    random = rng(seed)
    scale = random.uniform(0.3, 2.5) * min(30 / 40, 34 / 56)
    height, width = round(40 * scale), round(56 * scale)
    top = int(random.integers(height - min(height, 30) + 1))
    left = int(random.integers(width - min(width, 34) + 1))
    whole = example.image.resize((width, height), Image.Resampling.BILINEAR)
    whole_ids = np.empty((height, width))
    for y, x in np.ndindex(height, width):
        source = Fraction(2 * y + 1, 2) * 40 / height, Fraction(2 * x + 1, 2) * 56 / width
        whole_ids[y, x] = example.target.segment_ids[floor(source[0]), floor(source[1])]
    expected = np.full((30, 34, 3), IMAGENET_MEAN_COLOUR)
    expected_ids = np.zeros((30, 34))
    window = np.s_[top : top + min(height, 30), left : left + min(width, 34)]
    cut = np.asarray(whole)[window]
    expected[: cut.shape[0], : cut.shape[1]] = cut
    expected_ids[: cut.shape[0], : cut.shape[1]] = whole_ids[window]
    # The window is resampled from the source directly, whose 8-bit rounding may differ by one level.
    assert np.abs(np.asarray(result.image).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(result.target.segment_ids, expected_ids)


def test_jitter_pads_with_void():
    example = make_example(8, 8)
    result = LargeScaleJitter((16, 20), min_scale=0.5, max_scale=0.5, fill=(1, 2, 3))(example, rng())
    assert result.target.size == (16, 20)
    assert not result.target.segment_ids[8:].any()
    assert not result.target.segment_ids[:, 8:].any()
    assert (np.asarray(result.image)[8:] == (1, 2, 3)).all()


def test_segments_without_pixels_are_dropped():
    example = make_example(4, 8, seed=4)
    assert len(example.target.segments) == 2
    counts = {len(RandomCrop((4, 2))(example, rng(seed)).target.segments) for seed in range(20)}
    assert counts == {1, 2}


def test_flip():
    example = make_example(6, 9)
    flipped = RandomHorizontalFlip(1.0)(example, rng())
    np.testing.assert_array_equal(np.asarray(flipped.image), np.asarray(example.image)[:, ::-1])
    np.testing.assert_array_equal(flipped.target.segment_ids, example.target.segment_ids[:, ::-1])
    assert RandomHorizontalFlip(0.0)(example, rng()) is example


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        (Resize(size=(5, 9)), (5, 9)),
        (Resize(shortest_edge=10), (10, 30)),
        (Resize(shortest_edge=(10,), longest_edge=15), (5, 15)),
        (Resize(shortest_edge=1), (1, 3)),
    ],
)
def test_resize(resize, size):
    assert resize(make_example(20, 60), rng()).target.size == size


def test_resized_pictures_and_maps_stay_aligned():
    """In the middle of a block of one colour, the colour tells the segment after resizing too."""
    example = make_example(40, 40)
    result = Resize(size=(400, 400))(example, rng())
    blocks = result.target.segment_ids.reshape(10, 40, 10, 40)
    centres = np.asarray(result.image)[:, :, 0].reshape(10, 40, 10, 40)[:, 20, :, 20]
    np.testing.assert_array_equal(centres, blocks[:, 20, :, 20] * 60)


def test_colour_jitter_changes_colours_only_and_in_range():
    example = make_example(8, 8)
    assert ColorJitter()(example, rng()).target is example.target
    np.testing.assert_array_equal(np.asarray(ColorJitter()(example, rng()).image), np.asarray(example.image))
    bright = {np.asarray(ColorJitter(brightness=0.5)(example, rng(s)).image).max() for s in range(30)}
    assert min(bright) >= 0.5 * 240 - 1
    assert max(bright) == 255


def test_hue_shift_by_a_third_turns_red_into_green_or_blue():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    example = PanopticExample(red, build_target(np.zeros((2, 2), np.int32), {}, VOCABULARY), 1, "a")
    seen = {ColorJitter(hue=0.5)(example, rng(seed)).image.getpixel((0, 0)) for seed in range(40)}
    assert any(green > 200 > red for red, green, _ in seen)
    assert any(blue > 200 > red for red, _, blue in seen)
    assert all(max(colour) > 250 for colour in seen)


def test_padding_lies_at_the_bottom_and_right_and_shortens_nothing():
    example = make_example(8, 9)
    result = Pad((12, 6), fill=(1, 2, 3))(example, rng())
    assert result.target.size == (12, 9)
    np.testing.assert_array_equal(np.asarray(result.image)[:8], np.asarray(example.image))
    np.testing.assert_array_equal(result.target.segment_ids[:8], example.target.segment_ids)
    assert (np.asarray(result.image)[8:] == (1, 2, 3)).all()
    assert not result.target.segment_ids[8:].any()
    assert Pad((4, 4))(example, rng()).target is example.target


NO_SSD = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def jitter_colour(colour, seed, **strengths):
    image = Image.new("RGB", (1, 1), colour)
    example = PanopticExample(image, build_target(np.zeros((1, 1), np.int32), {}, VOCABULARY), 1, "a")
    return SsdColorJitter(**{**NO_SSD, **strengths})(example, rng(seed)).image.getpixel((0, 0))


def test_ssd_adds_brightness_to_every_value_and_clips():
    added = {jitter_colour((100, 0, 240), seed, brightness=32.0) for seed in range(200)}
    shifts = {red - 100 for red, _, _ in added}
    assert shifts <= set(range(-32, 33))
    assert min(shifts) < -20
    assert max(shifts) > 20
    for red, green, blue in added:
        assert (green, blue) == (max(0, red - 100), min(255, 240 + red - 100))


def test_ssd_multiplies_every_value_by_the_contrast_whatever_the_mean():
    for seed in range(100):
        red, green, blue = jitter_colour((0, 100, 200), seed, contrast=0.5)
        assert red == 0
        assert 50 <= green <= 150
        assert abs(blue - min(255, 2 * green)) <= 1


def test_ssd_scales_saturation_and_turns_hues():
    assert {jitter_colour((90, 90, 90), seed, saturation=0.5, hue=0.1) for seed in range(20)} == {
        (90, 90, 90)
    }
    saturated = [jitter_colour((200, 100, 100), seed, saturation=0.5) for seed in range(100)]
    # Value, the largest channel, stays; the distance to it is scaled by 0.5 to 1.5.
    assert {red for red, _, _ in saturated} == {200}
    assert all(green == blue and 49 <= green <= 151 for _, green, blue in saturated)
    assert min(green for _, green, _ in saturated) < 60
    turned = [np.array(jitter_colour((255, 0, 0), seed, hue=0.1)) for seed in range(100)]
    # A tenth of a turn of red goes at most to 0.6 of the way to yellow or magenta.
    assert all(red == 255 and max(others) <= 0.62 * 255 and min(others) == 0 for red, *others in turned)
    assert max(green for _, green, _ in turned) > 100
    assert max(blue for _, _, blue in turned) > 100


def test_ssd_leaves_every_change_out_in_half_of_the_cases():
    """Of 2,000 draws; four standard deviations are 4.5 %."""
    unchanged = [
        jitter_colour((100, 100, 100), seed, brightness=32.0) == (100, 100, 100) for seed in range(2000)
    ]
    # Of the other half one in 64 adds less than half a level.
    assert abs(np.mean(unchanged) - (0.5 + 0.5 / 64)) < 0.045


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(), "give either size"),
        (lambda: Resize(size=(1, 1), shortest_edge=1), "give either size"),
        (lambda: Resize(size=(1, 1), longest_edge=1), "longest_edge goes with shortest_edge"),
        (lambda: Resize(size=(0, 4)), "1 pixel or more"),
        (lambda: Resize(shortest_edge=()), "1 pixel or more"),
        (lambda: Resize(shortest_edge=(4, 0)), "1 pixel or more"),
        (lambda: LargeScaleJitter((0, 4)), "1 pixel or more"),
        (lambda: LargeScaleJitter((4, 4), min_scale=2.0, max_scale=1.0), "min_scale <= max_scale"),
        (lambda: LargeScaleJitter((4, 4), min_scale=0.0), "min_scale <= max_scale"),
        (lambda: RandomCrop((4, -1)), "1 pixel or more"),
        (lambda: RandomHorizontalFlip(1.5), r"probability must lie in \[0, 1\], got 1.5"),
        (lambda: ColorJitter(contrast=-0.1), "strengths must be 0 or more"),
        (lambda: ColorJitter(hue=0.6), "hue at most 0.5"),
        (lambda: SsdColorJitter(brightness=-1), r"brightness must lie in \[0, 255\], got -1"),
        (lambda: SsdColorJitter(contrast=1.5), r"contrast must lie in \[0, 1\], got 1.5"),
        (lambda: SsdColorJitter(hue=0.6), r"hue must lie in \[0, 0.5\], got 0.6"),
        (lambda: Pad((4, 0)), "1 pixel or more"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
