"""Panoptic results as files: COCO's PNG + JSON, and plain records for one picture."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from zsseg.panoptic_format import write_panoptic_png
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Vocabulary


def segments_to_json(segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The segments of one picture as records of plain Python values.

    Args:
        segmentation: the picture's segments.
        vocabulary: what their ``label_id`` mean.

    Returns:
        One record for each segment, in order: ``id`` in the map, ``label``, ``score`` in [0, 1] or None,
        ``isthing``, ``area`` in pixels, ``bbox`` [x, y, width, height] in pixels.

    Raises:
        ValueError: if a label id is outside the vocabulary.

    Example:
        >>> import numpy as np
        >>> segment = SegmentInfo(id=1, label_id=0, isthing=True, area=2, bbox=(0, 0, 2, 1), score=0.5)
        >>> segmentation = PanopticSegmentation(np.ones((1, 2), dtype=np.int32), (segment,))
        >>> segments_to_json(segmentation, Vocabulary.from_labels(["car"]))
        [{'id': 1, 'label': 'car', 'score': 0.5, 'isthing': True, 'area': 2, 'bbox': [0, 0, 2, 1]}]
    """
    _check_labels(segmentation, vocabulary)
    return [
        {
            "id": int(segment.id),
            "label": vocabulary[segment.label_id].name,
            "score": _score(segment),
            "isthing": bool(segment.isthing),
            "area": int(segment.area),
            "bbox": [int(value) for value in segment.bbox],
        }
        for segment in segmentation.segments
    ]


def write_coco_panoptic_results(
    folder: str | os.PathLike[str],
    results: Iterable[tuple[int | str, str, PanopticSegmentation]],
    vocabulary: Vocabulary,
    *,
    json_name: str = "panoptic.json",
) -> Path:
    """Write results in COCO's panoptic format, one picture at a time.

    The PNGs go into a folder beside the JSON that is named as it is, without ".json": where readers of the
    format look first. Each file appears whole or not at all. The JSON appears last; if ``results`` fails
    midway, PNGs written so far stay and no JSON is written or replaced.

    Args:
        folder: made if it does not exist.
        results: the image's id, its file name and its segments. The PNG has the name with the suffix ".png".
        vocabulary: what ``label_id`` mean. A category without a ``category_id`` gets its label id + 1.
        json_name: file name of the JSON.

    Returns:
        Path of the JSON, with ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: if ``json_name`` does not end in ".json" or has a folder, category ids collide, an image
            id repeats, two images would share a PNG, a file name is absolute or leaves the folder, or a label
            id is outside the vocabulary.
    """
    if Path(json_name).name != json_name or not json_name.endswith(".json"):
        raise ValueError(f"json_name must be a file name that ends in '.json', got {json_name!r}")
    category_ids = _category_ids(vocabulary)
    folder = Path(folder)
    png_folder = folder / json_name.removesuffix(".json")
    png_folder.mkdir(parents=True, exist_ok=True)
    path = folder / json_name
    images: list[dict[str, int | str]] = []
    image_ids: set[int | str] = set()
    png_names: set[str] = set()
    with _replacing(path) as file:
        # Annotations are the bulk of the file: each is written at once and forgotten.
        file.write('{"annotations": [')
        for image_id, file_name, segmentation in results:
            png_name = _png_name(file_name)
            if image_id in image_ids or png_name in png_names:
                raise ValueError(
                    f"image {image_id!r} ({file_name!r}) repeats an image id or the PNG name {png_name!r}: "
                    "give every picture an id and a file name of its own"
                )
            _check_labels(segmentation, vocabulary)
            png_path = png_folder / png_name
            png_path.parent.mkdir(parents=True, exist_ok=True)
            write_panoptic_png(png_path, segmentation.segment_ids)
            annotation = {
                "image_id": image_id,
                "file_name": png_name,
                "segments_info": [_segment_info(segment, category_ids) for segment in segmentation.segments],
            }
            file.write((",\n" if images else "\n") + json.dumps(annotation))
            height, width = segmentation.size
            images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
            image_ids.add(image_id)
            png_names.add(png_name)
        categories = [
            {"id": category_id, "name": category.name, "isthing": int(category.is_thing)}
            for category_id, category in zip(category_ids, vocabulary, strict=True)
        ]
        file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')
    return path


def _category_ids(vocabulary: Vocabulary) -> list[int]:
    ids = [
        label_id + 1 if category.category_id is None else category.category_id
        for label_id, category in enumerate(vocabulary)
    ]
    if len(set(ids)) != len(ids):
        repeated = sorted({category_id for category_id in ids if ids.count(category_id) > 1})
        raise ValueError(
            f"category ids {repeated[:10]} would stand for two labels: give all categories of the vocabulary "
            "a category_id, or none"
        )
    return ids


def _check_labels(segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> None:
    if outside := sorted({s.label_id for s in segmentation.segments if s.label_id >= len(vocabulary)}):
        raise ValueError(
            f"label ids {outside[:10]} are outside the vocabulary of {len(vocabulary)} labels: pass the "
            "vocabulary that the segmentation was made with"
        )


def _png_name(file_name: str) -> str:
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"a picture's file name must lie inside the results folder, got {file_name!r}")
    return str(path.with_suffix(".png"))


def _score(segment: SegmentInfo) -> float | None:
    return None if segment.score is None else float(segment.score)


def _segment_info(segment: SegmentInfo, category_ids: list[int]) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": int(segment.id),
        "category_id": category_ids[segment.label_id],
        "isthing": int(segment.isthing),
        "area": int(segment.area),
        "bbox": [int(value) for value in segment.bbox],
        "iscrowd": int(segment.iscrowd),
    }
    if segment.score is not None:
        info["score"] = _score(segment)
    return info


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of ``path`` when the block ends without an error."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
