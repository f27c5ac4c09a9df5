import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict

from oracles.image_preparation import normalise, resize
from testing.tiny_models import build_picture
from zsseg.processing.image_processing import (
    ZeroShotSegmentationImageProcessorPil,
    compute_padded_size,
    compute_resized_size,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LEVEL = 1 / 255 / min(STD)


def prepare(pictures, **options):
    return ZeroShotSegmentationImageProcessorPil(**options)(pictures, return_tensors="pt")


def test_without_resizing_it_is_the_oracle_and_padding_is_zero():
    pictures = [build_picture(30, 70), build_picture(64, 33, seed=1)]
    batch = prepare(pictures, do_resize=False)
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == torch.int64
    for row, picture in enumerate(pictures):
        height, width, _ = picture.shape
        expected = np.zeros((3, 64, 96))
        expected[:, :height, :width] = normalise(picture, MEAN, STD)
        np.testing.assert_allclose(batch["pixel_values"][row].numpy(), expected, atol=1e-5)
        mask = np.zeros((64, 96))
        mask[:height, :width] = 1
        assert np.array_equal(batch["pixel_mask"][row].numpy(), mask)


@pytest.mark.parametrize("shape", [(50, 80), (200, 120), (64, 64), (31, 97)])
def test_resizing_is_the_oracle_within_one_level(shape):
    picture = build_picture(*shape)
    size = {"shortest_edge": 64, "longest_edge": 96}
    batch = prepare([picture], size=size)
    height, width = compute_resized_size(*shape, SizeDict(**size))
    expected = normalise(resize(picture, height, width), MEAN, STD)
    found = batch["pixel_values"][0, :, :height, :width].numpy()
    assert np.abs(found - expected).max() <= 1.01 * LEVEL
    assert batch["pixel_mask"].sum() == height * width


def test_exact_sizes_and_other_divisors():
    batch = prepare([build_picture(50, 80)], size={"height": 30, "width": 40}, size_divisor=7)
    assert batch["pixel_values"].shape == (1, 3, 35, 42)
    assert batch["pixel_mask"].sum() == 30 * 40


def test_without_padding():
    batch = prepare([build_picture(30, 50)] * 2, do_resize=False, do_pad=False)
    assert batch["pixel_values"].shape == (2, 3, 30, 50)
    assert "pixel_mask" not in batch


def test_steps_can_be_left_out():
    picture = build_picture(32, 32)
    batch = prepare([picture], do_resize=False, do_rescale=False, do_normalize=False)
    assert np.array_equal(batch["pixel_values"][0].numpy(), picture.transpose(2, 0, 1))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_resized_sizes_keep_the_limits(height, width):
    size = SizeDict(shortest_edge=64, longest_edge=96)
    resized = compute_resized_size(height, width, size)
    assert min(resized) >= 1
    assert min(resized) <= 64
    if resized == (height, width):
        return
    assert max(resized) <= 96
    assert min(resized) == 64 or max(resized) >= 95
    if max(height, width) < 20 * min(height, width):
        assert resized[0] / resized[1] == pytest.approx(height / width, rel=0.26)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=5), st.integers(1, 64)
)
def test_padded_size_is_the_smallest_multiple(sizes, divisor):
    padded = compute_padded_size(sizes, divisor)
    for axis in (0, 1):
        largest = max(size[axis] for size in sizes)
        assert padded[axis] % divisor == 0
        assert largest <= padded[axis] < largest + divisor


def test_a_line_of_pixels_stays_a_line():
    line = Image.fromarray(build_picture(1, 900))
    batch = prepare([line], size={"shortest_edge": 64, "longest_edge": 96})
    assert batch["pixel_mask"].sum() == 96


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 50), (1, 3), (3, 1), (50, 1)])
def test_pictures_as_small_as_their_channels_are_not_turned(shape):
    picture = build_picture(*shape)
    batch = prepare([Image.fromarray(picture)], do_resize=False)
    found = batch["pixel_values"][0, :, : shape[0], : shape[1]].numpy()
    np.testing.assert_allclose(found, normalise(picture, MEAN, STD), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 64}}, "shortest_edge and longest_edge, or height and width"),
        ({"size_divisor": 0}, "size_divisor must be 1 or more, got 0"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        prepare([build_picture(30, 50)], **options)


def test_saved_options_come_back(tmp_path, concat_checkpoint):
    processor = AutoImageProcessor.from_pretrained(concat_checkpoint)
    processor.size_divisor = 16
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.size_divisor == 16
