"""Panoptic ground truth as columns of the ``datasets`` library, for the Hub and for streaming.

Columns: ``image`` (picture), ``panoptic`` (RGB picture of segment ids, ``R + 256 G + 256² B``),
``segments_info`` (list of ``{id, category_id, isthing, iscrowd, area}``), ``image_id`` and ``file_name``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zsseg.data.examples import PanopticDataset, PanopticExample, SegmentLabel, build_target
from zsseg.image_loading import load_image
from zsseg.panoptic_format import id_to_rgb, rgb_to_id
from zsseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets

_ROW_COLUMNS = ("image", "panoptic", "segments_info", "image_id", "file_name")


def build_features(*, image_id_type: str = "int64") -> "datasets.Features":
    """The columns' types.

    Args:
        image_id_type: ``"int64"`` or ``"string"``.
    """
    import datasets

    segment = {
        "id": datasets.Value("int64"),
        "category_id": datasets.Value("int64"),
        "isthing": datasets.Value("bool"),
        "iscrowd": datasets.Value("bool"),
        "area": datasets.Value("int64"),
    }
    return datasets.Features(
        {
            "image": datasets.Image(),
            "panoptic": datasets.Image(),
            "segments_info": datasets.List(segment),
            "image_id": datasets.Value(image_id_type),
            "file_name": datasets.Value("string"),
        }
    )


def write_row(example: PanopticExample, vocabulary: Vocabulary) -> dict[str, Any]:
    """One example as a row.

    Raises:
        ValueError: if a label in use has no ``category_id``.
    """
    segments = []
    for segment in example.target.segments:
        category = vocabulary[segment.label_id]
        if category.category_id is None:
            raise ValueError(
                f"label {category.name!r} has no category_id, which the columns need; give the vocabulary's "
                "categories their ids"
            )
        segments.append(
            {
                "id": segment.id,
                "category_id": category.category_id,
                "isthing": segment.isthing,
                "iscrowd": segment.iscrowd,
                "area": segment.area,
            }
        )
    return {
        "image": example.image,
        "panoptic": Image.fromarray(id_to_rgb(example.target.segment_ids)),
        "segments_info": segments,
        "image_id": example.image_id,
        "file_name": example.file_name,
    }


def read_row(row: Mapping[str, Any], vocabulary: Vocabulary) -> PanopticExample:
    """One row as an example; the inverse of :func:`write_row`.

    Raises:
        ValueError: if a column is missing, a category is not in the vocabulary, or ids and pixels disagree.
    """
    if missing := sorted(set(_ROW_COLUMNS) - set(row)):
        raise ValueError(f"the row lacks the columns {missing}; it has {sorted(row)}")
    name = row["file_name"]
    segment_ids = rgb_to_id(np.asarray(row["panoptic"]))
    by_category_id = vocabulary.label_id_by_category_id
    labels = {}
    for segment in row["segments_info"]:
        if segment["category_id"] not in by_category_id:
            raise ValueError(
                f"{name}: category_id {segment['category_id']} is not in the vocabulary of "
                f"{len(vocabulary)} labels; pass the data set's own vocabulary"
            )
        labels[segment["id"]] = SegmentLabel(by_category_id[segment["category_id"]], segment["iscrowd"])
    try:
        target = build_target(segment_ids, labels, vocabulary)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if absent := sorted(labels.keys() - {segment.id for segment in target.segments}):
        raise ValueError(f"{name}: the map holds no pixel of the listed segments {absent[:10]}")
    return PanopticExample(load_image(row["image"]), target, row["image_id"], name)


def to_hf_dataset(dataset: PanopticDataset, *, cache_dir: str | None = None) -> "datasets.Dataset":
    """Write a data set into columns; pictures and maps are stored as PNG, so nothing is lost.

    Args:
        dataset: any reader of this package; its vocabulary needs category ids. Publish the vocabulary too.
        cache_dir: where the Arrow files go; by default the ``datasets`` cache.

    Raises:
        ValueError: if the data set is empty or a label in use has no category id.
    """
    import datasets

    if not len(dataset):
        raise ValueError("the data set is empty, so there is nothing to write")
    image_id_type = "int64" if isinstance(dataset[0].image_id, int) else "string"
    # A fingerprint of its own each time: the library's would come from the paths and survive changed files.
    return datasets.Dataset.from_generator(
        _Rows(dataset),
        features=build_features(image_id_type=image_id_type),
        cache_dir=cache_dir,
        fingerprint=datasets.fingerprint.generate_random_fingerprint(),
    )


class _Rows:
    """A picklable generator function over a data set's rows."""

    def __init__(self, dataset: PanopticDataset) -> None:
        self._dataset = dataset

    def __call__(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self._dataset)):
            yield write_row(self._dataset[index], self._dataset.vocabulary)


class HfPanopticDataset:
    """Columns of the ``datasets`` library as a data set of this package.

    For a streamed ``IterableDataset`` use :func:`iterate_rows`.

    Args:
        dataset: a map-style ``datasets.Dataset`` with the columns of this module.
        vocabulary: its labels, with category ids.
    """

    def __init__(self, dataset: "datasets.Dataset", vocabulary: Vocabulary) -> None:
        if missing := sorted(set(_ROW_COLUMNS) - set(dataset.column_names)):
            raise ValueError(f"the data set lacks the columns {missing}; it has {dataset.column_names}")
        self.vocabulary = vocabulary
        self._rows = dataset
        self._segments = dataset.select_columns(["segments_info"])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PanopticExample:
        return read_row(self._rows[index], self.vocabulary)

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids listed in one row."""
        by_category_id = self.vocabulary.label_id_by_category_id
        return frozenset(by_category_id[s["category_id"]] for s in self._segments[index]["segments_info"])


def iterate_rows(rows: Iterable[Mapping[str, Any]], vocabulary: Vocabulary) -> Iterator[PanopticExample]:
    """Read rows as they stream in."""
    for row in rows:
        yield read_row(row, vocabulary)
