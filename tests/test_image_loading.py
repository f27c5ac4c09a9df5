import base64
import http.server
import io
import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, features

from zsseg import image_loading
from zsseg.image_loading import ImageLoadError, load_image

GRADIENT = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, payload):
        checksum = struct.pack(">I", zlib.crc32(kind + payload))
        return struct.pack(">I", len(payload)) + kind + payload + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def server():
    """A loopback server of the files put into the returned dictionary."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", "/image.png")
                self.end_headers()
            elif self.path == "/cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")
            elif self.path in files:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(files[self.path])
            else:
                self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", files
        running.shutdown()
        thread.join()


def assert_same(image, expected):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_path_as_text_and_object(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GRADIENT).save(path)
    assert_same(load_image(path), GRADIENT)
    assert_same(load_image(str(path)), GRADIENT)
    path.unlink()  # nothing is read later


def test_bytes_and_data_uri():
    data = encode(Image.fromarray(GRADIENT))
    assert_same(load_image(data), GRADIENT)
    assert_same(load_image(bytearray(data)), GRADIENT)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert_same(load_image(uri), GRADIENT)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png,abc", "must read data:image/png;base64"),
        ("data:image/png;base64", "must read data:image/png;base64"),
        ("data:image/png;base64,@@@", "its base64 is broken"),
        ("data:image/png;base64,", "it is empty"),
    ],
)
def test_broken_data_uri(uri, message):
    with pytest.raises(ImageLoadError, match=message):
        load_image(uri)


def test_one_pixel():
    assert load_image(encode(Image.new("L", (1, 1), 7))).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(orientation):
    image = Image.fromarray(GRADIENT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: GRADIENT,
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.transpose(1, 0, 2),
        6: np.rot90(GRADIENT, -1),
        7: GRADIENT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(GRADIENT),
    }[orientation]
    data = encode(image, exif=exif)
    loaded = load_image(data)
    assert_same(loaded, upright)
    assert_same(load_image(loaded), upright)
    assert_same(load_image(Image.open(io.BytesIO(data))), upright)


def test_pillow_image_is_left_alone():
    image = Image.fromarray(GRADIENT)
    loaded = load_image(image)
    loaded.putpixel((0, 0), (9, 9, 9))
    assert_same(image, GRADIENT)


def test_palette_and_palette_with_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert_same(load_image(encode(palette)), [[[10, 20, 30], [40, 50, 60]]])
    assert_same(load_image(encode(palette, transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.repeat([[[0], [1], [128], [255]]], 3, axis=2)
    assert_same(load_image(encode(Image.fromarray(values))), expected)
    assert_same(load_image(encode(Image.fromarray(values), "TIFF")), expected)
    assert_same(load_image(values), expected)
    assert_same(load_image(Image.fromarray(values.astype(np.int32))), expected)


def test_float_files():
    unit = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    expected = np.repeat([[[0], [128], [255]]], 3, axis=2)
    assert_same(load_image(encode(Image.fromarray(unit), "TIFF")), expected)
    with pytest.raises(ImageLoadError, match=r"floats must lie in \[0, 1\] here, got 0.0 to 255.0"):
        load_image(encode(Image.fromarray(unit * 255), "TIFF"))


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = load_image(encode(image, "TIFF")).getpixel((3, 3))
    assert (red, green, blue) == (0, 255, 255)
    jpeg = np.asarray(load_image(encode(image, "JPEG", quality=100)), dtype=int)
    assert np.abs(jpeg - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    colour = (0, 0, 0) if mode == "RGBA" else (0,)
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*colour, alpha))
    assert_same(load_image(encode(image)), np.repeat([[[255], [127], [0]]], 3, axis=2))


def test_grey_and_bilevel():
    grey = Image.fromarray(GRADIENT[:, :, 0])
    assert_same(load_image(encode(grey)), np.repeat(GRADIENT[:, :, :1], 3, axis=2))
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert_same(load_image(encode(bilevel)), [[[0, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize(
    "file_format",
    [
        "GIF",
        "PNG",
        pytest.param(
            "WEBP", marks=pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")
        ),
    ],
)
def test_animation_gives_its_first_frame(file_format):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)
    red, green, _ = load_image(data).getpixel((2, 2))
    assert red > 150
    assert green < 50


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GRADIENT, GRADIENT),
        (GRADIENT.astype(np.int64), GRADIENT),
        (GRADIENT.astype(np.float32) / 255, GRADIENT),
        (GRADIENT.transpose(2, 0, 1), GRADIENT),
        (GRADIENT[:, ::-1], GRADIENT[:, ::-1]),
        (GRADIENT[:, :, 0], np.repeat(GRADIENT[:, :, :1], 3, axis=2)),
        (GRADIENT[:, :, :1], np.repeat(GRADIENT[:, :, :1], 3, axis=2)),
        (GRADIENT[None, :, :, 0], np.repeat(GRADIENT[:, :, :1], 3, axis=2)),
        (np.array([[False, True]]), [[[0, 0, 0], [255, 255, 255]]]),
        (np.dstack([GRADIENT, np.full((5, 7), 255, np.uint8)]), GRADIENT),
        (GRADIENT.astype(np.uint16) * 257, GRADIENT),
    ],
)
def test_arrays(array, expected):
    assert_same(load_image(array), expected)


def test_ambiguous_axes_follow_the_library():
    torch = pytest.importorskip("torch")
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert_same(load_image(square), square)
    assert_same(load_image(torch.from_numpy(square)), square.transpose(1, 2, 0))


def test_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(GRADIENT.transpose(2, 0, 1).copy())
    assert_same(load_image(tensor), GRADIENT)
    as_float = (tensor / 255).requires_grad_()
    assert_same(load_image(as_float), GRADIENT)
    assert_same(load_image((tensor > 100).to(torch.bfloat16)), (GRADIENT > 100) * np.uint8(255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), "it has no pixels"),
        (np.zeros(4, np.uint8), r"expected \(H, W\)"),
        (np.zeros((2, 4, 5), np.uint8), r"expected \(H, W\)"),
        (np.zeros((1, 2, 4, 3), np.uint8), r"expected \(H, W\)"),
        (np.full((2, 2), 256), r"integers must lie in \[0, 255\] here, got 256 to 256"),
        (np.full((2, 2), -1), "got -1 to -1"),
        (np.full((2, 2), 1.5), r"floats must lie in \[0, 1\] here, got 1.5 to 1.5"),
        (np.full((2, 2), np.nan), "got nan to nan"),
        (np.full((2, 2), 1j), "expected bool, integer or floating point"),
    ],
)
def test_arrays_that_are_no_picture(array, message):
    with pytest.raises(ImageLoadError, match=message):
        load_image(array)


def test_missing_folder_and_impossible_paths(tmp_path):
    with pytest.raises(ImageLoadError, match=r"cannot load the image '.*nowhere.png': there is no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageLoadError, match="it is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageLoadError, match="cannot be read"):
        load_image("a\0b.png")
    with pytest.raises(ImageLoadError, match="x…"):
        load_image("x" * 5000)


def test_empty_and_foreign_files(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageLoadError, match="it is empty"):
        load_image(empty)
    text = tmp_path / "text.jpg"
    text.write_text("this is not a picture")
    with pytest.raises(ImageLoadError, match="expected a picture such as PNG or JPEG, got 21 bytes"):
        load_image(text)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_truncated_files(file_format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    with pytest.raises(ImageLoadError):
        load_image(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "PPM"])
def test_damaged_files_give_a_picture_or_the_one_error(file_format):
    """Whatever byte is damaged, a decoder's own exception never comes through."""
    random = np.random.default_rng(1)
    data = encode(Image.fromarray(GRADIENT), file_format)
    for _ in range(60):
        damaged = bytearray(data)
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = random.integers(0, 256)
        try:
            loaded = load_image(bytes(damaged), max_pixels=10_000)
        except ImageLoadError:
            continue
        assert loaded.mode == "RGB"


def test_decompression_bomb_is_refused_from_its_header():
    with pytest.raises(ImageLoadError, match=r"raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS"):
        load_image(png_header(20_000, 20_000))
    with pytest.raises(ImageLoadError, match="400000000 pixels"):
        load_image(png_header(20_000, 20_000), max_pixels=None)


def test_max_pixels():
    data = encode(Image.fromarray(GRADIENT))
    assert load_image(data, max_pixels=35).size == (7, 5)
    with pytest.raises(ImageLoadError, match="7×5 are 35 pixels, at most 34 are taken"):
        load_image(data, max_pixels=34)
    with pytest.raises(ImageLoadError, match="at most 34"):
        load_image(Image.fromarray(GRADIENT), max_pixels=34)
    with pytest.raises(ImageLoadError, match="no pixels"):
        load_image(Image.new("RGB", (0, 3)))


def test_memory_shortage_is_not_blamed_on_the_file(monkeypatch):
    def raise_memory_error(image):
        raise MemoryError

    monkeypatch.setattr(image_loading.ImageOps, "exif_transpose", raise_memory_error)
    with pytest.raises(MemoryError):
        load_image(encode(Image.fromarray(GRADIENT)))


def test_url_and_redirect(server):
    url, files = server
    files["/image.png"] = encode(Image.fromarray(GRADIENT))
    assert_same(load_image(f"{url}/image.png"), GRADIENT)
    assert_same(load_image(f"{url.replace('http', 'HTTP')}/redirect"), GRADIENT)


def test_urls_that_fail(server, monkeypatch):
    url, files = server
    files["/page"] = b"<html>not here</html>"
    with pytest.raises(ImageLoadError, match="the server answered 404"):
        load_image(f"{url}/nothing")
    with pytest.raises(ImageLoadError, match="expected a picture"):
        load_image(f"{url}/page")
    with pytest.raises(ImageLoadError, match="ended after 5 of 1000 bytes"):
        load_image(f"{url}/cut")
    with pytest.raises(ImageLoadError, match="cannot be reached"):
        load_image("http://127.0.0.1:1/image.png", timeout=2)
    with pytest.raises(ImageLoadError, match="cannot be reached"):
        load_image("http://")
    monkeypatch.setattr(image_loading, "MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(ImageLoadError, match="larger than 10 bytes"):
        load_image(f"{url}/page")


def test_other_types_are_a_type_error():
    with pytest.raises(TypeError, match="got int"):
        load_image(3)


def test_error_names_its_source_and_survives_a_worker_process():
    error = ImageLoadError("'a.png'", "there is no such file")
    assert isinstance(error, ValueError)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source) == (str(error), "'a.png'")
