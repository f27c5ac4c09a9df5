"""Which pictures the arguments of a command mean, and what their results are called."""

import glob
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GLOB_CHARACTERS = "*?["
_URL_PREFIXES = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One picture to segment.

    Attributes:
        location: a path or URL.
        file_name: the name its results refer to; unlike every other one even without its suffix.
    """

    location: str
    file_name: str

    @property
    def stem(self) -> str:
        """The file name without its suffix: what result files begin with."""
        return Path(self.file_name).stem


def find_images(arguments: Sequence[str]) -> list[ImageSource]:
    """Expand files, folders, patterns and URLs, in order, every picture once.

    A folder means the pictures in it, not those in folders below; a pattern such as ``"photos/**/*.jpg"``
    reaches them. A file that does not exist is kept: whoever reads it reports it.

    Raises:
        FileNotFoundError: if a folder holds no picture or a pattern matches no file.
    """
    locations = dict.fromkeys(location for argument in arguments for location in _expand(argument))
    taken: set[str] = set()
    return [ImageSource(location, _name_apart(_base_name(location), taken)) for location in locations]


def _expand(argument: str) -> list[str]:
    if argument.lower().startswith(_URL_PREFIXES):
        return [argument]
    path = Path(argument)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not files:
            raise FileNotFoundError(
                f"the folder {argument} holds no picture ({', '.join(IMAGE_SUFFIXES)}); "
                "to look into folders below it, pass a pattern such as 'photos/**/*.jpg'"
            )
        return [str(file) for file in sorted(files)]
    if not path.exists() and any(character in argument for character in _GLOB_CHARACTERS):
        matches = sorted(match for match in glob.glob(argument, recursive=True) if os.path.isfile(match))
        if not matches:
            raise FileNotFoundError(f"no file matches the pattern {argument!r}; check it and the folder")
        return [str(Path(match)) for match in matches]
    return [str(path)]


def _base_name(location: str) -> str:
    if not location.lower().startswith(_URL_PREFIXES):
        return Path(location).name
    name = urllib.parse.unquote(urllib.parse.urlsplit(location).path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\- ]", "_", name).strip(". ") or "picture"


def _name_apart(name: str, taken: set[str]) -> str:
    """The name, numbered if its stem is taken; file systems may not tell upper from lower case."""
    stem, suffix = Path(name).stem, Path(name).suffix
    unused, number = stem, 1
    while unused.casefold() in taken:
        number += 1
        unused = f"{stem}-{number}"
    taken.add(unused.casefold())
    return unused + suffix
