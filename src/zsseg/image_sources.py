"""Which pictures names stand for, and what their results are called."""

import glob
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
PARQUET_SUFFIX = ".parquet"
_GLOB_CHARACTERS = "*?["
_URL_PREFIXES = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One picture to segment.

    Attributes:
        location: a path or URL.
        file_name: the name its results refer to; unlike every other one even without its suffix.
        row: where the location is a table, the picture's row in it, from 0.
    """

    location: str
    file_name: str
    row: int | None = None

    @property
    def stem(self) -> str:
        """The file name without its suffix: what result files begin with."""
        return Path(self.file_name).stem

    @property
    def name(self) -> str:
        """What messages call it: the location, for a row of a table with ``#row``."""
        return self.location if self.row is None else f"{self.location}#{self.row}"


def find_images(arguments: Sequence[str]) -> list[ImageSource]:
    """Expand files, folders, patterns and URLs, in order, every picture once.

    A folder means the pictures in it, not those in folders below; a pattern such as ``"photos/**/*.jpg"``
    reaches them. A file that does not exist is kept: whoever reads it reports it.

    Raises:
        FileNotFoundError: if a folder holds no picture or a pattern matches no file.
    """
    locations = dict.fromkeys(location for argument in arguments for location in expand_argument(argument))
    taken: dict[str, int] = {}
    return [ImageSource(location, name_apart(base_name(location), taken)) for location in locations]


def is_http_url(location: str) -> bool:
    """Whether it is downloaded rather than opened."""
    return location.lower().startswith(_URL_PREFIXES)


def is_bucket_url(location: str) -> bool:
    """Whether it lies in a storage that is neither a disk nor a web page, such as ``s3://bucket/picture.png``."""
    return "://" in location and not is_http_url(location)


def is_table(location: str) -> bool:
    """Whether it is a Parquet file, to go by its name."""
    return not is_http_url(location) and base_name(location).lower().endswith(PARQUET_SUFFIX)


def expand_argument(argument: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """The files of one file, folder, pattern or URL, as for :func:`find_images`.

    Args:
        argument: what was typed.
        suffixes: of the files that a folder stands for, in lower case.

    Raises:
        FileNotFoundError: if a folder holds no such file or a pattern matches none.
    """
    if is_http_url(argument):
        return [argument]
    path = Path(argument)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file()]
        if not files:
            raise empty_folder(argument, suffixes)
        return [str(file) for file in sorted(files)]
    if not path.exists() and any(character in argument for character in _GLOB_CHARACTERS):
        matches = sorted(match for match in glob.glob(argument, recursive=True) if os.path.isfile(match))
        if not matches:
            raise unmatched_pattern(argument)
        return [str(Path(match)) for match in matches]
    return [str(path)]


def empty_folder(argument: str, suffixes: Sequence[str]) -> FileNotFoundError:
    """The error of a folder without pictures."""
    return FileNotFoundError(
        f"the folder {argument} holds no picture ({', '.join(suffixes)}); "
        "to look into folders below it, pass a pattern such as 'photos/**/*.jpg'"
    )


def unmatched_pattern(argument: str) -> FileNotFoundError:
    """The error of a pattern that stands for nothing."""
    return FileNotFoundError(f"no file matches the pattern {argument!r}; check it and the folder")


def base_name(location: str) -> str:
    """A file name for the results of a path or URL."""
    if "://" not in location:
        return Path(location).name
    name = urllib.parse.unquote(urllib.parse.urlsplit(location).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\- ]", "_", name).strip(". ") or "picture"


def name_apart(name: str, taken: dict[str, int]) -> str:
    """The name, numbered if its stem is taken; file systems may not tell upper from lower case.

    Args:
        name: a file name.
        taken: stems in use → the last number that was put behind them; the name is added.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    unused = stem
    while unused.casefold() in taken:
        taken[stem.casefold()] += 1
        unused = f"{stem}-{taken[stem.casefold()]}"
    taken[unused.casefold()] = 1
    return unused + suffix
