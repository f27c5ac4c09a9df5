"""Semantic maps: one label a pixel, without instances; the reader and both conversions."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from zsseg.data.annotation_files import (
    CHECK_HINT,
    DataProblem,
    keep_named,
    list_folder,
    read_annotation_json,
)
from zsseg.data.examples import IGNORE_INDEX, PanopticExample, SegmentLabel, build_target
from zsseg.data.vocabularies import build_vocabulary, clean_category_texts, mark_unseen
from zsseg.image_loading import load_image
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_LABEL_MODES = ("L", "P", "I", "I;16", "I;16B")
_SHOWN = 5


def convert_semantic_to_panoptic(
    semantic_map: NDArray[np.integer[Any]], vocabulary: Vocabulary, *, ignore_index: int = IGNORE_INDEX
) -> PanopticSegmentation:
    """Make one segment of every label present; its id is the label id + 1.

    Things that touch or repeat become one segment too: a semantic map does not tell instances apart.

    Args:
        semantic_map: (H, W) label ids.
        vocabulary: the labels.
        ignore_index: pixels of this value become void.

    Raises:
        ValueError: if a pixel holds neither a label id nor ``ignore_index``.
    """
    known = semantic_map != ignore_index
    label_ids = semantic_map[known]
    if label_ids.size and not 0 <= label_ids.min() <= label_ids.max() < len(vocabulary):
        wrong = [value for value in np.unique(label_ids).tolist() if not 0 <= value < len(vocabulary)]
        raise ValueError(
            f"a semantic map must hold label ids in [0, {len(vocabulary)}) or {ignore_index} for unknown "
            f"pixels, got also {wrong[:10]}"
        )
    labels = {label_id + 1: SegmentLabel(label_id) for label_id in range(len(vocabulary))}
    segment_ids = np.where(known, semantic_map.astype(np.int32) + 1, 0).astype(np.int32)
    return build_target(segment_ids, labels, vocabulary)


def convert_panoptic_to_semantic(
    segmentation: PanopticSegmentation, *, ignore_index: int = IGNORE_INDEX
) -> NDArray[np.int32]:
    """Write every segment's label id into its pixels; void becomes ``ignore_index``.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: if a segment's label id is ``ignore_index`` (pass another value, such as 65535 or -1), or
            a pixel's id is not listed.
    """
    if any(segment.label_id == ignore_index for segment in segmentation.segments):
        raise ValueError(
            f"label id {ignore_index} is in use, so it cannot mark unknown pixels; pass another ignore_index"
        )
    ids = np.array([0] + [segment.id for segment in segmentation.segments])
    label_ids = np.array(
        [ignore_index] + [segment.label_id for segment in segmentation.segments], dtype=np.int32
    )
    order = np.argsort(ids)
    ids, label_ids = ids[order], label_ids[order]
    position = np.searchsorted(ids, segmentation.segment_ids).clip(max=len(ids) - 1)
    if np.any(ids[position] != segmentation.segment_ids):
        segmentation.check_pixels()
    return label_ids[position]


class SemanticMapDataset:
    """Pictures with semantic maps: ``images/*`` and ``labels/*.png`` of the same stems.

    ``classes.json``, in the folder or the one above, names the classes::

        {"classes": [{"id": 0, "name": "road", "isthing": false}, …], "ignore_index": 255,
         "unseen_split": ["fence"]}

    ``unseen_split`` is optional; without it every label is seen.

    Args:
        folder: holds ``images`` and ``labels``.
        classes_json: the class file, if it is elsewhere.
        vocabulary: labels to use instead of those of the class file, matched by category id; pixels of
            classes it lacks become void.
        clean_names: clean the class file's names for text encoders.
        problems: takes what is wrong with single pictures or labels, which are then left out; None raises.

    Attributes:
        vocabulary: the labels that targets refer to.
        file_names: the pictures' file names, sorted.

    Raises:
        FileNotFoundError: if a folder, the class file, a picture or a map is missing.
        ValueError: if the class file is not as above, or two pictures share a stem.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        classes_json: str | os.PathLike[str] | None = None,
        vocabulary: Vocabulary | None = None,
        clean_names: bool = True,
        problems: list[DataProblem] | None = None,
    ) -> None:
        self.folder = Path(folder)
        classes_path = Path(classes_json) if classes_json is not None else _find_class_file(self.folder)
        classes = read_annotation_json(classes_path, ("classes", "ignore_index"))
        self._class_ids = _read_class_ids(classes["classes"], classes_path)
        self._file_ignore_index = int(classes["ignore_index"])
        self.vocabulary = (
            _vocabulary_of(classes, classes_path, clean_names, problems) if vocabulary is None else vocabulary
        )
        if not self._class_ids & self.vocabulary.label_id_by_category_id.keys():
            raise ValueError(
                f"no category id of the vocabulary is a class of {classes_path}: expected some of "
                f"{sorted(self._class_ids)[:10]}, got {sorted(self.vocabulary.label_id_by_category_id)[:10]}"
            )
        self.file_names = _pair_files(self.folder, problems)

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> PanopticExample:
        file_name = self.file_names[index]
        image = load_image(self.folder / "images" / file_name)
        label_map = self._read_label_ids(index)
        target = convert_semantic_to_panoptic(label_map, self.vocabulary, ignore_index=-1)
        return PanopticExample(image, target, Path(file_name).stem, file_name)

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one map."""
        return frozenset(int(value) for value in np.unique(self._read_label_ids(index)) if value >= 0)

    def semantic_map(self, index: int, *, ignore_index: int = IGNORE_INDEX) -> NDArray[np.int32]:
        """One map as label ids of the vocabulary, for the mean IoU.

        Returns:
            (H, W) int32; pixels of no class in the vocabulary hold ``ignore_index``.

        Raises:
            ValueError: if ``ignore_index`` is a label id.
        """
        if 0 <= ignore_index < len(self.vocabulary):
            raise ValueError(
                f"ignore_index {ignore_index} is a label id of this vocabulary of {len(self.vocabulary)}; "
                "pass another, such as 65535 or -1"
            )
        label_map = self._read_label_ids(index)
        return np.where(label_map < 0, np.int32(ignore_index), label_map)

    def _read_label_ids(self, index: int) -> NDArray[np.int32]:
        """(H, W) int32 label ids, -1 where unknown."""
        by_category_id = self.vocabulary.label_id_by_category_id
        label_ids = {class_id: by_category_id.get(class_id, -1) for class_id in self._class_ids}
        path = self.folder / "labels" / f"{Path(self.file_names[index]).stem}.png"
        try:
            return read_label_map(path, {**label_ids, self._file_ignore_index: -1})
        except UnknownValuesError as error:
            raise ValueError(
                f"{path} holds values that are neither a class id nor the ignore_index "
                f"{self._file_ignore_index}: {error.values[:10]}; add the classes to classes.json; "
                f"{CHECK_HINT}"
            ) from error


class UnknownValuesError(ValueError):
    """Pixels whose values stand for nothing.

    Attributes:
        values: the values, in ascending order.
    """

    def __init__(self, path: Path, values: list[int]) -> None:
        super().__init__(f"{path} holds values that stand for no label and are not ignored: {values[:10]}")
        self.values = values


def read_label_map(path: Path, label_id_by_value: Mapping[int, int]) -> NDArray[np.int32]:
    """Read a PNG whose pixels say their class by number.

    Args:
        path: single-channel, or with a palette, of which the indices count.
        label_id_by_value: for every value that may occur; −1 for those of unknown pixels.

    Returns:
        (H, W) int32 label ids, −1 where unknown.

    Raises:
        UnknownValuesError: if pixels hold other values.
        ValueError: if the file is no such PNG.
    """
    values = _read_label_png(path)
    present = np.unique(values)
    if unknown := [value for value in present.tolist() if value not in label_id_by_value]:
        raise UnknownValuesError(path, unknown)
    table = np.full(int(present.max()) + 1, -1, dtype=np.int32)
    for value in present.tolist():
        table[value] = label_id_by_value[value]
    return table[values]


def read_class_file(path: str | os.PathLike[str], *, clean_names: bool = True) -> Vocabulary:
    """The labels of a ``classes.json``, as :class:`SemanticMapDataset` takes it.

    Raises:
        ValueError: if it is not in that format.
    """
    classes = read_annotation_json(path, ("classes",))
    _read_class_ids(classes["classes"], Path(path))
    return _vocabulary_of(classes, Path(path), clean_names, None)


def _find_class_file(folder: Path) -> Path:
    candidates = (folder / "classes.json", folder.resolve().parent / "classes.json")
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no classes.json in {folder} or the folder above; write one or pass classes_json"
    )


def _read_class_ids(classes: Any, path: Path) -> frozenset[int]:
    if not isinstance(classes, list) or not all(isinstance(c, Mapping) and "id" in c for c in classes):
        raise ValueError(f'{path}: \'classes\' must be a list of {{"id", "name", "isthing"}}')
    return frozenset(int(entry["id"]) for entry in classes)


def _vocabulary_of(
    classes: Mapping[str, Any], path: Path, clean_names: bool, problems: list[DataProblem] | None
) -> Vocabulary:
    entries = keep_named(classes["classes"], problems, path)
    vocabulary = build_vocabulary(entries, clean_names=clean_names, source=str(path))
    unseen = classes.get("unseen_split", [])
    names = [clean_category_texts(name)[0] for name in unseen] if clean_names else unseen
    return mark_unseen(vocabulary, names)


def _pair_files(folder: Path, problems: list[DataProblem] | None) -> tuple[str, ...]:
    """File names of the pictures that have a map, sorted; what has no partner is noted or raised."""
    listed = list_folder(folder / "images", "image")
    images = [name for name in listed if name.lower().endswith(IMAGE_SUFFIXES)]
    labels = {Path(name).stem for name in list_folder(folder / "labels", "label") if name.endswith(".png")}
    counts = Counter(Path(name).stem for name in images)
    repeated = sorted(stem for stem, count in counts.items() if count > 1)
    unlabelled, unpictured = sorted(counts.keys() - labels), sorted(labels - counts.keys())
    if problems is None:
        if repeated:
            raise ValueError(f"{folder / 'images'} holds more than one picture named {repeated[:_SHOWN]}")
        faults = []
        if unlabelled:
            faults.append(f"{len(unlabelled)} of {len(counts)} images have no label map: {_few(unlabelled)}")
        if unpictured:
            faults.append(f"{len(unpictured)} of {len(labels)} label maps have no image: {_few(unpictured)}")
        if not images:
            faults.append("there are no images")
        if faults:
            raise FileNotFoundError(f"{folder}: {'; '.join(faults)}")
        return tuple(images)
    for name in images:
        stem = Path(name).stem
        if counts[stem] > 1:
            problems.append(DataProblem(name, f"{counts[stem]} pictures in images/ are named {stem}"))
        elif stem not in labels:
            problems.append(DataProblem(name, f"there is no map labels/{stem}.png for this picture"))
    problems += [
        DataProblem(f"{stem}.png", f"there is no picture in images/ for the map labels/{stem}.png")
        for stem in unpictured
    ]
    return tuple(name for name in images if counts[Path(name).stem] == 1 and Path(name).stem in labels)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _read_label_png(path: Path) -> NDArray[np.integer[Any]]:
    try:
        with Image.open(path) as image:
            if image.mode not in _LABEL_MODES:
                raise ValueError(
                    f"{path} must be a single-channel PNG of class ids, got Pillow mode {image.mode!r}"
                )
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a PNG; semantic maps are single-channel PNGs") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a PNG ({error}); write the file again") from error
