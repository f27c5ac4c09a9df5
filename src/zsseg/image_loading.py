"""Pictures from anywhere, as 8-bit RGB, or one clear error.

A picture file may be rotated by its EXIF tag, hold a palette, 16 bits, ink colours or transparency, be cut
off, or claim to be larger than memory. Every reader of this package goes through :func:`load_image`.
"""

import base64
import binascii
import http.client
import io
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zsseg._version import __version__

MAX_PIXELS = 178_956_970
"""Pillow's own bound for a decompression bomb: about 13,400 × 13,400 pixels, 0.5 GB as RGB."""

MAX_DOWNLOAD_BYTES = 256 * 1024**2
_DOWNLOAD_CHUNK_BYTES = 1024**2
_SHOWN_SOURCE_CHARACTERS = 200
_CHANNEL_COUNTS = (1, 3, 4)
_SIXTEEN_BIT_MAX = 65535
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any


class ImageLoadError(ValueError):
    """A picture that cannot be had; the message names it and says what to do.

    Attributes:
        source: what was asked for, as shown in the message.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"cannot load the image {source}: {problem}")
        self.source = source
        self.problem = problem

    def __reduce__(self) -> tuple[type["ImageLoadError"], tuple[str, str]]:
        return ImageLoadError, (self.source, self.problem)


def load_image(
    source: ImageSource, *, timeout: float = 30.0, max_pixels: int | None = MAX_PIXELS
) -> Image.Image:
    """Load a picture as RGB, upright.

    The EXIF rotation is applied. Palettes, grey and ink (CMYK) pictures are converted; 16 bits a channel are
    scaled to 8, not clipped; transparency is laid on white, as a viewer shows it; of an animation the first
    frame is taken (of an open Pillow image, the frame it stands at).

    Args:
        source: a path, an http(s) URL, a ``data:`` URI, the bytes of a file, a Pillow image, or an array:
            (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4, as NumPy or torch. Bool, uint8 and uint16 use
            their range, other integers must lie in [0, 255], floats in [0, 1]. Where both the first and the
            last axis could be channels, NumPy is read as (H, W, C) and torch as (C, H, W).
        timeout: seconds without an answer after which a URL is given up.
        max_pixels: larger files are refused before they are decoded; None trusts every file up to Pillow's
            own limit, ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        a new RGB image that holds no open file.

    Raises:
        ImageLoadError: if the picture is missing, unreachable, empty, cut off, too large or not a picture.
        TypeError: if the source is none of the above.
    """
    if isinstance(source, Image.Image):
        name = f"(a Pillow image of mode {source.mode} and size {source.size})"
        _check_pixel_count(source.size, max_pixels, name)
        return _decode(source, name)
    if isinstance(source, np.ndarray) or hasattr(source, "detach"):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), f"({len(source)} bytes)", max_pixels)
    if isinstance(source, str):
        if source[:8].lower().startswith(("http://", "https://")):
            return _from_bytes(_download(source, timeout), _shown(source), max_pixels)
        if source.startswith("data:"):
            return _from_data_uri(source, max_pixels)
    if isinstance(source, str | os.PathLike):
        return _from_path(os.fspath(source), max_pixels)
    raise TypeError(
        "an image must be a path, an http(s) URL, a data: URI, bytes, a Pillow image, a NumPy array or "
        f"a torch tensor, got {type(source).__name__}"
    )


def _from_path(path: str, max_pixels: int | None) -> Image.Image:
    name = _shown(str(path))
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageLoadError(name, "there is no such file; check the path and the working folder") from None
    except IsADirectoryError:
        raise ImageLoadError(name, "it is a folder; pass the files in it one by one") from None
    except (OSError, ValueError, TypeError) as error:
        raise ImageLoadError(name, f"the file cannot be read ({error})") from error
    return _from_bytes(data, name, max_pixels)


def _from_data_uri(uri: str, max_pixels: int | None) -> Image.Image:
    header, comma, payload = uri.partition(",")
    name = f"({_shown(header)}…)"
    if not comma or not header.endswith(";base64"):
        raise ImageLoadError(name, "a data URI must read data:image/png;base64,<bytes>; encode it in base64")
    try:
        data = base64.b64decode(urllib.parse.unquote(payload), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageLoadError(name, f"its base64 is broken ({error}); encode the file again") from error
    return _from_bytes(data, name, max_pixels)


def _download(url: str, timeout: float) -> bytes:
    name = _shown(url)
    request = urllib.request.Request(url, headers={"User-Agent": f"zsseg/{__version__}"})
    data = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            announced = int(response.headers.get("Content-Length", 0))
            while len(data) <= MAX_DOWNLOAD_BYTES and (chunk := response.read(_DOWNLOAD_CHUNK_BYTES)):
                data += chunk
    except urllib.error.HTTPError as error:
        raise ImageLoadError(name, f"the server answered {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or repr(error)
        raise ImageLoadError(
            name, f"it cannot be reached ({reason}); check the address, or download it and pass the file"
        ) from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ImageLoadError(
            name, f"it is larger than {MAX_DOWNLOAD_BYTES:,} bytes; download it and pass the file"
        )
    if len(data) < announced:
        raise ImageLoadError(
            name, f"the connection ended after {len(data)} of {announced} bytes; load it again"
        )
    return bytes(data)


def _from_bytes(data: bytes, name: str, max_pixels: int | None) -> Image.Image:
    if not data:
        raise ImageLoadError(name, "it is empty (0 bytes); expected a picture file such as PNG or JPEG")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageLoadError(
            name,
            f"expected a picture such as PNG or JPEG, got {len(data)} bytes beginning with {data[:12]!r}",
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageLoadError(name, _too_large(str(error))) from None
    except Exception as error:  # decoders raise anything on broken headers
        raise ImageLoadError(name, f"its header is broken ({error!r}); write the file again") from error
    with image:
        _check_pixel_count(image.size, max_pixels, name)
        return _decode(image, name)


def _check_pixel_count(size: tuple[int, int], max_pixels: int | None, name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageLoadError(name, f"it has no pixels ({width}×{height})")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageLoadError(
            name,
            _too_large(f"{width}×{height} are {width * height:,} pixels, at most {max_pixels:,} are taken"),
        )


def _too_large(what: str) -> str:
    return (
        f"{what}. If the file is meant to be this large, shrink it first or raise max_pixels and "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except (ImageLoadError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on broken data
        raise ImageLoadError(
            name, f"its data are cut off or broken ({error}); copy or write the file again"
        ) from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _WIDE_MODES:
        # Pillow widens 16-bit files to 32-bit integers, so 16 bits are the range of both.
        return Image.fromarray(_to_uint8(np.asarray(image), _SIXTEEN_BIT_MAX, name)).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _from_array(source: Any) -> Image.Image:
    is_tensor = not isinstance(source, np.ndarray)
    if is_tensor:
        source = source.detach().cpu()
        array = np.asarray(source.float() if source.is_floating_point() else source)
    else:
        array = source
    name = f"({'a tensor' if is_tensor else 'an array'} of shape {array.shape} and dtype {array.dtype})"
    if array.size == 0:
        raise ImageLoadError(name, "it has no pixels")
    if array.ndim == 3:
        first, last = array.shape[0] in _CHANNEL_COUNTS, array.shape[2] in _CHANNEL_COUNTS
        if first and (is_tensor or not last):
            array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNEL_COUNTS):
        raise ImageLoadError(name, "expected (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4")
    integer_max = _SIXTEEN_BIT_MAX if array.dtype == np.uint16 else 255
    pixels = _to_uint8(array, integer_max, name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name)


def _to_uint8(array: NDArray[Any], integer_max: int, name: str) -> NDArray[np.uint8]:
    """Scale bool, 8-bit, 16-bit and unit floats to the 8-bit range; refuse what is ambiguous."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise ImageLoadError(name, "expected bool, integer or floating point values")
    low, high = array.min(), array.max()
    largest = 1 if array.dtype.kind == "f" else integer_max
    if not 0 <= low <= high <= largest:  # also false for NaN
        kind = "floats" if array.dtype.kind == "f" else "integers"
        raise ImageLoadError(
            name, f"{kind} must lie in [0, {largest}] here, got {low} to {high}; scale them, or pass uint8"
        )
    return np.round(array * (255 / largest)).astype(np.uint8)


def _shown(source: str) -> str:
    if len(source) <= _SHOWN_SOURCE_CHARACTERS:
        return repr(source)
    return repr(source[:_SHOWN_SOURCE_CHARACTERS] + "…")
