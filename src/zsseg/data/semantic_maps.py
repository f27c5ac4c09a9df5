"""Semantic maps: one label a pixel, without instances; the reader and both conversions."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from zsseg.data.annotation_files import list_folder, read_annotation_json
from zsseg.data.examples import IGNORE_INDEX, PanopticExample, SegmentLabel, build_target
from zsseg.data.vocabularies import build_vocabulary, clean_category_texts, mark_unseen
from zsseg.image_loading import load_image
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
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
    ) -> None:
        self.folder = Path(folder)
        classes_path = Path(classes_json) if classes_json is not None else _find_class_file(self.folder)
        classes = read_annotation_json(classes_path, ("classes", "ignore_index"))
        self._class_ids = _read_class_ids(classes["classes"], classes_path)
        self._file_ignore_index = int(classes["ignore_index"])
        self.vocabulary = (
            _vocabulary_of(classes, classes_path, clean_names) if vocabulary is None else vocabulary
        )
        if not self._class_ids & self.vocabulary.label_id_by_category_id.keys():
            raise ValueError(
                f"no category id of the vocabulary is a class of {classes_path}: expected some of "
                f"{sorted(self._class_ids)[:10]}, got {sorted(self.vocabulary.label_id_by_category_id)[:10]}"
            )
        self.file_names = _pair_files(self.folder)

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
        path = self.folder / "labels" / f"{Path(self.file_names[index]).stem}.png"
        values = _read_label_png(path)
        present = np.unique(values)
        unknown = [int(v) for v in present if int(v) not in self._class_ids | {self._file_ignore_index}]
        if unknown:
            raise ValueError(
                f"{path} holds values that are neither a class id nor the ignore_index "
                f"{self._file_ignore_index}: {unknown[:10]}; add the classes to classes.json"
            )
        by_category_id = self.vocabulary.label_id_by_category_id
        table = np.full(int(present.max()) + 1, -1, dtype=np.int32)
        for value in present.tolist():
            if value != self._file_ignore_index:
                table[value] = by_category_id.get(value, -1)
        return table[values]


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


def _vocabulary_of(classes: Mapping[str, Any], path: Path, clean_names: bool) -> Vocabulary:
    vocabulary = build_vocabulary(classes["classes"], clean_names=clean_names, source=str(path))
    unseen = classes.get("unseen_split", [])
    names = [clean_category_texts(name)[0] for name in unseen] if clean_names else unseen
    return mark_unseen(vocabulary, names)


def _pair_files(folder: Path) -> tuple[str, ...]:
    listed = list_folder(folder / "images", "image")
    images = [name for name in listed if name.lower().endswith(_IMAGE_SUFFIXES)]
    labels = {Path(name).stem for name in list_folder(folder / "labels", "label") if name.endswith(".png")}
    stems = [Path(name).stem for name in images]
    if len(set(stems)) != len(stems):
        repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
        raise ValueError(f"{folder / 'images'} holds more than one picture named {repeated[:_SHOWN]}")
    problems = []
    if unlabelled := sorted(set(stems) - labels):
        problems.append(f"{len(unlabelled)} of {len(stems)} images have no label map: {_few(unlabelled)}")
    if unpictured := sorted(labels - set(stems)):
        problems.append(f"{len(unpictured)} of {len(labels)} label maps have no image: {_few(unpictured)}")
    if not stems:
        problems.append("there are no images")
    if problems:
        raise FileNotFoundError(f"{folder}: {'; '.join(problems)}")
    return tuple(images)


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
