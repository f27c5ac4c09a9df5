"""One picture with its panoptic ground truth, and what every data set of such pairs offers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.structures import VOID_ID, PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Vocabulary

IGNORE_INDEX = 255
"""The value of unknown pixels in semantic maps, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class ClipTokens:
    """What a CLIP says of a picture and of its segments, each in one vector of the joint space.

    Attributes:
        image: (D,) float32, CLS token of the complete picture.
        segments: by segment id, (D,) float32, CLS token of the picture with all but the segment masked out.
    """

    image: NDArray[np.float32]
    segments: Mapping[int, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class PanopticExample:
    """A picture and its ground truth.

    Attributes:
        image: RGB, of the target's size.
        target: segments by label id of the data set's vocabulary; void where nothing is known.
        image_id: the data set's own id.
        file_name: the picture's file, relative to its folder.
        tokens: of the picture before any transform; None without a teacher. Transforms pass them on as they
            are.

    Raises:
        ValueError: if picture and target differ in size, or a segment other than a crowd has no token.
    """

    image: Image.Image
    target: PanopticSegmentation
    image_id: int | str
    file_name: str
    tokens: ClipTokens | None = None

    def __post_init__(self) -> None:
        height, width = self.target.size
        if self.image.size != (width, height):
            raise ValueError(
                f"{self.file_name}: the picture is {self.image.width}×{self.image.height} but its map is "
                f"{width}×{height} (width×height); they must be of the same size"
            )
        if self.tokens is not None:
            segments = (segment for segment in self.target.segments if not segment.iscrowd)
            if missing := [segment.id for segment in segments if segment.id not in self.tokens.segments]:
                raise ValueError(
                    f"{self.file_name}: segments {missing[:10]} have no token; every segment needs one, or "
                    "the example none"
                )


def compute_example_digest(example: PanopticExample) -> bytes:
    """32 bytes that change with the picture's pixels, its size or the segment map."""
    digest = hashlib.sha256(repr(example.image.size).encode())
    digest.update(example.image.tobytes())
    digest.update(example.target.segment_ids.tobytes())
    return digest.digest()


class PanopticDataset(Protocol):
    """What readers, filters and the training loop agree on; any torch ``DataLoader`` takes one."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels that targets refer to."""
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int) -> PanopticExample:
        """Read one picture and its target from disk."""
        ...

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one target, without reading the picture."""
        ...


class SegmentLabel(NamedTuple):
    """What a data set says of one segment."""

    label_id: int
    iscrowd: bool = False


def build_target(
    segment_ids: NDArray[np.int32], labels: Mapping[int, SegmentLabel], vocabulary: Vocabulary
) -> PanopticSegmentation:
    """Describe the segments of a map; areas and boxes are counted from its pixels.

    Args:
        segment_ids: (H, W) int32, 0 = void.
        labels: what each id in the map is; ids without a pixel are left out of the result.
        vocabulary: gives the labels' names and which are things.

    Raises:
        ValueError: if a pixel's id is not in ``labels``.
    """
    extents = measure_segments(segment_ids)
    if unlisted := sorted(extents.keys() - labels.keys()):
        raise ValueError(f"pixels carry segment ids that are not listed: {unlisted[:10]}")
    return PanopticSegmentation(
        segment_ids,
        tuple(
            SegmentInfo(
                id=segment_id,
                label_id=label.label_id,
                isthing=vocabulary[label.label_id].is_thing,
                area=extents[segment_id].area,
                bbox=extents[segment_id].bbox,
                iscrowd=label.iscrowd,
                label=vocabulary[label.label_id].name,
            )
            for segment_id, label in labels.items()
            if segment_id in extents
        ),
    )


def recount_target(target: PanopticSegmentation, segment_ids: NDArray[np.int32]) -> PanopticSegmentation:
    """The target for an altered map: areas and boxes counted anew, segments without a pixel dropped."""
    extents = measure_segments(segment_ids)
    return PanopticSegmentation(
        segment_ids,
        tuple(
            replace(segment, area=extents[segment.id].area, bbox=extents[segment.id].bbox)
            for segment in target.segments
            if segment.id in extents
        ),
    )


class SegmentExtent(NamedTuple):
    """Area in pixels and (x, y, width, height) box of one segment."""

    area: int
    bbox: tuple[int, int, int, int]


def measure_segments(segment_ids: NDArray[np.int32]) -> dict[int, SegmentExtent]:
    """Count area and box of every segment in one pass over runs of equal pixels, which are few.

    Args:
        segment_ids: (H, W) int32, 0 = void.

    Returns:
        the extent by segment id, void left out.

    Example:
        >>> measure_segments(np.array([[0, 7, 7], [0, 0, 7]], dtype=np.int32))
        {7: SegmentExtent(area=3, bbox=(1, 0, 2, 2))}
    """
    if segment_ids.size == 0:
        return {}
    width = segment_ids.shape[1]
    is_start = np.ones(segment_ids.shape, dtype=np.bool_)
    np.not_equal(segment_ids[:, 1:], segment_ids[:, :-1], out=is_start[:, 1:])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=segment_ids.size)
    rows, lefts = np.divmod(starts, width)
    run_ids = segment_ids.ravel()[starts]
    order = np.argsort(run_ids, kind="stable")
    sorted_ids, rows, lefts, lengths = run_ids[order], rows[order], lefts[order], lengths[order]
    first_runs = np.flatnonzero(np.diff(sorted_ids, prepend=sorted_ids[0] - 1))
    areas = np.add.reduceat(lengths, first_runs)
    left, right = np.minimum.reduceat(lefts, first_runs), np.maximum.reduceat(lefts + lengths, first_runs)
    top, bottom = np.minimum.reduceat(rows, first_runs), np.maximum.reduceat(rows, first_runs) + 1
    columns = (sorted_ids[first_runs], areas, left, top, right - left, bottom - top)
    return {
        segment_id: SegmentExtent(area, (x, y, box_width, box_height))
        for segment_id, area, x, y, box_width, box_height in zip(*(c.tolist() for c in columns), strict=True)
        if segment_id != VOID_ID
    }
