"""Panoptic quality of files in the COCO panoptic format: two JSON files and two folders of PNGs."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from zsseg.metrics.panoptic_quality import PanopticQuality
from zsseg.metrics.segment_matching import SegmentTable, match_segments
from zsseg.panoptic_format import read_panoptic_png
from zsseg.vocabulary import Category, Vocabulary

# Fixed, so that sums are taken in one order and results do not depend on the number of workers.
_IMAGES_PER_CHUNK = 32

FilePath = str | os.PathLike[str]


def evaluate_coco_panoptic(
    gt_json: FilePath,
    pred_json: FilePath,
    gt_folder: FilePath | None = None,
    pred_folder: FilePath | None = None,
    *,
    unseen_category_ids: Collection[int] = (),
    workers: int = 1,
) -> dict[str, float]:
    """PQ, SQ and RQ of predictions on disk, as panopticapi computes them, and the zero-shot averages.

    Args:
        gt_json: ground truth: ``categories`` and ``annotations`` in the COCO panoptic format.
        pred_json: predictions: ``annotations`` alone are read. An image that the ground truth lacks is left
            out.
        gt_folder: PNGs of the ground truth; by default the JSON's path without its suffix.
        pred_folder: PNGs of the predictions; by default the JSON's path without its suffix.
        unseen_category_ids: the data set's ids of the unseen categories; the others are seen.
        workers: processes. More than one starts new ones, so a script needs its
            ``if __name__ == "__main__":``. The result does not depend on their number.

    Returns:
        The averages of :meth:`PanopticQuality.compute <zsseg.metrics.panoptic_quality.PanopticQuality>` by
        name, in [0, 1]. With ``unseen_category_ids`` they include ``PQ_unseen`` and ``hPQ``.

    Raises:
        FileNotFoundError: if a JSON file, a folder or a PNG is missing.
        ValueError: if an image has no prediction, a PNG and its JSON disagree, a category is unknown, or a
            file is not in the format; the message names the image.

    Reference:
        Panoptic Segmentation, Kirillov et al., Sec. 4 (arXiv:1801.00868).
    """
    return coco_panoptic_quality(
        gt_json,
        pred_json,
        gt_folder,
        pred_folder,
        unseen_category_ids=unseen_category_ids,
        workers=workers,
    ).compute()


def coco_panoptic_quality(
    gt_json: FilePath,
    pred_json: FilePath,
    gt_folder: FilePath | None = None,
    pred_folder: FilePath | None = None,
    *,
    unseen_category_ids: Collection[int] = (),
    workers: int = 1,
) -> PanopticQuality:
    """The metric with all images added, for results by class; arguments as :func:`evaluate_coco_panoptic`."""
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    gt_json, pred_json = Path(gt_json), Path(pred_json)
    gt_content = _load_json(gt_json)
    vocabulary = _build_vocabulary(_field(gt_content, "categories", str(gt_json)), unseen_category_ids)
    pairs = _pair_images(
        _annotations_by_image(gt_content, gt_json, gt_folder),
        _annotations_by_image(_load_json(pred_json), pred_json, pred_folder),
        pred_json,
    )
    chunks = [pairs[start : start + _IMAGES_PER_CHUNK] for start in range(0, len(pairs), _IMAGES_PER_CHUNK)]
    evaluate_chunk = partial(_evaluate_chunk, vocabulary=vocabulary)
    if workers == 1:
        return _merge(map(evaluate_chunk, chunks), vocabulary)
    # spawn: forking a process whose libraries run threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        return _merge(executor.map(evaluate_chunk, chunks), vocabulary)


@dataclass(frozen=True, slots=True)
class _AnnotatedImage:
    image_id: int | str
    png: Path
    segments_info: Sequence[Mapping[str, Any]]


def _evaluate_chunk(
    pairs: Sequence[tuple[_AnnotatedImage, _AnnotatedImage]], vocabulary: Vocabulary
) -> PanopticQuality:
    metric = PanopticQuality(vocabulary)
    for target, prediction in pairs:
        try:
            metric.add(
                match_segments(
                    read_panoptic_png(prediction.png),
                    read_panoptic_png(target.png),
                    _build_table(prediction, vocabulary, has_areas=False),
                    _build_table(target, vocabulary, has_areas=True),
                    len(vocabulary),
                )
            )
        except ValueError as error:
            raise ValueError(
                f"image {target.image_id!r} (target {target.png}, prediction {prediction.png}): {error}"
            ) from error
    return metric


def _merge(metrics: Iterable[PanopticQuality], vocabulary: Vocabulary) -> PanopticQuality:
    total = PanopticQuality(vocabulary)
    for metric in metrics:
        total.merge(metric)
    return total


def _build_table(image: _AnnotatedImage, vocabulary: Vocabulary, *, has_areas: bool) -> SegmentTable:
    """The listed segments as columns. A prediction's listed areas and crowds mean nothing to panopticapi."""
    where = f"a segment of {image.png.name}"
    ids = [_field(segment, "id", where) for segment in image.segments_info]
    category_ids = [_field(segment, "category_id", where) for segment in image.segments_info]
    if any(not isinstance(segment_id, int) or segment_id <= 0 for segment_id in ids):
        raise ValueError(f"segment ids must be positive integers (0 is void), got {ids[:10]}")
    if repeated := [segment_id for segment_id, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"segment ids must be unique, but {image.png.name} repeats {repeated[:10]}")
    label_ids = vocabulary.label_id_by_category_id
    if unknown := sorted({category_id for category_id in category_ids if category_id not in label_ids}):
        raise ValueError(
            f"{image.png.name} has segments of unknown category ids {unknown[:10]}; the ground truth's "
            f"categories are {sorted(label_ids)[:10]}…: write the data set's category ids, not label ids"
        )
    areas = [segment.get("area") for segment in image.segments_info] if has_areas else [None]
    return SegmentTable(
        ids=np.array(ids, dtype=np.int64),
        label_ids=np.array([label_ids[category_id] for category_id in category_ids], dtype=np.int64),
        is_crowd=np.array(
            [segment.get("iscrowd", 0) == 1 for segment in image.segments_info], dtype=np.bool_
        ),
        areas=None if None in areas else np.array(areas, dtype=np.float64),
    )


def _build_vocabulary(
    categories: Sequence[Mapping[str, Any]], unseen_category_ids: Collection[int]
) -> Vocabulary:
    ids = [_field(category, "id", "a category") for category in categories]
    if unknown := sorted(set(unseen_category_ids) - set(ids)):
        raise ValueError(
            f"unseen_category_ids must be among the ground truth's categories, but {unknown[:10]} are not: "
            f"{sorted(ids)[:10]}…"
        )
    return Vocabulary(
        tuple(
            Category(
                _field(category, "name", f"category {category_id}"),
                is_thing=_field(category, "isthing", f"category {category_id}") == 1,
                is_seen=category_id not in unseen_category_ids,
                category_id=category_id,
            )
            for category_id, category in zip(ids, categories, strict=True)
        )
    )


def _annotations_by_image(
    content: Mapping[str, Any], json_path: Path, folder: FilePath | None
) -> dict[int | str, _AnnotatedImage]:
    folder = json_path.with_suffix("") if folder is None else Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder} with the PNGs of {json_path}; pass it as a folder argument"
        )
    where = f"an annotation of {json_path}"
    images = [
        _AnnotatedImage(
            _field(annotation, "image_id", where),
            folder / _field(annotation, "file_name", where),
            _field(annotation, "segments_info", where),
        )
        for annotation in _field(content, "annotations", str(json_path))
    ]
    counts = Counter(image.image_id for image in images)
    if repeated := [image_id for image_id, count in counts.items() if count > 1]:
        raise ValueError(f"{json_path} must annotate each image once, but repeats {repeated[:10]}")
    return {image.image_id: image for image in images}


def _pair_images(
    targets: Mapping[int | str, _AnnotatedImage],
    predictions: Mapping[int | str, _AnnotatedImage],
    pred_json: Path,
) -> list[tuple[_AnnotatedImage, _AnnotatedImage]]:
    if unpredicted := [image_id for image_id in targets if image_id not in predictions]:
        raise ValueError(
            f"{len(unpredicted)} of {len(targets)} images have no prediction in {pred_json}: "
            f"{unpredicted[:10]}; an image without segments needs an annotation with an empty segments_info"
        )
    pairs = [(target, predictions[image_id]) for image_id, target in targets.items()]
    if absent := [image.png for pair in pairs for image in pair if not image.png.is_file()]:
        raise FileNotFoundError(
            f"{len(absent)} PNGs are missing, the first {absent[0]}; check the folder and each file_name"
        )
    return pairs


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write the file again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold one JSON object with 'annotations', got a {type(content).__name__}; "
            "for a list of results, wrap it as {'annotations': [...]}"
        )
    return content


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ValueError(f"{where} has no {name!r}, only {sorted(record)}; see the COCO panoptic format")
    return record[name]
