"""COCO's panoptic format: one JSON and one folder of RGB PNGs whose colours are segment ids."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsseg.data.annotation_files import read_annotation_json, require_files, require_keys
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

    Attributes:
        vocabulary: the labels that targets refer to.
        void_category_names: categories of the JSON that are not in the vocabulary.

    Raises:
        FileNotFoundError: if the JSON, a picture or a PNG is missing; says how many and names the first.
        ValueError: if the JSON is not in this format.
    """

    def __init__(
        self,
        annotation_json: str | os.PathLike[str],
        image_folder: str | os.PathLike[str],
        panoptic_folder: str | os.PathLike[str] | None = None,
        *,
        vocabulary: Vocabulary | None = None,
        clean_names: bool = True,
    ) -> None:
        path = Path(annotation_json)
        content = read_annotation_json(path, ("images", "annotations", "categories"))
        require_keys(content["categories"], ("id", "name", "isthing"), f"{path}: categories")
        require_keys(content["images"], ("id", "file_name"), f"{path}: images")
        self.annotation_json = path
        self.image_folder = Path(image_folder)
        self.panoptic_folder = Path(panoptic_folder) if panoptic_folder is not None else path.with_suffix("")
        self.vocabulary = (
            build_vocabulary(content["categories"], clean_names=clean_names, source=str(path))
            if vocabulary is None
            else vocabulary
        )
        self.void_category_names = find_void_categories(content["categories"], self.vocabulary, path)
        self._category_ids = {category["id"] for category in content["categories"]}
        self._annotations: Sequence[Mapping[str, Any]] = content["annotations"]
        self._check_annotations()
        self._image_names = _name_images(content["images"], self._annotations, path)
        require_files(self.image_folder, self._image_names, "image")
        require_files(self.panoptic_folder, [a["file_name"] for a in self._annotations], "panoptic PNG")

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> PanopticExample:
        annotation = self._annotations[index]
        image = load_image(self.image_folder / self._image_names[index])
        path = self.panoptic_folder / annotation["file_name"]
        segment_ids = read_panoptic_png(path)
        listed = [segment["id"] for segment in annotation["segments_info"]]
        present = np.unique(segment_ids)
        _check_ids(present[present != VOID_ID].tolist(), listed, path, self.annotation_json)
        labels = self._segment_labels(annotation)
        if void := [segment_id for segment_id in listed if segment_id not in labels]:
            segment_ids = np.where(np.isin(segment_ids, void), np.int32(VOID_ID), segment_ids)
        target = build_target(segment_ids, labels, self.vocabulary)
        return PanopticExample(image, target, annotation["image_id"], self._image_names[index])

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids the JSON lists for one picture."""
        return frozenset(label.label_id for label in self._segment_labels(self._annotations[index]).values())

    def _segment_labels(self, annotation: Mapping[str, Any]) -> dict[int, SegmentLabel]:
        by_category_id = self.vocabulary.label_id_by_category_id
        return {
            segment["id"]: SegmentLabel(
                by_category_id[segment["category_id"]], bool(segment.get("iscrowd", 0))
            )
            for segment in annotation["segments_info"]
            if segment["category_id"] in by_category_id
        }

    def _check_annotations(self) -> None:
        for annotation in self._annotations:
            if "segments_info" not in annotation or "file_name" not in annotation:
                raise ValueError(
                    f"{self.annotation_json}: an annotation lacks 'segments_info' or 'file_name', so this is "
                    "not the panoptic format; read instance JSON with CocoInstanceDataset"
                )
        where = f"{self.annotation_json}: "
        require_keys(self._annotations, ("image_id",), f"{where}annotations")
        _check_unique([annotation["image_id"] for annotation in self._annotations], f"{where}image_id")
        for annotation in self._annotations:
            segments = f"{where}segments_info of {annotation['file_name']}"
            require_keys(annotation["segments_info"], ("id", "category_id"), segments)
            _check_unique([segment["id"] for segment in annotation["segments_info"]], f"{segments}: id")
            for segment in annotation["segments_info"]:
                if segment["category_id"] not in self._category_ids:
                    raise ValueError(
                        f"{self.annotation_json}: segment {segment['id']} of {annotation['file_name']} has "
                        f"category_id {segment['category_id']}, which 'categories' does not list"
                    )


def find_void_categories(
    categories: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, path: Path
) -> tuple[str, ...]:
    """Names of a JSON's categories that the vocabulary lacks.

    Raises:
        ValueError: if none is shared, which means that the vocabulary belongs to another data set.
    """
    known = vocabulary.label_id_by_category_id
    missing = tuple(category["name"] for category in categories if category["id"] not in known)
    if len(missing) == len(categories):
        raise ValueError(
            f"no category id of {path} is in the vocabulary: expected some of "
            f"{sorted(category['id'] for category in categories)[:10]}, got {sorted(known)[:10]}"
        )
    if missing:
        logger.info("%s: segments of %d categories become void: %s", path, len(missing), list(missing))
    return missing


def _name_images(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], path: Path
) -> tuple[str, ...]:
    names = {image["id"]: image["file_name"] for image in images}
    if unknown := [a["image_id"] for a in annotations if a["image_id"] not in names]:
        raise ValueError(
            f"{path}: 'images' does not list the image ids of {len(unknown)} annotations: {unknown[:5]}"
        )
    return tuple(names[annotation["image_id"]] for annotation in annotations)


def _check_unique(values: Sequence[Any], where: str) -> None:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{where} must be unique, but {repeated[:10]} occur more than once")


def _check_ids(present: Collection[int], listed: Collection[int], png: Path, json_path: Path) -> None:
    if unlisted := sorted(set(present) - set(listed)):
        raise ValueError(
            f"{png} holds {len(unlisted)} segment ids that {json_path} does not list: {unlisted[:10]}; "
            "the two files do not belong together"
        )
    if absent := sorted(set(listed) - set(present)):
        raise ValueError(
            f"{png} holds no pixel of {len(absent)} segments that {json_path} lists: {absent[:10]}; "
            "the two files do not belong together"
        )
