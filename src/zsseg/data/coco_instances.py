"""COCO's instance format: polygons and run-length crowds of things, painted into one panoptic map."""

import os
from collections import Counter, defaultdict
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
    read_annotation_json,
    require_files,
    require_keys,
    settle_faults,
)
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
        problems: takes what is wrong with single pictures or labels, which are then left out; None raises.

    Attributes:
        vocabulary: the labels that targets refer to; all are things.
        void_category_names: categories of the JSON that are not in the vocabulary.
        file_names: of the pictures.

    Raises:
        FileNotFoundError: if the JSON or a picture is missing; says how many and names the first.
        ValueError: if the JSON is not in this format, contradicts itself or lists no label or no picture.
    """

    def __init__(
        self,
        annotation_json: str | os.PathLike[str],
        image_folder: str | os.PathLike[str],
        *,
        vocabulary: Vocabulary | None = None,
        clean_names: bool = True,
        problems: list[DataProblem] | None = None,
    ) -> None:
        path = Path(annotation_json)
        content = read_annotation_json(path, ("images", "annotations", "categories"))
        require_keys(content["categories"], ("id",), f"{path}: categories")
        require_keys(content["images"], ("id", "file_name"), f"{path}: images")
        for key in ("images", "annotations"):
            if not content[key]:
                raise ValueError(f"{path} lists nothing in {key!r}, so there is no ground truth in it")
        self.annotation_json = path
        self.image_folder = Path(image_folder)
        categories = keep_named(content["categories"], problems, path)
        things = [{**category, "isthing": True} for category in categories]
        self.vocabulary = (
            build_vocabulary(things, clean_names=clean_names, source=str(path))
            if vocabulary is None
            else vocabulary
        )
        self.void_category_names = find_void_categories(categories, self.vocabulary, path)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        category_ids = {category["id"] for category in content["categories"]}
        annotations = content["annotations"]
        repeated = settle_faults(find_repeated_images(content["images"]), problems, path)
        faulty = settle_faults(_find_faults(annotations, names, category_ids), problems, path)
        missing = require_files(self.image_folder, names.values(), "image", problems)
        unusable = {content["images"][position]["id"] for position in repeated}
        unusable |= {annotations[position].get("image_id") for position in faulty}
        self._images = [
            image
            for image in content["images"]
            if image["id"] not in unusable and image["file_name"] not in missing
        ]
        self._annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            self._annotations[annotation.get("image_id")].append(annotation)
        self.file_names = tuple(image["file_name"] for image in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> PanopticExample:
        entry = self._images[index]
        image = load_image(self.image_folder / entry["file_name"])
        by_category_id = self.vocabulary.label_id_by_category_id
        masks = []
        for segment_id, annotation in enumerate(self._annotations_of(index), start=1):
            try:
                mask = decode_coco_mask(annotation["segmentation"], image.height, image.width)
            except ValueError as error:
                where = f"annotation {annotation.get('id')} of {entry['file_name']}"
                raise ValueError(f"{self.annotation_json}: {where}: {error}; {CHECK_HINT}") from error
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
        category_ids = {annotation["category_id"] for annotation in self._annotations_of(index)}
        return frozenset(by_category_id[i] for i in category_ids if i in by_category_id)

    def count_instances(self, index: int) -> int:
        """How many instances of the vocabulary's labels the JSON lists for one picture.

        Those of which the map shows no pixel, because smaller ones cover them, count too.
        """
        by_category_id = self.vocabulary.label_id_by_category_id
        return sum(a["category_id"] in by_category_id for a in self._annotations_of(index))

    def _annotations_of(self, index: int) -> Sequence[Mapping[str, Any]]:
        return self._annotations.get(self._images[index]["id"], ())


def _find_faults(
    annotations: Sequence[Mapping[str, Any]], image_names: Mapping[Any, str], category_ids: Collection[int]
) -> Iterator[Fault]:
    """What is wrong with single annotations, without opening a picture."""
    id_counts = Counter(annotation["id"] for annotation in annotations if "id" in annotation)
    for position, annotation in enumerate(annotations):
        name = str(image_names.get(annotation.get("image_id"), f"annotations[{position}]"))
        which = f"annotation {annotation.get('id', position)}"
        if missing := [key for key in ("segmentation", "category_id") if key not in annotation]:
            reason = (
                f"{which} lacks {missing}, so this is not the instance format; read panoptic JSON with "
                "CocoPanopticDataset"
            )
            yield position, DataProblem(name, reason)
        elif annotation["category_id"] not in category_ids:
            reason = f"{which} has category_id {annotation['category_id']}, which 'categories' does not list"
            yield position, DataProblem(name, reason)
        if annotation.get("image_id") not in image_names:
            reason = f"{which} refers to image id {annotation.get('image_id')}, which 'images' does not list"
            yield position, DataProblem(name, reason)
        if "id" in annotation and (count := id_counts[annotation["id"]]) > 1:
            yield position, DataProblem(name, f"{count} annotations have the id {annotation['id']}")
