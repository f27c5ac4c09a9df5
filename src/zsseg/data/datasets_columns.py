"""Panoptic ground truth as columns of the ``datasets`` library, for the Hub and for streaming.

Columns: ``image`` (picture), ``panoptic`` (RGB picture of segment ids, ``R + 256 G + 256² B``),
``segments_info`` (list of ``{id, category_id, category, isthing, iscrowd, area}``), ``image_id`` and
``file_name``.

All that the library keeps of a data set in a parquet file, beside its rows, is the types of its columns. So
the labels travel in one of these: ``category`` is a ``ClassLabel``, and the text of each class says all of a
label, such as ``"3: car|automobile (thing)"``.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.data.annotation_files import CHECK_HINT
from zsseg.data.examples import PanopticDataset, PanopticExample, SegmentLabel, build_target
from zsseg.data.vocabularies import clean_category_name, clean_category_texts
from zsseg.image_loading import load_image
from zsseg.panoptic_format import decode_panoptic_png, id_to_rgb, rgb_to_id
from zsseg.structures import VOID_ID
from zsseg.vocabulary import SYNONYM_SEPARATOR, Category, Vocabulary

if TYPE_CHECKING:
    import datasets

Rows = TypeVar("Rows", bound="datasets.Dataset | datasets.IterableDataset")
_NEEDED_COLUMNS = ("image", "panoptic", "segments_info")
_CATEGORY_TEXT = re.compile(
    r"(?P<id>-?\d+): (?P<texts>.+) \((?P<kind>thing|stuff)(?P<unseen>, unseen)?\)", re.DOTALL
)


class UnnamedLabelsError(ValueError):
    """Columns whose types say no label names."""


def build_features(vocabulary: Vocabulary, *, image_id_type: str = "int64") -> "datasets.Features":
    """The columns' types, the labels among them.

    Args:
        vocabulary: its categories need ids.
        image_id_type: ``"int64"`` or ``"string"``.

    Raises:
        ValueError: if a category has no id.
    """
    import datasets

    segment = {
        "id": datasets.Value("int64"),
        "category_id": datasets.Value("int64"),
        "category": datasets.ClassLabel(names=[format_category(category) for category in vocabulary]),
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


def format_category(category: Category) -> str:
    """All of a label in one line.

    Raises:
        ValueError: if it has no id, or a text holds what separates synonyms.

    Example:
        >>> format_category(Category("car", ("automobile",), category_id=3))
        '3: car|automobile (thing)'
    """
    if any(SYNONYM_SEPARATOR in text for text in category.texts):
        raise ValueError(
            f"the columns cannot hold the label {category.texts!r}: {SYNONYM_SEPARATOR!r} separates synonyms"
        )
    kind = "thing" if category.is_thing else "stuff"
    unseen = "" if category.is_seen else ", unseen"
    return f"{_require_id(category)}: {category.spelling} ({kind}{unseen})"


def parse_category(text: str) -> Category:
    """The inverse of :func:`format_category`.

    Raises:
        ValueError: if the text is not of that form.

    Example:
        >>> parse_category("149: road (stuff, unseen)")
        Category(name='road', synonyms=(), is_thing=False, is_seen=False, category_id=149)
    """
    match = _CATEGORY_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f'a category must read like "3: car|automobile (thing)", got {text!r}')
    name, *synonyms = match["texts"].split(SYNONYM_SEPARATOR)
    return Category(
        name,
        tuple(synonyms),
        is_thing=match["kind"] == "thing",
        is_seen=match["unseen"] is None,
        category_id=int(match["id"]),
    )


def read_vocabulary(
    features: "datasets.Features",
    rows: "datasets.Dataset | None" = None,
    *,
    clean_names: bool = False,
) -> Vocabulary:
    """The labels that columns carry.

    Either :func:`build_features` wrote them; or ``category_id`` is a ``ClassLabel``, whose classes are the
    labels' names, and ``isthing`` says of each segment whether its label is a thing. Of the second kind,
    labels that never occur count as stuff.

    Args:
        features: the columns' types.
        rows: where to look for ``isthing``; all their ``segments_info`` are read, but no picture.
        clean_names: clean the names for text encoders ("tree-merged" → "tree").

    Raises:
        UnnamedLabelsError: if the types name no labels.
        ValueError: if nothing says which labels are things, or the segments contradict each other.
    """
    _require_columns(features)
    segment = getattr(features["segments_info"], "feature", None)
    if not isinstance(segment, Mapping) or not {"id", "category_id"} <= set(segment):
        raise ValueError(
            "the column segments_info must hold a list of {id, category_id, isthing, iscrowd} for each "
            f"picture, got {features['segments_info']}"
        )
    if names := getattr(segment.get("category"), "names", None):
        categories = [parse_category(text) for text in names]
    elif names := getattr(segment["category_id"], "names", None):
        things = _find_things(segment, rows)
        categories = [
            Category(name, is_thing=label_id in things, category_id=label_id)
            for label_id, name in enumerate(names)
        ]
    else:
        raise UnnamedLabelsError(
            "the columns give category ids but no label names: write them with zsseg.data.to_hf_dataset, "
            "make segments_info's category_id a ClassLabel, put a classes.json beside the files, or name a "
            "split or vocabulary of the same category ids"
        )
    return Vocabulary(tuple(_clean(category) if clean_names else category for category in categories))


def write_row(example: PanopticExample, vocabulary: Vocabulary) -> dict[str, Any]:
    """One example as a row.

    Raises:
        ValueError: if a label in use has no ``category_id``.
    """
    segments = []
    for segment in example.target.segments:
        category = vocabulary[segment.label_id]
        segments.append(
            {
                "id": segment.id,
                "category_id": _require_id(category),
                "category": segment.label_id,
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


def read_row(
    row: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    void_category_ids: Collection[int] = (),
    position: int | None = None,
) -> PanopticExample:
    """One row as an example; the inverse of :func:`write_row`.

    Args:
        row: its columns; ``image_id`` and ``file_name`` may be missing.
        vocabulary: the labels, matched by category id.
        void_category_ids: categories whose segments become void.
        position: of the row; names it if it has no ``image_id`` or ``file_name``.

    Raises:
        ValueError: if a column is missing or empty, a category is not in the vocabulary, or ids and pixels
            disagree.
    """
    _require_columns(row)
    image_id = row.get("image_id")
    if image_id is None:
        image_id = compute_row_name(row) if position is None else position
    name = row.get("file_name") or f"{image_id}"
    try:
        segment_ids = _read_map(row["panoptic"])
        labels = _read_segments(row["segments_info"], vocabulary, void_category_ids)
        listed = [segment["id"] for segment in row["segments_info"]]
        faults = []
        present = set(np.unique(segment_ids).tolist()) - {VOID_ID}
        if unlisted := sorted(present - set(listed)):
            faults.append(f"pixels carry segment ids that are not listed: {unlisted[:10]}")
        if absent := sorted(set(listed) - present):
            faults.append(f"the map holds no pixel of the listed segments {absent[:10]}")
        if faults:
            raise ValueError("; ".join(faults))
        if void := sorted(set(listed) - labels.keys()):
            segment_ids = np.where(np.isin(segment_ids, void), np.int32(VOID_ID), segment_ids)
        target = build_target(segment_ids, labels, vocabulary)
        image = _read_picture(row["image"])
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {CHECK_HINT}") from error
    return PanopticExample(image, target, image_id, name)


def compute_row_name(row: Mapping[str, Any]) -> str:
    """A name for a row that has none: it changes with the bytes of its picture."""
    image = row["image"]
    data = image["bytes"] if isinstance(image, Mapping) else None
    return hashlib.sha256(load_image(image).tobytes() if data is None else data).hexdigest()[:16]


def store_undecoded(rows: Rows) -> Rows:
    """The same rows with pictures and maps as they are stored, ``{"bytes", "path"}``.

    :func:`read_row` decodes them: it sees what a decoded picture no longer says, such as 16 bits a channel,
    and rows that nobody reads cost nothing.
    """
    import datasets

    for column in ("image", "panoptic"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def to_hf_dataset(dataset: PanopticDataset, *, cache_dir: str | None = None) -> "datasets.Dataset":
    """Write a data set into columns; pictures and maps are stored as PNG, so nothing is lost.

    The vocabulary goes into the types of the columns, and with them wherever the columns go: ``push_to_hub``,
    ``save_to_disk``, ``to_parquet``.

    Args:
        dataset: any reader of this package; its vocabulary needs category ids.
        cache_dir: where the Arrow files go; by default the ``datasets`` cache.

    Raises:
        ValueError: if the data set is empty or a label has no category id.
    """
    import datasets

    if not len(dataset):
        raise ValueError("the data set is empty, so there is nothing to write")
    image_id_type = "int64" if isinstance(dataset[0].image_id, int) else "string"
    # A fingerprint of its own each time: the library's would come from the paths and survive changed files.
    return datasets.Dataset.from_generator(
        _Rows(dataset),
        features=build_features(dataset.vocabulary, image_id_type=image_id_type),
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

    For a streamed ``IterableDataset`` use
    :class:`~zsseg.data.streaming.StreamedPanopticDataset`.

    Args:
        dataset: a map-style ``datasets.Dataset`` with the columns of this module.
        vocabulary: labels to use instead of those that the columns carry, matched by category id; segments
            of categories that the columns name and it lacks become void.
        clean_names: clean the names that the columns carry for text encoders.

    Attributes:
        vocabulary: the labels that targets refer to.

    Raises:
        ValueError: if a column or a row is missing, or as for :func:`read_vocabulary`.
    """

    def __init__(
        self,
        dataset: "datasets.Dataset",
        vocabulary: Vocabulary | None = None,
        *,
        clean_names: bool = False,
    ) -> None:
        _require_columns(dataset.features)
        if not len(dataset):
            raise ValueError("the data set has no row, so there is no picture with ground truth")
        self.vocabulary = (
            read_vocabulary(dataset.features, dataset, clean_names=clean_names)
            if vocabulary is None
            else vocabulary
        )
        self._void_category_ids = find_void_category_ids(dataset.features, self.vocabulary)
        self._rows = store_undecoded(dataset)
        self._segments = dataset.select_columns(["segments_info"])

    @property
    def file_names(self) -> tuple[str, ...]:
        """Of the pictures; the number of the row where there is none."""
        if "file_name" not in self._rows.column_names:
            return tuple(map(str, range(len(self._rows))))
        return tuple(name or f"{i}" for i, name in enumerate(self._rows["file_name"]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PanopticExample:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"index must lie in [0, {len(self._rows)}), got {index}")
        return read_row(
            self._rows[index],
            self.vocabulary,
            void_category_ids=self._void_category_ids,
            position=index,
        )

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids listed in one row."""
        by_category_id = self.vocabulary.label_id_by_category_id
        category_ids = {segment["category_id"] for segment in self._segments[index]["segments_info"]}
        return frozenset(by_category_id[i] for i in category_ids - self._void_category_ids)


def find_void_category_ids(features: "datasets.Features", vocabulary: Vocabulary) -> frozenset[int]:
    """Categories that columns name and a vocabulary lacks.

    Raises:
        ValueError: if it lacks them all, which means that the vocabulary belongs to another data set.
    """
    segment = features["segments_info"].feature
    if names := getattr(segment.get("category"), "names", None):
        named = {_require_id(parse_category(text)) for text in names}
    else:
        named = set(range(len(getattr(segment["category_id"], "names", None) or ())))
    known = vocabulary.label_id_by_category_id.keys()
    if named and not named & known:
        raise ValueError(
            f"no category id of the columns is in the vocabulary: expected some of {sorted(named)[:10]}, got "
            f"{sorted(known)[:10]}"
        )
    return frozenset(named - known)


def iterate_rows(rows: Iterable[Mapping[str, Any]], vocabulary: Vocabulary) -> Iterator[PanopticExample]:
    """Read rows as they stream in."""
    for row in rows:
        yield read_row(row, vocabulary)


def _read_picture(value: Any) -> Image.Image:
    """A stored picture, or one that is open already."""
    if value is None:
        raise ValueError("the row has no picture")
    if not isinstance(value, Mapping):
        return load_image(value)
    if value["bytes"] is None:
        import datasets

        # Paths may lead into archives and to the Hub, which the library knows how to open.
        return load_image(datasets.Image().decode_example(value))
    return load_image(value["bytes"])


def _read_map(value: Any) -> NDArray[np.int32]:
    """(H, W) segment ids of a stored map, or of one that is open already."""
    if value is None:
        raise ValueError("the row has no map")
    if isinstance(value, Mapping) and value["bytes"] is not None:
        return decode_panoptic_png(value["bytes"], name="the map")
    if isinstance(value, Mapping):
        import datasets

        value = datasets.Image().decode_example(value)
    if value.mode != "RGB":
        raise ValueError(
            "the map must be an 8-bit RGB picture (segment id = R + 256 G + 256² B), got Pillow mode "
            f"{value.mode!r}"
        )
    return rgb_to_id(np.asarray(value))


def _read_segments(
    segments_info: Iterable[Mapping[str, Any]], vocabulary: Vocabulary, void_category_ids: Collection[int]
) -> dict[int, SegmentLabel]:
    by_category_id = vocabulary.label_id_by_category_id
    id_counts = Counter(segment["id"] for segment in segments_info)
    if repeated := [segment_id for segment_id, count in id_counts.items() if count > 1]:
        raise ValueError(f"several segments have the same id: {repeated[:10]}")
    labels = {}
    for segment in segments_info:
        category_id = segment["category_id"]
        if category_id in by_category_id:
            iscrowd = bool(segment.get("iscrowd", False))
            labels[segment["id"]] = SegmentLabel(by_category_id[category_id], iscrowd)
        elif category_id not in void_category_ids:
            raise ValueError(
                f"category_id {category_id} is not in the vocabulary of {len(vocabulary)} labels; pass the "
                "data set's own vocabulary"
            )
    return labels


def _find_things(segment: Mapping[str, Any], rows: "datasets.Dataset | None") -> frozenset[int]:
    """Label ids whose segments all say ``isthing``."""
    if rows is None or "isthing" not in segment:
        raise ValueError(
            "nothing says which labels are things: write the columns with zsseg.data.to_hf_dataset, or put a "
            "classes.json beside the files"
            + ("" if "isthing" not in segment else ", or read them without streaming")
        )
    kinds: dict[int, set[bool]] = defaultdict(set)
    for row in rows.select_columns(["segments_info"]):
        for info in row["segments_info"]:
            kinds[info["category_id"]].add(bool(info["isthing"]))
    if torn := sorted(category_id for category_id, each in kinds.items() if len(each) > 1):
        names = [segment["category_id"].names[category_id] for category_id in torn[:10]]
        raise ValueError(f"some segments say that these labels are things, others that not: {names}")
    return frozenset(category_id for category_id, each in kinds.items() if True in each)


def _require_columns(columns: Iterable[str]) -> None:
    present = sorted(columns)
    if missing := sorted(set(_NEEDED_COLUMNS) - set(present)):
        raise ValueError(f"the data set lacks the columns {missing}; it has {present}")


def _require_id(category: Category) -> int:
    if category.category_id is None:
        raise ValueError(
            f"label {category.name!r} has no category_id, which the columns need; give the vocabulary's "
            "categories their ids"
        )
    return category.category_id


def _clean(category: Category) -> Category:
    name, *synonyms = clean_category_texts(category.name)
    synonyms += [clean_category_name(synonym) for synonym in category.synonyms]
    return Category(
        name,
        tuple(dict.fromkeys(synonyms)),
        is_thing=category.is_thing,
        is_seen=category.is_seen,
        category_id=category.category_id,
    )
