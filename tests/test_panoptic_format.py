import stat
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from zsseg.panoptic_format import (
    decode_panoptic_png,
    encode_panoptic_png,
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
    write_panoptic_png,
)

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
id_maps = hnp.arrays(np.int32, shapes, elements=st.integers(0, 256**3 - 1))


@given(hnp.arrays(np.uint8, shapes.map(lambda shape: (*shape, 3))))
def test_rgb_to_id_follows_the_formula(rgb):
    red, green, blue = (rgb[:, :, channel].astype(int) for channel in range(3))
    ids = rgb_to_id(rgb)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, red + 256 * green + 256**2 * blue)


@given(id_maps)
def test_id_to_rgb_is_the_inverse(segment_ids):
    np.testing.assert_array_equal(rgb_to_id(id_to_rgb(segment_ids)), segment_ids)


def test_non_contiguous_arrays_are_read_by_value():
    segment_ids = np.arange(24, dtype=np.int64).reshape(4, 6) * 100_003
    np.testing.assert_array_equal(rgb_to_id(id_to_rgb(segment_ids[::2, ::-1])), segment_ids[::2, ::-1])
    rgb = id_to_rgb(segment_ids)
    np.testing.assert_array_equal(rgb_to_id(rgb[:, ::2]), segment_ids[:, ::2])


@pytest.mark.parametrize(
    "rgb",
    [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.uint16)],
)
def test_rgb_to_id_refuses_other_arrays(rgb):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        rgb_to_id(rgb)


@pytest.mark.parametrize("segment_ids", [np.zeros((2, 2, 1), int), np.zeros((2, 2))])
def test_id_to_rgb_refuses_other_arrays(segment_ids):
    with pytest.raises(ValueError, match=r"\(H, W\) array of integers"):
        id_to_rgb(segment_ids)


@pytest.mark.parametrize("value", [-1, 256**3])
def test_id_to_rgb_refuses_ids_beyond_24_bits(value):
    with pytest.raises(ValueError, match="16777215"):
        id_to_rgb(np.array([[0, value]]))


def test_png_round_trip(tmp_path):
    segment_ids = np.random.default_rng(0).integers(0, 256**3, (7, 11)).astype(np.int32)
    path = tmp_path / "map.png"
    write_panoptic_png(path, np.zeros((1, 1), np.int32))
    write_panoptic_png(path, segment_ids)
    read = read_panoptic_png(path)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, segment_ids)
    np.testing.assert_array_equal(rgb_to_id(np.asarray(Image.open(path))), segment_ids)
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.png"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_transparent_colour_of_an_rgb_png_changes_no_id(tmp_path):
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "map.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "map.png"), rgb_to_id(rgb))


def test_write_refuses_an_empty_map_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one pixel"):
        write_panoptic_png(tmp_path / "map.png", np.zeros((0, 4), np.int32))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    folder = tmp_path / "map.png"
    folder.mkdir()
    with pytest.raises(OSError, match=r"map\.png"):
        write_panoptic_png(folder, np.ones((2, 2), np.int32))
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.png"]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no panoptic PNG at .*nothing\.png"):
        read_panoptic_png(tmp_path / "nothing.png")


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "I;16", "1"])
def test_other_png_modes_are_refused(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match="8-bit RGB PNG"):
        read_panoptic_png(tmp_path / "map.png")


def test_16_bit_rgb_is_refused(tmp_path):
    # Pillow reads 16-bit RGB as 8-bit RGB without a word; only the header tells.
    path = tmp_path / "map.png"
    path.write_bytes(_png(width=2, height=1, bit_depth=16, rows=bytes(1 + 2 * 3 * 2)))
    assert Image.open(path).mode == "RGB"
    with pytest.raises(ValueError, match="16 bits a channel"):
        read_panoptic_png(path)


def test_jpeg_is_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "map.png", format="JPEG")
    with pytest.raises(ValueError, match="not a PNG"):
        read_panoptic_png(tmp_path / "map.png")


def test_truncated_png_is_refused(tmp_path):
    path = tmp_path / "map.png"
    write_panoptic_png(path, np.random.default_rng(0).integers(0, 256**3, (64, 64)))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_panoptic_png(path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "map.png").touch()
    with pytest.raises(ValueError, match="not a PNG"):
        read_panoptic_png(tmp_path / "map.png")


def test_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(_png(width=20_000, height=20_000, bit_depth=8, rows=b""))
    with pytest.raises(ValueError, match="cannot be read"):
        read_panoptic_png(path)


def _png(*, width, height, bit_depth, rows):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@given(id_maps)
def test_bytes_hold_what_a_file_holds(segment_ids):
    decoded = decode_panoptic_png(encode_panoptic_png(segment_ids))
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, segment_ids)


def test_errors_about_bytes_name_them():
    with pytest.raises(ValueError, match="the map of image 7 is not a PNG"):
        decode_panoptic_png(b"", name="the map of image 7")
    data = encode_panoptic_png(np.arange(1024, dtype=np.int32).reshape(32, 32))
    with pytest.raises(ValueError, match=r"the panoptic PNG cannot be read as a PNG"):
        decode_panoptic_png(data[:-60])
    with pytest.raises(ValueError, match="needs at least one pixel"):
        encode_panoptic_png(np.zeros((0, 3), np.int32))
