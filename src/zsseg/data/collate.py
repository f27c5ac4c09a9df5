"""Examples into one padded batch of tensors, as the models take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.data.examples import PanopticExample
from zsseg.structures import PanopticSegmentation


@dataclass(frozen=True)
class PanopticCollator:
    """Makes batches; pass it to a ``DataLoader`` as ``collate_fn``.

    Attributes:
        image_mean: per channel, of rescaled pixels.
        image_std: per channel, of rescaled pixels.
        rescale_factor: multiplies the 8-bit values first.
        size_divisor: height and width of the batch are rounded up to a multiple of it, in pixels.
        label_id_by_vocabulary_id: label id of the data set's vocabulary → label id of the one trained on, so
            ``{v: i for i, v in enumerate(vocabulary.seen_label_ids)}`` for training on seen labels. Segments
            of labels it lacks count as unknown. None keeps the data set's label ids.

    Raises:
        ValueError: if a standard deviation is not positive or the divisor below 1.
    """

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    size_divisor: int = 32
    label_id_by_vocabulary_id: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(
                "image_mean and image_std need one value for each of R, G and B, with positive deviations; "
                f"got {self.image_mean} and {self.image_std}"
            )
        if self.size_divisor < 1:
            raise ValueError(f"size_divisor must be 1 or more, got {self.size_divisor}")

    def __call__(self, examples: Sequence[PanopticExample]) -> dict[str, Any]:
        """Make a batch; pictures and masks lie at the top left, padding at the bottom and right.

        Returns:
            ``pixel_values`` (B, 3, H, W) float32, normalised, 0 on padding; ``pixel_mask`` (B, H, W) bool,
            true on the picture; ``mask_labels`` B × (n, H, W) bool and ``class_labels`` B × (n,) int64, a
            thing segment or a stuff label each; ``label_mask`` (B, H, W) bool, false where the label is
            unknown (padding, void, crowds, labels that are not trained on); ``image_ids``;
            ``original_sizes``, (height, width) before padding. If the examples have tokens, also
            ``image_tokens`` (B, D) float32 and ``segment_tokens`` B × (n, D) float32, one for each mask: a
            mask of several stuff segments has the mean of their tokens.

        Raises:
            ValueError: if there is no example, or some have tokens and others none.
        """
        import torch

        if not examples:
            raise ValueError("a batch needs at least one example, got none")
        sizes = [example.target.size for example in examples]
        height, width = (self._round_up(max(edges)) for edges in zip(*sizes, strict=True))
        batch = len(examples)
        pixel_values = np.zeros((batch, 3, height, width), dtype=np.float32)
        pixel_mask = np.zeros((batch, height, width), dtype=np.bool_)
        label_mask = np.zeros_like(pixel_mask)
        mask_labels: list[torch.Tensor] = []
        class_labels: list[torch.Tensor] = []
        groups_by_example: list[list[list[int]]] = []
        for row, (example, (h, w)) in enumerate(zip(examples, sizes, strict=True)):
            pixel_values[row, :, :h, :w] = self._normalise(example)
            pixel_mask[row, :h, :w] = True
            groups, label_ids = self._group_segments(example.target)
            groups_by_example.append(groups)
            masks = np.zeros((len(groups), height, width), dtype=np.bool_)
            for mask, ids in zip(masks, groups, strict=True):
                _mark(example.target.segment_ids, ids, mask[:h, :w])
            masks.any(axis=0, out=label_mask[row])
            mask_labels.append(torch.from_numpy(masks))
            class_labels.append(torch.tensor(label_ids, dtype=torch.int64))
        return {
            "pixel_values": torch.from_numpy(pixel_values),
            "pixel_mask": torch.from_numpy(pixel_mask),
            "mask_labels": mask_labels,
            "class_labels": class_labels,
            "label_mask": torch.from_numpy(label_mask),
            "image_ids": [example.image_id for example in examples],
            "original_sizes": sizes,
            **_collate_tokens(examples, groups_by_example),
        }

    def _round_up(self, length: int) -> int:
        return -(-length // self.size_divisor) * self.size_divisor

    def _normalise(self, example: PanopticExample) -> NDArray[np.float32]:
        """(3, H, W): (pixels × rescale_factor − mean) / std."""
        mean = np.asarray(self.image_mean, dtype=np.float64)
        std = np.asarray(self.image_std, dtype=np.float64)
        # 256 values a channel: normalise these instead of every pixel.
        table = ((np.arange(256)[None] * self.rescale_factor - mean[:, None]) / std[:, None]).astype(
            np.float32
        )
        pixels = np.asarray(example.image)
        return np.stack([table[channel][pixels[:, :, channel]] for channel in range(3)])

    def _group_segments(self, target: PanopticSegmentation) -> tuple[list[list[int]], list[int]]:
        """Segment ids of each mask, and the masks' label ids: things one by one, stuff by label."""
        mapping = self.label_id_by_vocabulary_id
        groups: list[list[int]] = []
        label_ids: list[int] = []
        stuff: dict[int, int] = {}
        for segment in target.segments:
            label_id = segment.label_id if mapping is None else mapping.get(segment.label_id)
            if label_id is None or segment.iscrowd:
                continue
            if not segment.isthing and label_id in stuff:
                groups[stuff[label_id]].append(segment.id)
                continue
            if not segment.isthing:
                stuff[label_id] = len(groups)
            groups.append([segment.id])
            label_ids.append(label_id)
        return groups, label_ids


def _collate_tokens(
    examples: Sequence[PanopticExample], groups_by_example: Sequence[list[list[int]]]
) -> dict[str, Any]:
    """``image_tokens`` and ``segment_tokens``, nothing if no example has tokens."""
    import torch

    tokens = [example.tokens for example in examples if example.tokens is not None]
    if not tokens:
        return {}
    if len(tokens) < len(examples):
        raise ValueError(
            f"{len(tokens)} of {len(examples)} examples have CLS tokens: wrap every data set in a "
            "ClipTokenDataset, or none"
        )
    segment_tokens = []
    for example_tokens, groups in zip(tokens, groups_by_example, strict=True):
        means = [np.mean([example_tokens.segments[i] for i in group], axis=0) for group in groups]
        # In this shape without segments too.
        rows = np.array(means, dtype=np.float32).reshape(-1, len(example_tokens.image))
        segment_tokens.append(torch.from_numpy(rows))
    return {
        "image_tokens": torch.from_numpy(np.stack([example_tokens.image for example_tokens in tokens])),
        "segment_tokens": segment_tokens,
    }


def _mark(segment_ids: NDArray[np.int32], ids: list[int], out: NDArray[np.bool_]) -> None:
    np.equal(segment_ids, ids[0], out=out)
    for segment_id in ids[1:]:
        out |= segment_ids == segment_id
