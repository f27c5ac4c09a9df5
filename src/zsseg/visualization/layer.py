"""One segmentation as it is drawn: segments by position, their regions, their colours, the blended pixels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.structures import VOID_ID, PanopticSegmentation
from zsseg.visualization.colors import Color, ColorScheme
from zsseg.visualization.regions import SegmentRegions, contour_mask
from zsseg.vocabulary import Vocabulary

ROWS_PER_STRIP = 256
"""Pictures are blended in strips, so that a large one needs little memory beside itself."""
SAME_INSTANCE_IOU = 0.5


@dataclass(frozen=True, slots=True)
class DrawnSegment:
    """What drawing needs to know about a segment.

    Attributes:
        label_id: index in the vocabulary.
        is_instance: whether it is one countable thing with a shade of its own.
        score: in [0, 1], or None.
    """

    label_id: int
    is_instance: bool
    score: float | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A segmentation ready to draw.

    Attributes:
        segments: S segments.
        regions: where they lie.
    """

    segments: tuple[DrawnSegment, ...]
    regions: SegmentRegions

    @classmethod
    def from_panoptic(cls, segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> "Layer":
        """Read a panoptic segmentation.

        Raises:
            ValueError: if a label id is outside the vocabulary or the map and the list disagree.
        """
        if outside := sorted({s.label_id for s in segmentation.segments if s.label_id >= len(vocabulary)}):
            raise ValueError(
                f"label ids {outside[:10]} are outside the vocabulary of {len(vocabulary)} labels: pass the "
                "vocabulary that the segmentation was made with"
            )
        segments = tuple(DrawnSegment(s.label_id, s.isthing, s.score) for s in segmentation.segments)
        ids = [segment.id for segment in segmentation.segments]
        return cls(segments, SegmentRegions.from_ids(segmentation.segment_ids, ids))

    @classmethod
    def from_semantic(
        cls, label_map: NDArray[np.integer], vocabulary: Vocabulary, ignore_index: int | None
    ) -> "Layer":
        """Read a semantic map: one segment for each label that occurs.

        Args:
            label_map: (H, W) label ids.
            vocabulary: what they mean.
            ignore_index: value of unlabelled pixels, or None.

        Raises:
            ValueError: if the map is no (H, W) array of integers, holds a value that is neither a label nor
                ``ignore_index``, or ``ignore_index`` is a label.
        """
        if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
            raise ValueError(
                "a semantic map must be an (H, W) array of integers, "
                f"got shape {label_map.shape} and dtype {label_map.dtype}"
            )
        if ignore_index is not None and 0 <= ignore_index < len(vocabulary):
            raise ValueError(
                f"ignore_index {ignore_index} is the label {vocabulary[ignore_index].name!r}: pass "
                "ignore_index=None or a value outside the vocabulary"
            )
        is_label = (label_map >= 0) & (label_map < len(vocabulary))
        others = np.unique(label_map[~is_label])
        if unknown := [int(value) for value in others if value != ignore_index]:
            raise ValueError(
                f"the semantic map holds {unknown[:10]}, but labels run from 0 to {len(vocabulary) - 1} and "
                f"ignore_index is {ignore_index}"
            )
        ids = np.where(is_label, label_map.astype(np.int32) + 1, VOID_ID).astype(np.int32)
        listed = np.unique(ids[ids != VOID_ID]).tolist()
        segments = tuple(DrawnSegment(segment_id - 1, is_instance=False) for segment_id in listed)
        return cls(segments, SegmentRegions.from_ids(ids, listed))

    def instances(self, label_id: int) -> list[int]:
        """Positions of the segments of one label, from left to right."""
        positions = [i for i, segment in enumerate(self.segments) if segment.label_id == label_id]
        boxes = self.regions.boxes
        return sorted(positions, key=lambda i: (int(boxes[i, 0] + boxes[i, 2]), i))


def color_layers(layers: Sequence[Layer], scheme: ColorScheme) -> list[list[Color]]:
    """Colours for the segments of every layer.

    Things of one label get different shades, numbered from left to right. An instance of a later layer that
    covers one of the first with an IoU above 0.5 has its shade; those left over get further ones.
    """
    colors = []
    first_variants: dict[int, int] = {}
    for layer in layers:
        twins = {} if layer is layers[0] else _same_instances(layer, layers[0])
        variants = {own: first_variants[twin] for own, twin in twins.items() if twin in first_variants}
        used: dict[int, set[int]] = defaultdict(set)
        for position, variant in variants.items():
            used[layer.segments[position].label_id].add(variant)
        for label_id in sorted({segment.label_id for segment in layer.segments if segment.is_instance}):
            for position in layer.instances(label_id):
                if layer.segments[position].is_instance and position not in variants:
                    variants[position] = _lowest_unused(used[label_id])
                    used[label_id].add(variants[position])
        first_variants = first_variants or variants
        colors.append(
            [scheme.shade(s.label_id, variants.get(position, 0)) for position, s in enumerate(layer.segments)]
        )
    return colors


def blend(
    image: Image.Image, layer: Layer, colors: Sequence[Color], alpha: float, font_size: int
) -> Image.Image:
    """The picture under its colours, with contours; void grey, darker and hatched.

    The picture fades towards grey as far as the colours are opaque, so that they look as in the legend.

    Args:
        image: (H, W) RGB.
        layer: of the same size.
        colors: one for each segment.
        alpha: opacity in [0, 1].
        font_size: in pixels; contours and hatching follow it.

    Returns:
        (H, W) RGB.
    """
    table = np.array([(0, 0, 0), *colors], dtype=np.uint8)
    weight = round(alpha * 256)
    line = max(1, font_size // 12)
    index = layer.regions.index
    contour = contour_mask(index, 2 * line)
    result = np.array(image)
    for top in range(0, len(index), ROWS_PER_STRIP):
        rows = slice(top, top + ROWS_PER_STRIP)
        solid = table[index[rows]]
        pixels = result[rows].astype(np.uint16)
        grey = _grey(pixels)
        faded = _mix(pixels, grey[:, :, None], weight)
        mixed = _mix(faded, solid, weight)
        border = contour[rows]
        mixed[border] = solid[border]
        void = index[rows] == 0
        if void.any():
            dimmed = _dimmed(grey, top, max(6, font_size // 2), line)
            mixed[void] = dimmed[void][:, None]
        result[rows] = mixed
    return Image.fromarray(result)


def _mix(below: NDArray[np.uint16], above: NDArray[np.integer], weight: int) -> NDArray[np.uint16]:
    """``above`` over ``below`` with an opacity of weight / 256."""
    sums: NDArray[np.uint16] = below * np.uint16(256 - weight) + above * np.uint16(weight)
    return np.right_shift(sums, 8, out=sums)


def _grey(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(H, W) brightness in 0..255, with the weights of ITU-R BT.601."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    sums: NDArray[np.uint16] = red * np.uint16(77) + green * np.uint16(150) + blue * np.uint16(29)
    return np.right_shift(sums, 8, out=sums)


def _dimmed(grey: NDArray[np.uint16], top: int, spacing: int, line: int) -> NDArray[np.uint16]:
    """Brightness at 65 % with diagonal lines; ``top`` keeps them straight across strips."""
    dimmed: NDArray[np.uint16] = np.right_shift(grey * np.uint16(166), 8, dtype=np.uint16)
    rows, columns = np.ogrid[top : top + grey.shape[0], : grey.shape[1]]
    dimmed[(rows + columns) % spacing < line] += np.uint16(35)
    return dimmed


def _same_instances(layer: Layer, reference: Layer) -> dict[int, int]:
    """Positions in ``layer`` → positions in ``reference`` of instances of one label with IoU above 0.5."""
    own, other = layer.regions.index, reference.regions.index
    own_count, other_count = len(layer.segments) + 1, len(reference.segments) + 1
    counts = np.zeros(own_count * other_count, dtype=np.int64)
    for top in range(0, len(own), ROWS_PER_STRIP):
        rows = slice(top, top + ROWS_PER_STRIP)
        pairs = own[rows].astype(np.int64) * other_count + other[rows]
        counts += np.bincount(pairs.ravel(), minlength=counts.size)
    joint = counts.reshape(own_count, other_count)
    union = joint.sum(axis=1)[:, None] + joint.sum(axis=0)[None, :] - joint
    matched = np.argwhere(joint[1:, 1:] > SAME_INSTANCE_IOU * union[1:, 1:]).tolist()
    return {i: j for i, j in matched if layer.segments[i].label_id == reference.segments[j].label_id}


def _lowest_unused(used: set[int]) -> int:
    return next(variant for variant in range(len(used) + 1) if variant not in used)
