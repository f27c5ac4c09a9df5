import io

import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="needs the extra scale")
pytest.importorskip("ray", reason="needs the extra scale")

from pyarrow import parquet  # noqa: E402

from zsseg.batch_inference.picture_sources import PictureReader, list_pictures, open_picture  # noqa: E402
from zsseg.image_loading import ImageLoadError  # noqa: E402
from zsseg.image_sources import ImageSource  # noqa: E402

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def files(folder):
    return sorted(folder.glob("*.png"))


def write_table(path, values, kind, column="image", **options):
    table = pa.table({"label": [str(i) for i in range(len(values))], column: pa.array(values, kind)})
    parquet.write_table(table, path, **options)
    return path


def test_a_folder_means_its_pictures_and_the_rows_of_its_tables(pictures):
    write_table(pictures / "more.parquet", [b"", b""], pa.binary())
    (pictures / "notes.txt").touch()
    sources = list_pictures([str(pictures)])
    assert [(source.file_name, source.row) for source in sources] == [
        ("more-0000000.png", 0),
        ("more-0000001.png", 1),
        *((f"street{index}.png", None) for index in range(5)),
    ]
    assert sources[1].name == f"{pictures}/more.parquet#1"


def test_local_paths_become_absolute_and_every_picture_is_listed_once(pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    sources = list_pictures(["pictures/street1.png", "pictures", "missing.png"])
    assert [source.location for source in sources] == [
        f"{pictures}/street{index}.png" for index in (1, 0, 2, 3, 4)
    ] + [f"{pictures.parent}/missing.png"]


@pytest.mark.parametrize("ending", ["", "/", "/*.png", "/**/*.png"])
def test_a_url_of_a_storage_means_what_a_path_means(pictures, ending, assert_shows):
    folder = pictures.parent / "with space" / "a#b"
    folder.parent.mkdir()
    pictures.rename(folder)
    write_table(folder.parent / "rows.parquet", [files(folder)[0].read_bytes()], pa.binary())
    url = "file://" + str(folder).replace(" ", "%20").replace("#", "%23")
    sources = list_pictures([url + ending, url + "/street2.png"])
    assert [source.file_name for source in sources] == [path.name for path in files(folder)]
    assert all("://" in source.location and " " not in source.location for source in sources)
    for source, path in zip(sources, files(folder), strict=True):
        assert_shows(PictureReader().read(source), path)
    (row,) = list_pictures([f"file://{pictures.parent}/with%20space/rows.parquet"])
    assert_shows(PictureReader().read(row), files(folder)[0])


def test_a_storage_without_pictures_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        list_pictures([f"file://{tmp_path}"])
    with pytest.raises(FileNotFoundError, match="no file matches"):
        list_pictures([f"file://{tmp_path}/*.png"])
    with pytest.raises(ValueError, match="cannot be opened"):
        list_pictures(["nonsense://bucket/picture.png"])


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        (pa.binary(), lambda path: path.read_bytes()),
        (pa.large_binary(), lambda path: path.read_bytes()),
        (pa.string(), str),
        (pa.string(), lambda path: f"file://{path}"),
        (HF_IMAGE, lambda path: {"bytes": path.read_bytes(), "path": path.name}),
        (HF_IMAGE, lambda path: {"bytes": None, "path": str(path)}),
    ],
)
def test_rows_are_read_from_whichever_group_they_are_in(pictures, tmp_path, kind, convert, assert_shows):
    values = [convert(path) for path in files(pictures)]
    table = tmp_path / "t.parquet"
    rows = pa.table({"picture": pa.array(values, kind)})
    with parquet.ParquetWriter(table, rows.schema) as writer:
        for start, stop in ((0, 1), (1, 4), (4, 5)):
            writer.write_table(rows.slice(start, stop - start))
    sources = list_pictures([str(table)], image_column="picture")
    assert len(sources) == 5
    reader = PictureReader("picture")
    for index in (4, 0, 3, 1, 2):
        assert_shows(reader.read(sources[index]), files(pictures)[index])


def test_two_groups_are_held_in_memory_and_no_more(pictures, tmp_path):
    values = [path.read_bytes() for path in files(pictures)]
    table = write_table(tmp_path / "t.parquet", values, pa.binary(), row_group_size=2)
    sources, reader = list_pictures([str(table)]), PictureReader()
    for index in (0, 2, 4):
        reader.read(sources[index])
    table.unlink()
    for index in (2, 3, 4):
        reader.read(sources[index])
    with pytest.raises(ImageLoadError, match=r"t.parquet#1': its row cannot be read"):
        reader.read(sources[1])


def test_tables_without_pictures_are_refused(tmp_path):
    numbers = write_table(tmp_path / "numbers.parquet", [1, 2], pa.int64())
    with pytest.raises(
        ValueError, match=r"needs a column 'image' of bytes.*label \(string\), image \(int64\)"
    ):
        list_pictures([str(numbers)])
    with pytest.raises(ValueError, match=r"needs a column 'jpg'"):
        list_pictures([str(numbers)], image_column="jpg")
    numbers.write_bytes(numbers.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is no whole Parquet file"):
        list_pictures([str(numbers)])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the cell is empty"),
        ({"bytes": None, "path": None}, "the cell is empty"),
        (b"", r"it is empty \(0 bytes\)"),
        (b"nonsense", "expected a picture"),
        ("/no/such.png", "there is no such file"),
        ("file:///no/such.png", "it cannot be read"),
        (3, "it cannot be read"),
    ],
)
def test_every_bad_cell_is_one_kind_of_error_that_names_it(value, message):
    with pytest.raises(ImageLoadError, match=rf"cannot load the image 'table#7': {message}"):
        open_picture(value, name="table#7")


def test_a_truncated_picture_names_its_file(pictures):
    path = files(pictures)[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageLoadError, match=r"street0.png': its data are cut off"):
        PictureReader().read(ImageSource(str(path), "street0.png"))


def test_a_table_that_shrank_since_it_was_listed(pictures, tmp_path):
    data = files(pictures)[0].read_bytes()
    table = write_table(tmp_path / "t.parquet", [data] * 3, pa.binary())
    sources = list_pictures([str(table)])
    write_table(tmp_path / "t.parquet", [data] * 2, pa.binary())
    with pytest.raises(ImageLoadError, match="the file has 2 rows now"):
        PictureReader().read(sources[2])


def test_arrays_are_pictures_too():
    pixels = Image.new("RGB", (3, 2), "red")
    assert open_picture(pixels, name="p").getpixel((0, 0)) == (255, 0, 0)
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    assert open_picture(buffer.getvalue(), name="p").size == (3, 2)
