"""COCO's panoptic format: one JSON and one folder of RGB PNGs whose colours are segment ids."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsseg.data.annotation_files import (
    CHECK_HINT,
    DataProblem,
    Fault,
    find_repeated_images,
    keep_named,
    list_folder,
    read_annotation_json,
    require_files,
    require_keys,
    settle_faults,
)
from zsseg.data.examples import PanopticExample, SegmentLabel, build_target
from zsseg.data.vocabularies import build_vocabulary
from zsseg.image_loading import load_image
from zsseg.panoptic_format import read_panoptic_png
from zsseg.structures import VOID_ID
from zsseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class CocoPanopticDataset:
    """Pictures with COCO panoptic ground truth, read when asked for.

    Args:
        annotation_json: ``images``, ``annotations`` with ``segments_info``, ``categories`` with ``isthing``.
        image_folder: the pictures.
        panoptic_folder: the PNGs; by default the folder beside the JSON that has its name without ``.json``.
        vocabulary: labels to use instead of the JSON's, matched by category id; ``load_split`` gives the
            zero-shot ones. Segments of categories it lacks become void.
        clean_names: clean the JSON's names for text encoders ("tree-merged" → "tree").
        problems: takes what is wrong with single pictures or labels, which are then left out; None raises.

    Attributes:
        vocabulary: the labels that targets refer to.
        void_category_names: categories of the JSON that are not in the vocabulary.
        file_names: of the pictures.

    Raises:
        FileNotFoundError: if the JSON, a picture or a PNG is missing; says how many and names the first.
        ValueError: if the JSON is not in this format, contradicts itself or lists no label or no picture.
    """

    def __init__(
        self,
        annotation_json: str | os.PathLike[str],
        image_folder: str | os.PathLike[str],
        panoptic_folder: str | os.PathLike[str] | None = None,
        *,
        vocabulary: Vocabulary | None = None,
        clean_names: bool = True,
        problems: list[DataProblem] | None = None,
    ) -> None:
        path = Path(annotation_json)
        content = read_annotation_json(path, ("images", "annotations", "categories"))
        require_keys(content["categories"], ("id", "isthing"), f"{path}: categories")
        require_keys(content["images"], ("id", "file_name"), f"{path}: images")
        if not content["annotations"]:
            raise ValueError(f"{path} lists no annotation, so there is no picture with ground truth")
        self.annotation_json = path
        self.image_folder = Path(image_folder)
        self.panoptic_folder = Path(panoptic_folder) if panoptic_folder is not None else path.with_suffix("")
        categories = keep_named(content["categories"], problems, path)
        self.vocabulary = (
            build_vocabulary(categories, clean_names=clean_names, source=str(path))
            if vocabulary is None
            else vocabulary
        )
        self.void_category_names = find_void_categories(categories, self.vocabulary, path)
        self._annotations: Sequence[Mapping[str, Any]] = content["annotations"]
        names = {image["id"]: image["file_name"] for image in content["images"]}
        category_ids = {category["id"] for category in content["categories"]}
        faulty = settle_faults(self._find_faults(names, category_ids), problems, path)
        repeated = settle_faults(find_repeated_images(content["images"]), problems, path)
        settle_faults(self._find_images_without_map(content["images"]), problems, path)
        unusable = {content["images"][position]["id"] for position in repeated}
        missing = require_files(self.image_folder, names.values(), "image", problems)
        maps = [a["file_name"] for a in self._annotations if "file_name" in a]
        missing_maps = require_files(self.panoptic_folder, maps, "panoptic PNG", problems)
        self._map_names = frozenset(maps)
        self._annotations = [
            annotation
            for position, annotation in enumerate(self._annotations)
            if position not in faulty
            and annotation["image_id"] not in unusable
            and names[annotation["image_id"]] not in missing
            and annotation["file_name"] not in missing_maps
        ]
        self.file_names = tuple(names[annotation["image_id"]] for annotation in self._annotations)

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> PanopticExample:
        annotation = self._annotations[index]
        image = load_image(self.image_folder / self.file_names[index])
        path = self.panoptic_folder / annotation["file_name"]
        segment_ids = read_panoptic_png(path)
        listed = [segment["id"] for segment in annotation["segments_info"]]
        present = np.unique(segment_ids)
        _check_ids(present[present != VOID_ID].tolist(), listed, path, self.annotation_json)
        labels = self._segment_labels(annotation)
        if void := [segment_id for segment_id in listed if segment_id not in labels]:
            segment_ids = np.where(np.isin(segment_ids, void), np.int32(VOID_ID), segment_ids)
        target = build_target(segment_ids, labels, self.vocabulary)
        return PanopticExample(image, target, annotation["image_id"], self.file_names[index])

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids the JSON lists for one picture."""
        return frozenset(label.label_id for label in self._segment_labels(self._annotations[index]).values())

    def find_unlisted_maps(self) -> tuple[str, ...]:
        """PNGs in the panoptic folder that no annotation names."""
        listed = list_folder(self.panoptic_folder, "panoptic PNG")
        return tuple(sorted({name for name in listed if name.endswith(".png")} - self._map_names))

    def _segment_labels(self, annotation: Mapping[str, Any]) -> dict[int, SegmentLabel]:
        by_category_id = self.vocabulary.label_id_by_category_id
        return {
            segment["id"]: SegmentLabel(
                by_category_id[segment["category_id"]], bool(segment.get("iscrowd", 0))
            )
            for segment in annotation["segments_info"]
            if segment["category_id"] in by_category_id
        }

    def _find_faults(self, image_names: Mapping[Any, str], category_ids: Collection[int]) -> Iterator[Fault]:
        """What is wrong with single annotations, without opening a file."""
        image_counts = Counter(annotation.get("image_id") for annotation in self._annotations)
        for position, annotation in enumerate(self._annotations):
            name = str(annotation.get("file_name", f"annotations[{position}]"))
            for reason in _find_annotation_faults(annotation, image_names, category_ids):
                yield position, DataProblem(name, reason)
            image_id = annotation.get("image_id")
            if image_id is not None and image_counts[image_id] > 1:
                reason = f"{image_counts[image_id]} annotations have the image_id {image_id}"
                yield position, DataProblem(name, reason)

    def _find_images_without_map(self, images: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
        annotated = {annotation.get("image_id") for annotation in self._annotations}
        for position, image in enumerate(images):
            if image["id"] not in annotated:
                reason = "'images' lists the picture, but no annotation, and so no map, belongs to it"
                yield position, DataProblem(image["file_name"], reason)


def _find_annotation_faults(
    annotation: Mapping[str, Any], image_names: Mapping[Any, str], category_ids: Collection[int]
) -> Iterator[str]:
    if missing := [key for key in ("segments_info", "file_name") if key not in annotation]:
        yield (
            f"the annotation lacks {missing}, so this is not the panoptic format; read instance JSON with "
            "CocoInstanceDataset"
        )
    if "image_id" not in annotation:
        yield "the annotation lacks 'image_id'"
    elif annotation["image_id"] not in image_names:
        yield f"'images' does not list its image_id {annotation['image_id']}"
    segments = annotation.get("segments_info", [])
    for place, segment in enumerate(segments):
        if missing := [key for key in ("id", "category_id") if key not in segment]:
            yield f"segments_info[{place}] lacks {missing}"
        elif segment["category_id"] not in category_ids:
            yield (
                f"segment {segment['id']} has category_id {segment['category_id']}, which 'categories' does "
                "not list"
            )
    id_counts = Counter(segment["id"] for segment in segments if "id" in segment)
    if repeated := [segment_id for segment_id, count in id_counts.items() if count > 1]:
        yield f"several segments have the same id: {repeated[:10]}; ids must be unique in a picture"


def find_void_categories(
    categories: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, path: Path
) -> tuple[str, ...]:
    """Names of a JSON's categories that the vocabulary lacks.

    Raises:
        ValueError: if there are none, or none is shared, which means that the vocabulary belongs to another
            data set.
    """
    if not categories:
        raise ValueError(f"{path} lists no category, so its segments have no labels; write 'categories'")
    known = vocabulary.label_id_by_category_id
    missing = tuple(
        str(category.get("name", category["id"])) for category in categories if category["id"] not in known
    )
    if len(missing) == len(categories):
        raise ValueError(
            f"no category id of {path} is in the vocabulary: expected some of "
            f"{sorted(category['id'] for category in categories)[:10]}, got {sorted(known)[:10]}"
        )
    if missing:
        logger.info("%s: segments of %d categories become void: %s", path, len(missing), list(missing))
    return missing


def _check_ids(present: Collection[int], listed: Collection[int], png: Path, json_path: Path) -> None:
    faults = []
    if unlisted := sorted(set(present) - set(listed)):
        faults.append(
            f"{png} holds {len(unlisted)} segment ids that {json_path} does not list: {unlisted[:10]}"
        )
    if absent := sorted(set(listed) - set(present)):
        faults.append(f"{png} holds no pixel of {len(absent)} segments that {json_path} lists: {absent[:10]}")
    if faults:
        raise ValueError(f"{'; '.join(faults)}; the two files do not belong together; {CHECK_HINT}")
