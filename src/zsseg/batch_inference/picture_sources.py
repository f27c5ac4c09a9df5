"""Pictures in folders, buckets and Parquet files: which there are, and how to read one."""

import os
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem, FileType

from zsseg.image_loading import ImageLoadError, load_image
from zsseg.image_sources import (
    IMAGE_SUFFIXES,
    PARQUET_SUFFIX,
    ImageSource,
    base_name,
    empty_folder,
    expand_argument,
    is_bucket_url,
    is_http_url,
    is_table,
    name_apart,
    unmatched_pattern,
)

SUFFIXES = (*IMAGE_SUFFIXES, PARQUET_SUFFIX)
IMAGE_COLUMN = "image"
HELD_ROW_GROUPS = 2
_URL_PATTERN_CHARACTERS = "*["
"""Not "?", behind which a URL has options, such as the region of a bucket."""


def list_pictures(arguments: Iterable[str], *, image_column: str = IMAGE_COLUMN) -> list[ImageSource]:
    """Expand files, folders, patterns and URLs, in order, every picture once.

    As :func:`~zsseg.image_sources.find_images`, and beside that: each may be in a bucket (``s3://``, ``gs://``
    and whatever else pyarrow opens), and a ``.parquet`` file stands for the pictures in its rows. Local paths
    become absolute.

    Args:
        arguments: what to expand.
        image_column: of Parquet files: a column of files' bytes, of paths or URLs, or of both as Hugging Face
            stores them.

    Raises:
        FileNotFoundError: if a folder holds no picture or a pattern matches no file.
        ValueError: if a Parquet file is damaged or has no such column, or a URL's scheme is unknown.
        OSError: if a bucket cannot be listed.
    """
    expanded = (location for argument in arguments for location in _expand(argument))
    taken: dict[str, int] = {}
    sources = []
    for location in dict.fromkeys(expanded):
        name = base_name(location)
        if is_table(location):
            stem = PurePosixPath(name).stem
            sources += [
                ImageSource(location, name_apart(f"{stem}-{row:07}.png", taken), row)
                for row in range(_count_rows(location, image_column))
            ]
        else:
            sources.append(ImageSource(location, name_apart(name, taken)))
    return sources


class PictureReader:
    """Reads pictures wherever they are.

    Neighbouring rows of a Parquet file lie in one row group, which is read as a whole; the last two are held
    in memory. Several threads may read at once.

    Args:
        image_column: of Parquet files.
    """

    def __init__(self, image_column: str = IMAGE_COLUMN) -> None:
        self.image_column = image_column
        self._row_groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def opener(self, source: ImageSource) -> Callable[[], Image.Image]:
        """What reads this picture when it is called."""
        return partial(self.read, source)

    def read(self, source: ImageSource) -> Image.Image:
        """The picture, upright and RGB.

        Raises:
            ImageLoadError: as :func:`~zsseg.image_loading.load_image`; it names the source.
        """
        if source.row is None:
            return open_picture(source.location, name=source.name)
        try:
            value = self._read_row(source.location, source.row)
        except (OSError, ValueError) as error:
            raise ImageLoadError(repr(source.name), f"its row cannot be read ({error})") from error
        return open_picture(value, name=source.name)

    def _read_row(self, location: str, row: int) -> Any:
        group, first = _find_row_group(location, row)
        with self._lock:
            values = self._row_groups.pop((location, group), None)
            if values is None:
                with _open_table(location) as table:
                    values = table.read_row_group(group, columns=[self.image_column])[self.image_column]
            self._row_groups[location, group] = values
            while len(self._row_groups) > HELD_ROW_GROUPS:
                self._row_groups.popitem(last=False)
        return values[row - first].as_py()


def open_picture(value: Any, *, name: str) -> Image.Image:
    """A picture from what a cell of a table holds.

    Args:
        value: bytes, a path, a URL, an array, or a mapping with ``bytes`` or ``path``.
        name: what errors call it.

    Raises:
        ImageLoadError: if it is none of these, or cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise ImageLoadError(repr(name), "the cell is empty (null); expected bytes or a path")
    try:
        if isinstance(value, str) and is_bucket_url(value):
            value = _read_bytes(value)
        return load_image(value)
    except ImageLoadError as error:
        raise ImageLoadError(repr(name), error.problem) from error
    except (OSError, ValueError, TypeError) as error:
        raise ImageLoadError(repr(name), f"it cannot be read ({error})") from error


def _expand(argument: str) -> Sequence[str]:
    if not is_bucket_url(argument):
        locations = expand_argument(argument, SUFFIXES)
        return locations if is_http_url(argument) else [os.path.abspath(location) for location in locations]
    file_system, path = _resolve(argument)
    if any(character in path for character in _URL_PATTERN_CHARACTERS):
        matches = ArrowFSWrapper(file_system).glob(path, detail=True)
        files = sorted(match for match, info in matches.items() if info["type"] == "file")
        if not files:
            raise unmatched_pattern(argument)
        return [_to_url(argument, file) for file in files]
    path = path.rstrip("/")
    if file_system.get_file_info(path).type is not FileType.Directory:
        return [_to_url(argument, path)]  # one that is missing is left to the reader
    files = sorted(
        found.path
        for found in file_system.get_file_info(FileSelector(path))
        if found.type is FileType.File and PurePosixPath(found.path).suffix.lower() in SUFFIXES
    )
    if not files:
        raise empty_folder(argument, SUFFIXES)
    return [_to_url(argument, file) for file in files]


def _to_url(sibling: str, path: str) -> str:
    """The URL of a path in the file system of another URL."""
    parts = urllib.parse.urlsplit(sibling)
    _, base = _open_root(_root(sibling))
    within = urllib.parse.quote(path.removeprefix(base.rstrip("/")), safe="/")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, within, parts.query, ""))


def _resolve(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL and the path in it."""
    file_system, base = _open_root(_root(url))
    return file_system, base.rstrip("/") + urllib.parse.unquote(urllib.parse.urlsplit(url).path)


def _root(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, "/", parts.query, ""))


@lru_cache(maxsize=16)
def _open_root(root: str) -> tuple[FileSystem, str]:
    # Once a bucket: to open one may ask its server where it is.
    try:
        return FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{root} cannot be opened ({error}); pyarrow knows s3://, gs://, hdfs://, …"
        ) from error


def _read_bytes(url: str) -> bytes:
    file_system, path = _resolve(url)
    with file_system.open_input_file(path) as file:
        return file.read()


def _open_table(location: str) -> pq.ParquetFile:
    if not is_bucket_url(location):
        return pq.ParquetFile(Path(location))
    file_system, path = _resolve(location)
    return pq.ParquetFile(path, filesystem=file_system)


def _count_rows(location: str, image_column: str) -> int:
    try:
        with _open_table(location) as table:
            schema = table.schema_arrow
            if image_column not in schema.names or not _holds_pictures(schema.field(image_column).type):
                columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
                raise ValueError(
                    f"{location} needs a column {image_column!r} of bytes, of paths, or of both as a struct "
                    f"(bytes, path), but has {columns}; name the right one as the image column"
                )
            return int(table.metadata.num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{location} is no whole Parquet file ({error}); write it again") from error


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name in ("bytes", "path") and _holds_pictures(field.type) for field in kind)
    return any(
        test(kind)
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_string,
            pa.types.is_large_string,
        )
    )


@lru_cache(maxsize=64)
def _row_group_ends(location: str) -> tuple[int, ...]:
    ends, end = [], 0
    with _open_table(location) as table:
        for group in range(table.metadata.num_row_groups):
            end += table.metadata.row_group(group).num_rows
            ends.append(end)
    return tuple(ends)


def _find_row_group(location: str, row: int) -> tuple[int, int]:
    """The row group that holds a row, and the first row of that group."""
    first = 0
    for group, end in enumerate(_row_group_ends(location)):
        if row < end:
            return group, first
        first = end
    raise ValueError(f"the file has {first} rows now; was it written anew since the pictures were listed?")
