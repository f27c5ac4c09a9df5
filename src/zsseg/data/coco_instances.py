"""COCO's instance format: polygons and run-length crowds of things, painted into one panoptic map."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zsseg.data.annotation_files import read_annotation_json, require_files, require_keys
from zsseg.data.coco_masks import decode_coco_mask
from zsseg.data.coco_panoptic import find_void_categories
from zsseg.data.examples import PanopticExample, SegmentLabel, build_target
from zsseg.data.vocabularies import build_vocabulary
from zsseg.image_loading import load_image
from zsseg.vocabulary import Vocabulary


class CocoInstanceDataset:
    """Pictures with COCO instances, read when asked for; everything else in the picture is void.

    COCO instances may overlap, a panoptic map may not: crowds are painted first, then instances from the
    largest to the smallest, so that what lies in front (a tie on a shirt) survives. An instance of which no
    pixel is left is dropped. Segment ids count an image's annotations in the order of the file, from 1.

    Args:
        annotation_json: ``images``, ``annotations`` with ``segmentation`` and ``category_id``, and
            ``categories``.
        image_folder: the pictures.
        vocabulary: labels to use instead of the JSON's, matched by category id; instances of categories it
            lacks become void.
        clean_names: clean the JSON's names for text encoders.

    Attributes:
        vocabulary: the labels that targets refer to; all are things.
        void_category_names: categories of the JSON that are not in the vocabulary.

    Raises:
        FileNotFoundError: if the JSON or a picture is missing; says how many and names the first.
        ValueError: if the JSON is not in this format.
    """

    def __init__(
        self,
        annotation_json: str | os.PathLike[str],
        image_folder: str | os.PathLike[str],
        *,
        vocabulary: Vocabulary | None = None,
        clean_names: bool = True,
    ) -> None:
        path = Path(annotation_json)
        content = read_annotation_json(path, ("images", "annotations", "categories"))
        require_keys(content["categories"], ("id", "name"), f"{path}: categories")
        require_keys(content["images"], ("id", "file_name"), f"{path}: images")
        self.annotation_json = path
        self.image_folder = Path(image_folder)
        things = [{**category, "isthing": True} for category in content["categories"]]
        self.vocabulary = (
            build_vocabulary(things, clean_names=clean_names, source=str(path))
            if vocabulary is None
            else vocabulary
        )
        self.void_category_names = find_void_categories(content["categories"], self.vocabulary, path)
        self._images = content["images"]
        self._annotations = self._group_by_image(content["annotations"])
        require_files(self.image_folder, [image["file_name"] for image in self._images], "image")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> PanopticExample:
        entry = self._images[index]
        image = load_image(self.image_folder / entry["file_name"])
        by_category_id = self.vocabulary.label_id_by_category_id
        masks = []
        for segment_id, annotation in enumerate(self._annotations[entry["id"]], start=1):
            try:
                mask = decode_coco_mask(annotation["segmentation"], image.height, image.width)
            except ValueError as error:
                where = f"annotation {annotation.get('id')} of {entry['file_name']}"
                raise ValueError(f"{self.annotation_json}: {where}: {error}") from error
            masks.append((segment_id, annotation, mask))
        masks.sort(key=lambda item: (not item[1].get("iscrowd", 0), -int(item[2].sum())))
        segment_ids = np.zeros((image.height, image.width), dtype=np.int32)
        labels = {}
        for segment_id, annotation, mask in masks:
            label_id = by_category_id.get(annotation["category_id"])
            segment_ids[mask] = 0 if label_id is None else segment_id
            if label_id is not None:
                labels[segment_id] = SegmentLabel(label_id, bool(annotation.get("iscrowd", 0)))
        target = build_target(segment_ids, dict(sorted(labels.items())), self.vocabulary)
        return PanopticExample(image, target, entry["id"], entry["file_name"])

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids the JSON lists for one picture."""
        by_category_id = self.vocabulary.label_id_by_category_id
        annotations = self._annotations[self._images[index]["id"]]
        category_ids = {annotation["category_id"] for annotation in annotations}
        return frozenset(by_category_id[i] for i in category_ids if i in by_category_id)

    def _group_by_image(self, annotations: list[Mapping[str, Any]]) -> Mapping[Any, list[Mapping[str, Any]]]:
        grouped: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        image_ids = {image["id"] for image in self._images}
        for annotation in annotations:
            if "segmentation" not in annotation or "category_id" not in annotation:
                raise ValueError(
                    f"{self.annotation_json}: an annotation lacks 'segmentation' or 'category_id', so this "
                    "is not the instance format; read panoptic JSON with CocoPanopticDataset"
                )
            if annotation.get("image_id") not in image_ids:
                raise ValueError(
                    f"{self.annotation_json}: annotation {annotation.get('id')} refers to image id "
                    f"{annotation.get('image_id')}, which 'images' does not list"
                )
            grouped[annotation["image_id"]].append(annotation)
        return {image_id: grouped[image_id] for image_id in image_ids}
