"""Reading annotation JSON and checking that the files it names are there, before training starts."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

_SHOWN_NAMES = 5


def read_annotation_json(path: str | os.PathLike[str], required_keys: Collection[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, not an object, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file at {path}; check the path")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); copy or write it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    if missing := sorted(set(required_keys) - content.keys()):
        raise ValueError(
            f"{path} lacks {missing}; expected an object with {sorted(required_keys)}, "
            f"got {sorted(content)[:10]}"
        )
    return content


def require_keys(records: Iterable[Mapping[str, Any]], keys: Collection[str], where: str) -> None:
    """Check that every record of an annotation file has its keys.

    Raises:
        ValueError: naming the first record that lacks one.
    """
    for index, record in enumerate(records):
        if missing := [key for key in keys if key not in record]:
            raise ValueError(
                f"{where}[{index}] lacks {missing}; expected {sorted(keys)}, got {sorted(record)[:10]}"
            )


def list_folder(folder: str | os.PathLike[str], purpose: str) -> tuple[str, ...]:
    """The file names in a folder, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no {purpose} folder at {folder}; check the path")
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if not entry.is_dir()))


def require_files(folder: str | os.PathLike[str], names: Iterable[str], purpose: str) -> None:
    """Check that all named files are in a folder, with one listing instead of one look-up a file.

    Raises:
        FileNotFoundError: if the folder or a file is missing; counts them and names the first.
    """
    names = tuple(names)
    present = set(list_folder(folder, purpose))
    missing = [name for name in names if name not in present and not Path(folder, name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} {purpose} files are missing in {folder}: "
            f"{', '.join(missing[:_SHOWN_NAMES])}{', …' if len(missing) > _SHOWN_NAMES else ''}"
        )
