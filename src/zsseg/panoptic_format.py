"""COCO's panoptic PNG: an 8-bit RGB picture whose colours are segment ids, ``R + 256 G + 256² B``.

Reference:
    Panoptic Segmentation, Kirillov et al. (arXiv:1801.00868), and the COCO panoptic format.
"""

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_SEGMENT_ID = 256**3 - 1
_PNG_BIT_DEPTH_OFFSET = 24


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Read segment ids from colours.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (H, W) int32, each in [0, 256³).

    Raises:
        ValueError: if the array is not (H, W, 3) uint8.

    Example:
        >>> rgb_to_id(np.array([[[1, 1, 0], [0, 0, 1]]], dtype=np.uint8))
        array([[  257, 65536]], dtype=int32)
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be an (H, W, 3) uint8 array, got shape {rgb.shape} and dtype {rgb.dtype}")
    height, width, _ = rgb.shape
    # Four bytes a pixel, the last one zero, read as one little-endian integer: no arithmetic.
    padded = np.zeros((height, width, 4), dtype=np.uint8)
    for channel in range(3):
        padded[:, :, channel] = rgb[:, :, channel]
    return padded.view("<i4")[:, :, 0].astype(np.int32, copy=False)


def id_to_rgb(segment_ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Write segment ids as colours.

    Args:
        segment_ids: (H, W) integers in [0, 256³).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: if the array is not a two-dimensional array of integers or an id does not fit 24 bits.

    Example:
        >>> id_to_rgb(np.array([[257, 65536]]))
        array([[[1, 1, 0],
                [0, 0, 1]]], dtype=uint8)
    """
    if segment_ids.ndim != 2 or not np.issubdtype(segment_ids.dtype, np.integer):
        raise ValueError(
            "segment_ids must be an (H, W) array of integers, "
            f"got shape {segment_ids.shape} and dtype {segment_ids.dtype}"
        )
    if segment_ids.size and not 0 <= segment_ids.min() <= segment_ids.max() <= MAX_SEGMENT_ID:
        raise ValueError(
            f"segment ids must lie in [0, {MAX_SEGMENT_ID}] to fit an RGB PNG, "
            f"got {segment_ids.min()} to {segment_ids.max()}; renumber the segments"
        )
    four_bytes = np.ascontiguousarray(segment_ids, dtype="<i4")[:, :, None].view(np.uint8)
    return np.ascontiguousarray(four_bytes[:, :, :3])


def read_panoptic_png(path: str | os.PathLike[str]) -> NDArray[np.int32]:
    """Read a panoptic PNG as segment ids.

    Args:
        path: an 8-bit RGB PNG.

    Returns:
        (H, W) int32, 0 = void.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a readable 8-bit RGB PNG. A palette, grey, alpha or 16-bit PNG is refused
            rather than converted: its values mean something else, or would be cut to 8 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no panoptic PNG at {path}; check the folder and the file name")
    return decode_panoptic_png(path.read_bytes(), name=str(path))


def decode_panoptic_png(data: bytes, *, name: str = "the panoptic PNG") -> NDArray[np.int32]:
    """Read the bytes of a panoptic PNG as segment ids.

    Args:
        data: of an 8-bit RGB PNG.
        name: what errors call it.

    Returns:
        (H, W) int32, 0 = void.

    Raises:
        ValueError: as :func:`read_panoptic_png`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            mode = image.mode
            # RGBX is how Pillow holds RGB in memory, so this copies rows without repacking them.
            pixels = image.tobytes("raw", "RGBX") if mode == "RGB" else b""
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a PNG; panoptic maps are lossless 8-bit RGB PNGs") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a PNG ({error}); write the file again") from error
    if mode != "RGB" or data[_PNG_BIT_DEPTH_OFFSET] != 8:
        raise ValueError(
            f"{name} must be an 8-bit RGB PNG (segment id = R + 256 G + 256² B), got Pillow mode {mode!r} "
            f"with {data[_PNG_BIT_DEPTH_OFFSET]} bits a channel; write it with write_panoptic_png"
        )
    packed = np.frombuffer(pixels, dtype="<u4").reshape(height, width)
    return (packed & MAX_SEGMENT_ID).astype(np.uint32, copy=False).view(np.int32)


def write_panoptic_png(path: str | os.PathLike[str], segment_ids: NDArray[np.integer]) -> None:
    """Write segment ids as a panoptic PNG; the file appears whole or not at all.

    Args:
        path: where to write; its folder must exist, an existing file is replaced.
        segment_ids: (H, W) integers in [0, 256³), 0 = void.

    Raises:
        ValueError: as for :func:`id_to_rgb`, or if the map has no pixel.
    """
    data = encode_panoptic_png(segment_ids)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def encode_panoptic_png(segment_ids: NDArray[np.integer]) -> bytes:
    """The bytes of the panoptic PNG of a map.

    Args:
        segment_ids: (H, W) integers in [0, 256³), 0 = void.

    Raises:
        ValueError: as :func:`write_panoptic_png`.
    """
    if segment_ids.size == 0:
        raise ValueError(f"a PNG needs at least one pixel, got a map of shape {segment_ids.shape}")
    png = io.BytesIO()
    Image.fromarray(id_to_rgb(segment_ids)).save(png, format="PNG")
    return png.getvalue()
