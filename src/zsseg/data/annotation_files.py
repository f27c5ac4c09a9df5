"""Reading annotation JSON and checking it and the files it names, before training starts."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECK_HINT = "`zsseg data check` lists every problem of a data set"
_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class DataProblem:
    """What is wrong with one file, or with one picture of a data set.

    Attributes:
        file_name: the picture, or the annotation file that everything depends on.
        reason: what is wrong, and where it is not obvious how to mend it.
    """

    file_name: str
    reason: str


Fault = tuple[int, DataProblem]
"""The position of a faulty record in its list, and what is wrong with it."""


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


def settle_faults(
    faults: Iterable[Fault], problems: list[DataProblem] | None, where: str | os.PathLike[str]
) -> frozenset[int]:
    """Raise for the first fault, or note all of them.

    Args:
        faults: what was found.
        problems: takes them all; None raises for the first.
        where: the annotation file, for the error.

    Returns:
        Positions of the faulty records.

    Raises:
        ValueError: for the first fault, if there is nowhere to note it.
    """
    if problems is None:
        for _, problem in faults:
            raise ValueError(f"{where}: {problem.file_name}: {problem.reason}; {CHECK_HINT}")
        return frozenset()
    found = list(faults)
    # Two records that contradict each other say the same of their picture.
    problems += dict.fromkeys(problem for _, problem in found)
    return frozenset(position for position, _ in found)


def find_repeated_images(images: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Entries of ``images`` that share their id or their file name with another one."""
    id_counts = Counter(image["id"] for image in images)
    name_counts = Counter(image["file_name"] for image in images)
    for position, image in enumerate(images):
        name = image["file_name"]
        if (count := id_counts[image["id"]]) > 1:
            yield position, DataProblem(name, f"{count} entries of 'images' have its id {image['id']}")
        if (count := name_counts[name]) > 1:
            yield position, DataProblem(name, f"'images' lists this file {count} times")


def keep_named(
    categories: Sequence[Mapping[str, Any]],
    problems: list[DataProblem] | None,
    where: str | os.PathLike[str],
) -> Sequence[Mapping[str, Any]]:
    """The entries that have a name, the others noted; all of them if there is nowhere to note any.

    Args:
        categories: entries of a class list.
        problems: takes those without a name; None leaves them to
            :func:`~zsseg.data.vocabularies.build_vocabulary`, which raises.
        where: the file that lists them.
    """
    if problems is None:
        return categories
    named = []
    for position, category in enumerate(categories):
        if str(category.get("name", "")).strip():
            named.append(category)
        else:
            reason = f"the label of category id {category.get('id')} (entry {position}) has no name"
            problems.append(DataProblem(Path(where).name, reason))
    return named


def list_folder(folder: str | os.PathLike[str], purpose: str) -> tuple[str, ...]:
    """The file names in a folder, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no {purpose} folder at {folder}; check the path")
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if not entry.is_dir()))


def require_files(
    folder: str | os.PathLike[str],
    names: Iterable[str],
    purpose: str,
    problems: list[DataProblem] | None = None,
) -> frozenset[str]:
    """Check that all named files are in a folder, with one listing instead of one look-up a file.

    Args:
        folder: where they should be.
        names: relative to it.
        purpose: what the files are, for the error.
        problems: takes a problem for each that is missing; None raises.

    Returns:
        The names that are missing.

    Raises:
        FileNotFoundError: if the folder is missing, or a file and there is nowhere to note it; counts them
            and names the first.
    """
    names = tuple(names)
    present = set(list_folder(folder, purpose))
    missing = [name for name in names if name not in present and not Path(folder, name).is_file()]
    if missing and problems is None:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} {purpose} files are missing in {folder}: "
            f"{', '.join(missing[:_SHOWN_NAMES])}{', …' if len(missing) > _SHOWN_NAMES else ''}"
        )
    if problems is not None:
        problems += [DataProblem(name, f"this {purpose} file is missing in {folder}") for name in missing]
    return frozenset(missing)
