"""Tables of results → COCO's panoptic JSON and PNGs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsseg.batch_inference.results_folder import ResultsFolder
from zsseg.panoptic_format import decode_panoptic_png
from zsseg.postprocessing.result_files import write_coco_panoptic_results
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Vocabulary


def write_coco_files(results: ResultsFolder, vocabulary: Vocabulary) -> Path:
    """Write ``panoptic.json`` and ``panoptic/`` beside the parts, of all pictures that could be read.

    Args:
        results: of a run that is done.
        vocabulary: of that run.

    Returns:
        Path of the JSON.
    """
    return write_coco_panoptic_results(results.folder, _read_segmentations(results, vocabulary), vocabulary)


def _read_segmentations(
    results: ResultsFolder, vocabulary: Vocabulary
) -> Iterator[tuple[int, str, PanopticSegmentation]]:
    for row in results.iterate_rows():
        if row["error"] is None:
            yield row["image_id"], row["file_name"], build_segmentation(row, vocabulary)


def build_segmentation(row: dict[str, Any], vocabulary: Vocabulary) -> PanopticSegmentation:
    """The segmentation that a row of results holds.

    Args:
        row: of a picture that could be read.
        vocabulary: gives the labels' ids.

    Raises:
        KeyError: if a label is not in the vocabulary.
        ValueError: if the map is damaged.
    """
    return PanopticSegmentation(
        decode_panoptic_png(row["panoptic_png"], name=f"the map of image {row['image_id']}"),
        tuple(
            SegmentInfo(
                id=segment["id"],
                label_id=vocabulary.label_id(segment["label"]),
                isthing=segment["isthing"],
                area=segment["area"],
                bbox=tuple(segment["bbox"]),
                score=segment["score"],
                label=segment["label"],
            )
            for segment in row["segments"]
        ),
    )
