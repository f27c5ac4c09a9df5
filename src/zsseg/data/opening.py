"""Opens whatever data set a name leads to: a folder or file in one of four layouts, or columns on the Hub."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsseg.data.annotation_files import DataProblem
from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.datasets_columns import HfPanopticDataset, UnnamedLabelsError
from zsseg.data.semantic_maps import IMAGE_SUFFIXES, SemanticMapDataset, read_class_file
from zsseg.data.streaming import SHUFFLE_BUFFER, StreamedPanopticDataset
from zsseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

OpenedDataset = SemanticMapDataset | CocoPanopticDataset | CocoInstanceDataset | HfPanopticDataset
Source = str | os.PathLike[str]

LAYOUTS = """a folder of images/, labels/ and classes.json (semantic maps);
a panoptic JSON, or a folder that holds one beside its PNGs and pictures, as COCO's does (annotations/ too);
an instance JSON, or a folder that holds one beside its pictures;
columns of the `datasets` library: a folder of save_to_disk, .parquet or .arrow files, or USER/NAME on the
Hub;
a folder of these, named train, val or validation, and test"""

_PART_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"} | {
    name: name for name in ("validation", "test")
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_YEAR = re.compile(r"[_-]?\d{4}$")
_SHARD_NUMBER = re.compile(r"-\d+-of-\d+$")
_ANNOTATION_KEY = re.compile(rb'"(?:(segments_info)"\s*:\s*\[|segmentation"\s*:\s*[\[{])')
_LONGEST_KEY = 64
_CHUNK_BYTES = 1024**2
_SHARD_SUFFIXES = (".parquet", ".arrow")
_SHOWN = 12


class SourceError(ValueError):
    """A name does not lead to one data set, or what else was said does not fit the one it leads to."""


class Layout(StrEnum):
    """How ground truth lies on disk."""

    COCO_PANOPTIC = "COCO panoptic"
    COCO_INSTANCES = "COCO instances"
    SEMANTIC_MAPS = "semantic maps"
    SAVED_COLUMNS = "a saved data set of the datasets library"
    SHARDS = "files of the datasets library"
    HUB = "a data set on the Hub"


@dataclass(frozen=True)
class DataLocation:
    """One data set that was found.

    Attributes:
        layout: how it is read.
        path: the JSON, the folder, or the name on the Hub.
        part: what it is a part of a data set for, such as "train", in the data set's own word; None if
            nothing says so.
        files: the files, where they are many.
        config: which configuration, on the Hub.
        revision: branch, tag or commit, on the Hub.
    """

    layout: Layout
    path: str
    part: str | None = None
    files: tuple[str, ...] = ()
    config: str | None = None
    revision: str | None = None


def open_dataset(
    source: Source | DataLocation,
    *,
    images: Source | None = None,
    panoptic: Source | None = None,
    part: str | None = None,
    default_part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    vocabulary: Vocabulary | None = None,
    clean_names: bool = True,
    problems: list[DataProblem] | None = None,
) -> OpenedDataset:
    """Open a data set with ground truth, recognised by what lies there.

    Semantic maps are ``images/``, ``labels/`` and ``classes.json``. A panoptic or instance JSON is read with
    the pictures beside it, see :func:`find_image_folder`; where a folder holds both kinds for the same
    pictures, as COCO's does, the panoptic one is read. Columns of the ``datasets`` library are those of
    :mod:`zsseg.data.datasets_columns`, and a ``classes.json`` beside them names labels that they do not. The
    label names, and which of them are things, come from the data.

    Args:
        source: a folder, a file, or ``USER/NAME`` of a data set on the Hub; or what :func:`find_dataset`
            found. What exists on disk is never looked up on the Hub.
        images: the pictures of a COCO JSON, if they are elsewhere.
        panoptic: the PNGs of a panoptic JSON, if they are elsewhere.
        part: "train", "validation" or "test" of a data set that has several, or the data set's own name for
            it; the ``datasets`` library calls it a split.
        default_part: what to take if there are several and ``part`` is None.
        config: which configuration of a data set on the Hub.
        revision: branch, tag or commit on the Hub.
        vocabulary: labels to use instead of the data set's, matched by category id.
        clean_names: clean the data set's names for text encoders.
        problems: takes what is wrong with single pictures or labels, which are then left out; None raises.

    Raises:
        FileNotFoundError: if there is nothing of that name, or files are missing.
        SourceError: if no layout fits, several data sets do, or there is no such part.
        ValueError: if the data are not as their layout asks.
    """
    location = _locate(source, part, default_part, config, revision)
    is_json = location.layout in (Layout.COCO_PANOPTIC, Layout.COCO_INSTANCES)
    if images is not None and not is_json:
        raise SourceError(
            f"{location.path} is {location.layout} with pictures of its own; leave the images out"
        )
    if panoptic is not None and location.layout is not Layout.COCO_PANOPTIC:
        raise SourceError(f"{location.path} is {location.layout}, which has no panoptic PNGs; leave them out")
    labels: dict[str, Any] = {"vocabulary": vocabulary, "clean_names": clean_names}
    if location.layout is Layout.SEMANTIC_MAPS:
        return SemanticMapDataset(location.path, **labels, problems=problems)
    if is_json:
        path = Path(location.path)
        pictures = find_image_folder(path, location.layout) if images is None else images
        if location.layout is Layout.COCO_INSTANCES:
            return CocoInstanceDataset(path, pictures, **labels, problems=problems)
        maps = find_panoptic_folder(path) if panoptic is None else panoptic
        return CocoPanopticDataset(path, pictures, maps, **labels, problems=problems)
    rows = _load_rows(location)
    try:
        return HfPanopticDataset(rows, **labels)
    except UnnamedLabelsError as error:
        return HfPanopticDataset(rows, _read_classes_beside(location, clean_names, error))
    except ValueError as error:
        raise ValueError(f"{location.path}: {error}") from error


def open_stream(
    source: Source | DataLocation,
    *,
    part: str | None = None,
    default_part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    vocabulary: Vocabulary | None = None,
    clean_names: bool = True,
    shuffle_buffer: int = SHUFFLE_BUFFER,
) -> StreamedPanopticDataset:
    """Open columns of the ``datasets`` library without downloading or indexing them first.

    Arguments as of :func:`open_dataset`.

    Args:
        source: ``USER/NAME`` on the Hub, a folder of ``save_to_disk``, or .parquet or .arrow files.
        part: "train", "validation" or "test", or the data set's own name for it.
        default_part: what to take if there are several and ``part`` is None.
        config: which configuration of a data set on the Hub.
        revision: branch, tag or commit on the Hub.
        vocabulary: labels to use instead of the data set's, matched by category id.
        clean_names: clean the data set's names for text encoders.
        shuffle_buffer: rows among which the next one is drawn.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        SourceError: if it is another kind of data set, or as for :func:`open_dataset`.
        ValueError: if the columns are not as they should be.
    """
    location = _locate(source, part, default_part, config, revision)
    if location.layout not in (Layout.SAVED_COLUMNS, Layout.SHARDS, Layout.HUB):
        raise SourceError(
            f"{location.path} is {location.layout}, which cannot be streamed and need not be: its pictures "
            "are read one by one, when they are needed. Leave streaming out, or write columns with "
            "zsseg.data.to_hf_dataset"
        )
    rows = _stream_rows(location)
    options: dict[str, Any] = {"shuffle_buffer": shuffle_buffer}
    try:
        return StreamedPanopticDataset(rows, vocabulary, clean_names=clean_names, **options)
    except UnnamedLabelsError as error:
        return StreamedPanopticDataset(rows, _read_classes_beside(location, clean_names, error), **options)
    except ValueError as error:
        raise ValueError(f"{location.path}: {error}") from error


def find_dataset(
    source: Source,
    *,
    part: str | None = None,
    default_part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> DataLocation:
    """The one data set that a name leads to; arguments and errors as of :func:`open_dataset`."""
    path = Path(source)
    if path.is_dir():
        locations = _list_locations(path) or _list_parts(path)
        if not locations:
            found = ", ".join(_list_names(path)) or "nothing"
            faults = "".join(f"; {each.name} {_describe_json(each)}" for each in _list_json(path)[:_SHOWN])
            raise SourceError(
                f"{path} holds no data set of a known layout; found {found}{faults}. Expected {LAYOUTS}"
            )
    elif path.is_file():
        locations = _recognise_file(path)
    elif _HUB_ID.fullmatch(os.fspath(source)):
        locations = _list_hub_parts(os.fspath(source), config, revision)
    else:
        raise FileNotFoundError(f"there is no folder or file {path}; expected {LAYOUTS}")
    if (config or revision) and locations[0].layout is not Layout.HUB:
        raise SourceError(
            f"{path} is on disk, where there are no configurations or revisions; leave them out"
        )
    return _choose(locations, str(source), part, default_part)


def _locate(
    source: Source | DataLocation,
    part: str | None,
    default_part: str | None,
    config: str | None,
    revision: str | None,
) -> DataLocation:
    if isinstance(source, DataLocation):
        return source
    return find_dataset(source, part=part, default_part=default_part, config=config, revision=revision)


def find_image_folder(annotation_json: Path, layout: Layout) -> Path:
    """Where the pictures of a COCO JSON usually lie.

    COCO has ``annotations/panoptic_val2017.json`` and ``val2017/``; small data sets have ``images/``, or the
    pictures beside the JSON.

    Args:
        annotation_json: panoptic or instances.
        layout: which of the two.

    Raises:
        SourceError: if there are no pictures in any of these places.
    """
    name = _strip_kind(annotation_json.stem)
    folder = annotation_json.parent
    folders = (folder, folder.resolve().parent)
    candidates = [base / each for base in folders for each in dict.fromkeys((name, "images"))]
    # The folder named exactly like a panoptic JSON holds its PNGs.
    is_panoptic = layout is Layout.COCO_PANOPTIC
    maps = {find_panoptic_folder(annotation_json), annotation_json.with_suffix("")} if is_panoptic else set()
    for candidate in candidates:
        if candidate.is_dir() and candidate not in maps:
            return candidate
    if _lists_picture_of(annotation_json, folder):
        return folder
    others = [entry.name for base in folders for entry in sorted(base.iterdir()) if entry.is_dir()]
    raise SourceError(
        f"no folder of pictures beside {annotation_json} (looked for {', '.join(map(str, candidates))}; the "
        f"folders there are {others[:_SHOWN]}); name it with --images (for "
        "--val: --val-images), in Python images="
    )


def _lists_picture_of(annotation_json: Path, folder: Path) -> bool:
    """Whether a JSON names one of the first pictures in a folder."""
    pictures = [path.name for path in _sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        return False
    text = annotation_json.read_bytes()
    return any(json.dumps(name).encode() in text for name in pictures[:_SHOWN])


def find_panoptic_folder(annotation_json: Path) -> Path:
    """The folder named like a panoptic JSON: beside it, or beside its folder."""
    beside = annotation_json.with_suffix("")
    above = annotation_json.resolve().parent.parent / annotation_json.stem
    return above if above.is_dir() and not beside.is_dir() else beside


def is_part(name: str | None, wanted: str) -> bool:
    """Whether a data set's own name for a part means the part that is wanted.

    Example:
        >>> is_part("val2017", "validation"), is_part("train", "validation"), is_part("fold_3", "fold_3")
        (True, False, True)
    """
    return name is not None and (name == wanted or _normalise(name) == _normalise(wanted))


def _normalise(part: str) -> str:
    plain = _YEAR.sub("", part.lower())
    return _PART_NAMES.get(plain, part)


def _choose(
    locations: Sequence[DataLocation], source: str, part: str | None, default_part: str | None
) -> DataLocation:
    with_maps = {each.part for each in locations if each.layout is Layout.COCO_PANOPTIC}
    chosen = [
        each for each in locations if each.layout is not Layout.COCO_INSTANCES or each.part not in with_maps
    ]
    found = "; ".join(f"{each.part or 'unnamed'} ({each.layout}, {each.path})" for each in chosen[:_SHOWN])
    wanted = part if part is not None or len(chosen) == 1 else default_part
    if wanted is not None:
        matching = [each for each in chosen if is_part(each.part, wanted)]
        chosen = [each for each in matching if each.part == wanted] or matching
        if not chosen:
            raise SourceError(f"{source} has no part {wanted!r}; it holds {found}")
    if len(chosen) > 1:
        raise SourceError(
            f"{source} holds several data sets: {found}. Name the path of one of them, or its part: --part "
            "NAME, in Python part="
        )
    (location,) = chosen
    if len(locations) > 1:
        logger.info("%s: reading %s (%s)", source, location.part or location.path, location.layout)
    return location


def _list_locations(folder: Path) -> list[DataLocation]:
    """The data sets that lie in a folder itself."""
    found = []
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        found.append(DataLocation(Layout.SEMANTIC_MAPS, str(folder)))
    if (folder / "dataset_dict.json").is_file():
        parts = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        found += [DataLocation(Layout.SAVED_COLUMNS, str(folder / part), part) for part in parts]
    elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        found.append(DataLocation(Layout.SAVED_COLUMNS, str(folder)))
    else:
        found += _list_shards(folder)
    for path in _list_json(folder):
        if layout := _recognise_json(path):
            found.append(DataLocation(layout, str(path), _name_part(path)))
    return found


def _list_parts(folder: Path) -> list[DataLocation]:
    """The data sets in the folders train, val and the like."""
    return [
        replace(location, part=child.name)
        for child in _sorted(folder.iterdir())
        if child.is_dir() and _YEAR.sub("", child.name.lower()) in _PART_NAMES
        for location in _list_locations(child)
    ]


def _list_json(folder: Path) -> list[Path]:
    return [*_sorted(folder.glob("*.json")), *_sorted(folder.glob("annotations/*.json"))]


def _describe_json(path: Path) -> str:
    """Why a JSON is not read as ground truth."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"is not valid JSON ({error}): download or write it again"
    if not isinstance(content, dict) or "annotations" not in content:
        return 'has no "annotations"'
    return "lists no annotation with a mask"


def _list_shards(folder: Path) -> list[DataLocation]:
    """Parquet and Arrow files in a folder or its ``data``, grouped by the part that begins their names."""
    groups: dict[str | None, list[str]] = {}
    for path in (*_sorted(folder.iterdir()), *_sorted(folder.glob("data/*"))):
        if path.suffix in _SHARD_SUFFIXES and path.is_file():
            groups.setdefault(_name_shard_part(path), []).append(str(path))
    return [DataLocation(Layout.SHARDS, str(folder), part, tuple(files)) for part, files in groups.items()]


def _name_shard_part(path: Path) -> str | None:
    name = _SHARD_NUMBER.sub("", path.stem)
    first = re.split(r"[-_.]", name)[0]
    return name if name in _PART_NAMES else first if first in _PART_NAMES else None


def _recognise_file(path: Path) -> list[DataLocation]:
    if path.suffix in _SHARD_SUFFIXES:
        return [DataLocation(Layout.SHARDS, str(path), files=(str(path),))]
    if path.suffix != ".json":
        raise ValueError(f"{path} is no annotation file; expected {LAYOUTS}")
    layout = _recognise_json(path)
    if layout is None:
        raise ValueError(
            f"{path} lists no annotation with 'segments_info' (COCO panoptic) or 'segmentation' (COCO "
            "instances), so there is no ground truth in it"
        )
    return [DataLocation(layout, str(path))]


def _recognise_json(path: Path) -> Layout | None:
    """Panoptic or instance format by the first key that only one of them has; nothing is parsed."""
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if match := _ANNOTATION_KEY.search(tail + chunk):
                return Layout.COCO_PANOPTIC if match[1] else Layout.COCO_INSTANCES
            tail = (tail + chunk)[-_LONGEST_KEY:]
    return None


def _strip_kind(stem: str) -> str:
    return stem.removeprefix("panoptic_").removeprefix("instances_")


def _name_part(annotation_json: Path) -> str | None:
    """The part that a JSON is named for: val2017 if it is ``panoptic_val2017.json``."""
    stem = annotation_json.stem
    return None if stem in ("panoptic", "instances") else _strip_kind(stem)


def _load_rows(location: DataLocation) -> "datasets.Dataset":
    import datasets

    if location.layout is Layout.SAVED_COLUMNS:
        return datasets.load_from_disk(location.path)
    if location.layout is Layout.SHARDS:
        return datasets.load_dataset(_builder(location), data_files=list(location.files), split="train")
    return datasets.load_dataset(
        location.path, location.config, split=location.part, revision=location.revision
    )


def _stream_rows(location: DataLocation) -> "datasets.IterableDataset":
    import datasets

    if location.layout is Layout.SAVED_COLUMNS:
        rows = datasets.load_from_disk(location.path)
        return rows.to_iterable_dataset(num_shards=max(1, len(rows.cache_files)))
    if location.layout is Layout.SHARDS:
        files = list(location.files)
        return datasets.load_dataset(_builder(location), data_files=files, split="train", streaming=True)
    return datasets.load_dataset(
        location.path, location.config, split=location.part, revision=location.revision, streaming=True
    )


def _builder(location: DataLocation) -> str:
    """The ``datasets`` library's name for the files' format."""
    suffixes = {Path(file).suffix for file in location.files}
    if len(suffixes) > 1:
        raise ValueError(f"{location.path} mixes {sorted(suffixes)} files; leave one kind there")
    return suffixes.pop().removeprefix(".")


def _list_hub_parts(name: str, config: str | None, revision: str | None) -> list[DataLocation]:
    import datasets

    try:
        parts = datasets.get_dataset_split_names(name, config, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"there is no folder or file {name}, and no data set of that name can be had from the Hub "
            f"({error}); check the name, and the connection if it is one of the Hub"
        ) from error
    return [DataLocation(Layout.HUB, name, part, (), config, revision) for part in parts]


def _read_classes_beside(location: DataLocation, clean_names: bool, error: UnnamedLabelsError) -> Vocabulary:
    folder = Path(location.path)
    for candidate in (folder / "classes.json", folder.parent / "classes.json"):
        if location.layout is not Layout.HUB and candidate.is_file():
            return read_class_file(candidate, clean_names=clean_names)
    raise ValueError(f"{location.path}: {error}") from error


def _list_names(folder: Path) -> Iterator[str]:
    for place, entry in enumerate(_sorted(folder.iterdir())):
        if place == _SHOWN:
            yield "…"
            return
        yield f"{entry.name}/" if entry.is_dir() else entry.name


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))
