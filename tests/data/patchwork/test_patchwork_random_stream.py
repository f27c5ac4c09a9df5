import numpy as np
import pytest

from zsseg.data.patchwork.random_stream import RandomStream


def test_equal_keys_give_equal_draws_and_others_do_not():
    def draw(*key):
        stream = RandomStream(*key)
        return [
            stream.uniform(),
            stream.integer(0, 10**6),
            stream.choice("abcdefgh"),
            tuple(stream.sample(range(100), 5)),
            stream.direction(),
            stream.table(4).tolist(),
            stream.bell_noise((2, 3)).tolist(),
        ]

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2)[:2] not in (draw(2, 1)[:2], draw(1, 3)[:2], draw(1)[:2])


def test_draws_are_these():
    """PCG64's words and exact arithmetic: the same with every version of NumPy, on every machine."""
    stream = RandomStream(1, 2, 3)
    assert [stream.uniform() for _ in range(2)] == [0.6704722626516632, 0.1110146366693816]
    assert [stream.integer(0, 99) for _ in range(6)] == [51, 35, 70, 47, 71, 38]
    assert stream.direction() == (-0.9234938021294649, -0.3836133436527785)
    assert stream.table(2).tolist() == [0.14114058017730713, 0.7458524107933044]
    assert stream.bell_noise((3,)).tolist() == [0.09472224861383438, -1.0554765462875366, 0.372123122215271]


def test_uniform_and_integer_reach_their_whole_range_evenly():
    stream = RandomStream(0)
    values = np.array([stream.uniform(-2.0, 6.0) for _ in range(4000)])
    assert values.min() >= -2.0
    assert values.max() < 6.0
    assert values.mean() == pytest.approx(2.0, abs=0.15)
    counts = np.bincount([stream.integer(3, 7) for _ in range(5000)], minlength=9)
    assert counts[[0, 1, 2, 8]].sum() == 0
    assert counts[3:8].min() > 900
    assert counts[3:8].max() < 1100
    assert {stream.integer(4, 4) for _ in range(5)} == {4}


def test_samples_are_without_replacement_and_in_any_order():
    stream = RandomStream(0)
    drawn = [tuple(stream.sample("abcd", 3)) for _ in range(400)]
    assert all(len(set(values)) == 3 for values in drawn)
    assert len(set(drawn)) == 24
    assert sorted(stream.sample("aabb", 4)) == list("aabb")


def test_directions_are_unit_vectors_all_around():
    stream = RandomStream(0)
    directions = np.array([stream.direction() for _ in range(2000)])
    np.testing.assert_allclose(np.hypot(*directions.T), 1.0, rtol=0, atol=1e-15)
    octants = np.bincount((np.arctan2(*directions.T) / (np.pi / 4)).astype(int) + 4, minlength=9)
    assert np.abs(directions.mean(axis=0)).max() < 0.05
    assert octants.max() < 2000


def test_tables_and_noise_are_float32_of_the_right_spread():
    stream = RandomStream(0)
    table = stream.table(5000)
    assert table.dtype == np.float32
    assert 0.0 <= table.min() < 0.01
    assert 0.99 < table.max() < 1.0
    noise = stream.bell_noise((100, 51))
    assert noise.dtype == np.float32
    assert noise.shape == (100, 51)
    assert noise.mean() == pytest.approx(0.0, abs=0.05)
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert stream.bell_noise((1,)).shape == (1,)
