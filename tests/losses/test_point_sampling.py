import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.set_criterion import is_valid_at_points, read_at_points
from zsseg.losses.point_sampling import (
    draw_points,
    find_corners,
    find_valid_points,
    sample_logits,
    sample_logits_at_own_points,
    sample_targets,
    select_uncertain_points,
)


def pixel_centres(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(((columns + 0.5) / width, (rows + 0.5) / height), dim=-1).view(-1, 2).float()


def test_reading_at_pixel_centres_is_the_resizing_of_inference():
    maps = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(maps[None], size=(20, 21), mode="bilinear", align_corners=False)[0]
    points = pixel_centres(20, 21)
    torch.testing.assert_close(sample_logits(maps, points).t(), resized.flatten(1), atol=1e-5, rtol=0)
    own = sample_logits_at_own_points(maps, points.expand(3, -1, -1))
    torch.testing.assert_close(own, resized.flatten(1), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_all_readings_equal_the_oracle_at_any_size(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, height, width, generator=generator)
    points = torch.cat((torch.rand(20, 2, generator=generator), torch.tensor([[0.0, 0.0], [1.0, 1.0]])))
    expected = np.stack([read_at_points(values, points.numpy()) for values in maps.numpy()])
    np.testing.assert_allclose(sample_logits(maps, points).t().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(sample_targets(maps, points).numpy(), expected, atol=1e-5)
    own = sample_logits_at_own_points(maps, points.expand(2, -1, -1))
    np.testing.assert_allclose(own.numpy(), expected, atol=1e-5)


def test_corner_weights_sum_to_one_and_stay_inside():
    indices, weights = find_corners(torch.rand(100, 2, generator=torch.Generator().manual_seed(0)), (3, 4))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(100))
    assert weights.min() >= 0
    assert indices.min() >= 0
    assert indices.max() < 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_read_in_at_least_float32(dtype):
    maps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    points = torch.rand(9, 2, generator=torch.Generator().manual_seed(1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shared, own = sample_logits(maps, points), sample_logits_at_own_points(maps, points.expand(2, -1, -1))
    assert shared.dtype == own.dtype == wide
    expected = np.stack([read_at_points(values, points.numpy()) for values in maps.double().numpy()])
    np.testing.assert_allclose(shared.t().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(own.numpy(), expected, atol=1e-5)


def test_no_map_gives_no_column():
    assert sample_logits(torch.zeros(0, 4, 4), torch.rand(5, 2)).shape == (5, 0)


def test_gradients_at_own_points():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    points = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: sample_logits_at_own_points(values, points), (maps,))


def test_bool_targets_read_like_float_ones():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 6, 5, generator=generator) > 0.5
    points = torch.rand(40, 2, generator=generator)
    assert torch.equal(sample_targets(masks, points), sample_targets(masks.float(), points))


@pytest.mark.parametrize("value", [255.0, -1.0])
def test_targets_outside_zero_and_one_are_named(value):
    masks = torch.zeros(1, 4, 4)
    masks[:, :, 2:] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*pad masks with 0"):
        sample_targets(masks, pixel_centres(4, 4))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_valid_points_equal_the_oracle(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    label_mask = torch.rand(2, height, width, generator=generator) > 0.3
    points = torch.rand(30, 2, generator=generator)
    expected = np.stack([is_valid_at_points(mask, points.numpy()) for mask in label_mask.numpy()])
    np.testing.assert_array_equal(find_valid_points(label_mask, points).numpy(), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 12))
def test_uncertain_points_are_the_smallest_valid_logits(seed, count):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 12, generator=generator)
    is_valid = torch.rand(3, 12, generator=generator) > 0.4
    before = logits.clone()
    chosen = select_uncertain_points(logits, is_valid, count)
    assert torch.equal(logits, before)
    for row in range(3):
        indices = chosen[row].tolist()
        assert len(set(indices)) == count
        valid = is_valid[row].nonzero().flatten().tolist()
        best = sorted(valid, key=lambda i: abs(float(logits[row, i])))[:count]
        assert set(best) <= set(indices)


def test_drawn_points_are_uniform_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    points = draw_points(20000, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert points.min() >= 0
    assert points.max() < 1
    counts, _ = np.histogramdd(points.numpy(), bins=(4, 4), range=((0, 1), (0, 1)))
    # 1,250 points are expected in each of 16 cells, with a standard deviation of 34
    assert np.abs(counts - 1250).max() < 5 * 34


def test_drawn_points_are_those_of_the_generator_in_another_order():
    drawn = draw_points(500, torch.Generator().manual_seed(3))
    plain = torch.rand(500, 2, generator=torch.Generator().manual_seed(3))
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, plain.tolist()))
