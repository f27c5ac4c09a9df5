"""The protocols of the literature: labels, pictures in their official layout, tasks and averages, as data."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.examples import PanopticDataset
from zsseg.data.label_maps import LabelMapDataset
from zsseg.data.vocabularies import load_label_space, load_split
from zsseg.training.evaluation import Task
from zsseg.vocabulary import Vocabulary

_SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a data set's files lie once its archives are unpacked.

    Attributes:
        format: "coco-panoptic" or "label-maps".
        roots: folders, below the one that is given, that may hold the parts.
        parts: what is needed → the places where it may be, relative to a root.
        value_offset: what is added to a category id to get the value of its pixels; label maps only.
        ignored_values: pixels that do not count; label maps only.
    """

    format: str
    roots: Sequence[str]
    parts: Mapping[str, Sequence[str]]
    value_offset: int = 0
    ignored_values: Sequence[int] = ()

    def find(self, folder: Path) -> dict[str, Path]:
        """Where the parts are in a folder.

        Raises:
            FileNotFoundError: if a part is nowhere; says what is expected, what is there and what is missing.
        """
        found = [
            {
                name: next(
                    (folder / root / place for place in places if (folder / root / place).exists()), None
                )
                for name, places in self.parts.items()
            }
            for root in self.roots
        ]
        best = max(found, key=lambda paths: sum(path is not None for path in paths.values()))
        complete = {name: path for name, path in best.items() if path is not None}
        if len(complete) == len(self.parts):
            return complete
        missing = [" or ".join(self.parts[name]) for name in self.parts if name not in complete]
        present = [str(path.relative_to(folder)) for path in complete.values()]
        raise FileNotFoundError(
            f"expected {'; '.join(' or '.join(places) for places in self.parts.values())} in {folder}; "
            f"missing: {'; '.join(missing)}; found: {', '.join(present) or 'none of them'}; the folder holds "
            f"{_list(folder)}"
        )


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a benchmark is run and which of its figures are compared.

    Attributes:
        name: on the command line.
        title: what is measured.
        dataset: on which pictures.
        reference: where the protocol or its data come from.
        tasks: what is scored from one pass, the timed one first.
        num_images: how many pictures there are; more than one number where preparations differ.
        headline: the figures that papers compare, as the metrics name them; their names say how absent labels
            count.
        averages: the same in words.
        layout: of the files.
        downloads: where the files are to be had; nothing is downloaded here.
        split: the seen and unseen labels, or None.
        label_space: instead, labels that are all asked for alike.
    """

    name: str
    title: str
    dataset: str
    reference: str
    tasks: Sequence[Task]
    num_images: Sequence[int]
    headline: Sequence[str]
    averages: str
    layout: Layout
    downloads: Sequence[str]
    split: str | None = None
    label_space: str | None = None

    @classmethod
    def from_json(cls, name: str, content: Mapping[str, Any]) -> Self:
        """Read one entry of protocols.json."""
        return cls(**{**content, "name": name, "layout": Layout(**content["layout"])})

    def load_vocabulary(self, *, clean_names: bool = True) -> Vocabulary:
        """The labels, those of a split marked."""
        if self.split is not None:
            return load_split(self.split, clean_names=clean_names)
        return load_label_space(str(self.label_space), clean_names=clean_names)

    def open_dataset(self, folder: Path, *, clean_names: bool = True) -> PanopticDataset:
        """The pictures with their ground truth.

        Args:
            folder: what the data set's archives were unpacked into.
            clean_names: as of :func:`~zsseg.data.vocabularies.load_label_space`.

        Raises:
            FileNotFoundError: if files are missing; says what is expected, what was found and where the data
                set is to be had.
            ValueError: if files are not in their format.
        """
        try:
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder}")
            paths = self.layout.find(folder)
            return _READERS[self.layout.format](
                paths, self.load_vocabulary(clean_names=clean_names), self.layout
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the protocol {self.name} needs {self.dataset} as its archives unpack: {error}. "
                f"To be had from {', '.join(self.downloads)}"
            ) from error


def list_protocols() -> tuple[str, ...]:
    """Names that :func:`load_protocol` takes.

    Example:
        >>> list_protocols()
        ('coco-panoptic-119-14', 'coco-stuff-156-15', 'ade-150', 'pc-59', 'voc-20')
    """
    return tuple(_read_table())


def load_protocol(name: str) -> Protocol:
    """One of the protocols.

    Raises:
        ValueError: if there is no such protocol.

    Example:
        >>> load_protocol("voc-20").dataset
        'PASCAL VOC 2012 validation'
    """
    table = _read_table()
    if name not in table:
        raise ValueError(f"there is no protocol {name!r}; there are {', '.join(table)}")
    return Protocol.from_json(name, table[name])


def _read_coco_panoptic(paths: Mapping[str, Path], vocabulary: Vocabulary, layout: Layout) -> PanopticDataset:
    return CocoPanopticDataset(paths["annotations"], paths["images"], paths["maps"], vocabulary=vocabulary)


def _read_label_maps(paths: Mapping[str, Path], vocabulary: Vocabulary, layout: Layout) -> PanopticDataset:
    return LabelMapDataset(
        paths["images"],
        paths["maps"],
        vocabulary,
        list_file=paths.get("list"),
        value_offset=layout.value_offset,
        ignored_values=layout.ignored_values,
    )


_READERS: dict[str, Callable[[Mapping[str, Path], Vocabulary, Layout], PanopticDataset]] = {
    "coco-panoptic": _read_coco_panoptic,
    "label-maps": _read_label_maps,
}


@cache
def _read_table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        files("zsseg.training").joinpath("protocols.json").read_text("utf-8")
    )
    return content


def _list(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more if names else "nothing"
