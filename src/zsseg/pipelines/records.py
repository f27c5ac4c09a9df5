"""From the panoptic pipeline's records back to the map that drawing, files and metrics take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Vocabulary


def build_segmentation(
    records: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, size: tuple[int, int]
) -> PanopticSegmentation:
    """Put the segments of one picture together again.

    Args:
        records: what the panoptic pipeline found: ``id``, ``label``, ``score``, ``isthing``, ``mask``,
            ``area`` and ``bbox`` of each segment.
        vocabulary: gives the labels' ids; the pipeline's own labels.
        size: (height, width) of the picture.

    Raises:
        KeyError: if a label is not in the vocabulary.

    Example:
        >>> from PIL import Image
        >>> mask = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
        >>> record = {"id": 1, "label": "car", "score": 0.5, "isthing": True, "area": 1, "bbox": [1, 0, 1, 1]}
        >>> vocabulary = Vocabulary.from_labels(["road", "car"])
        >>> segmentation = build_segmentation([{**record, "mask": mask}], vocabulary, (1, 2))
        >>> segmentation.segment_ids, segmentation.segments[0].label_id
        (array([[0, 1]], dtype=int32), 1)
    """
    segment_ids = np.zeros(size, dtype=np.int32)
    for record in records:
        segment_ids[np.asarray(record["mask"]) > 0] = record["id"]
    return PanopticSegmentation(
        segment_ids,
        tuple(
            SegmentInfo(
                id=record["id"],
                label_id=vocabulary.label_id(record["label"]),
                isthing=record["isthing"],
                area=record["area"],
                bbox=tuple(record["bbox"]),
                score=record["score"],
                label=record["label"],
            )
            for record in records
        ),
    )
