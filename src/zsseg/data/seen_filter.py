"""Keeping unseen labels out of training: by image, as zero-shot panoptic segmentation asks, or by pixel."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np

from zsseg.data.examples import PanopticDataset, PanopticExample, recount_target
from zsseg.structures import VOID_ID
from zsseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

UnseenPolicy = Literal["drop_images", "ignore_pixels"]
"""What happens to unseen segments in training: their pictures are left out, or they become void."""


class SubsetDataset:
    """Some pictures of a data set.

    Args:
        dataset: the data set.
        indices: which of its pictures, in this order.

    Raises:
        IndexError: if an index is outside the data set.
    """

    def __init__(self, dataset: PanopticDataset, indices: Sequence[int]) -> None:
        if outside := [index for index in indices if not 0 <= index < len(dataset)]:
            raise IndexError(f"indices must lie in [0, {len(dataset)}), got {outside[:10]}")
        self.dataset = dataset
        self.indices = tuple(indices)

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the data set."""
        return self.dataset.vocabulary

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> PanopticExample:
        return self.dataset[self.indices[index]]

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids present in one target."""
        return self.dataset.label_ids(self.indices[index])


class UnseenIgnoredDataset:
    """A data set whose unseen segments are void.

    This is not the filter of zero-shot panoptic segmentation: the pictures still show unseen things and
    stuff, only without their masks. A card must say which of the two was used.

    Args:
        dataset: the data set; its vocabulary says what is unseen.
    """

    def __init__(self, dataset: PanopticDataset) -> None:
        self.dataset = dataset
        self._unseen = frozenset(dataset.vocabulary.unseen_label_ids)

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the data set, unseen labels included: label ids do not shift."""
        return self.dataset.vocabulary

    @cached_property
    def images_with_unseen(self) -> int:
        """How many pictures hold an unseen segment; reads every target the first time."""
        return len(self.dataset) - len(_seen_indices(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PanopticExample:
        return hide_labels(self.dataset[index], self._unseen)

    def label_ids(self, index: int) -> frozenset[int]:
        """The seen label ids present in one target."""
        return self.dataset.label_ids(index) - self._unseen


def drop_images_with_unseen(dataset: PanopticDataset) -> SubsetDataset:
    """Keep the pictures without any unseen segment: the training set of zero-shot panoptic segmentation.

    Of COCO's 118,287 training pictures about 45,000 remain in the 119/14 split (CONCAT, arXiv:2402.13697).
    The count is logged if any are dropped; ``len(dataset) - len(result)`` is their number.

    Raises:
        ValueError: if the vocabulary has no unseen label, or no picture remains.
    """
    _require_unseen(dataset.vocabulary)
    kept = _seen_indices(dataset)
    if not kept:
        raise ValueError(
            f"all {len(dataset)} pictures hold an unseen segment, so none would be left to train on; "
            "ignore_unseen keeps the pictures and hides only the unseen pixels"
        )
    if dropped := len(dataset) - len(kept):
        logger.info("kept %d of %d pictures: %d hold an unseen segment", len(kept), len(dataset), dropped)
    return SubsetDataset(dataset, kept)


def ignore_unseen(dataset: PanopticDataset) -> UnseenIgnoredDataset:
    """Keep all pictures and make their unseen segments void; see :class:`UnseenIgnoredDataset`.

    Raises:
        ValueError: if the vocabulary has no unseen label.
    """
    _require_unseen(dataset.vocabulary)
    return UnseenIgnoredDataset(dataset)


class SeenLabelsDataset:
    """A data set whose unseen segments are void, and whose vocabulary does not know their labels.

    For whoever must not learn of the unseen names: validation during inductive training.

    Args:
        dataset: the data set; its vocabulary says what is unseen.
    """

    def __init__(self, dataset: PanopticDataset) -> None:
        self.dataset = UnseenIgnoredDataset(dataset)
        vocabulary = dataset.vocabulary
        self.vocabulary = vocabulary.select(vocabulary.seen_label_ids)
        self._label_ids = {old: new for new, old in enumerate(vocabulary.seen_label_ids)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PanopticExample:
        example = self.dataset[index]
        segments = tuple(
            replace(segment, label_id=self._label_ids[segment.label_id])
            for segment in example.target.segments
        )
        return replace(example, target=replace(example.target, segments=segments))

    def label_ids(self, index: int) -> frozenset[int]:
        """The seen label ids present in one target, as the vocabulary here counts them."""
        return frozenset(self._label_ids[label_id] for label_id in self.dataset.label_ids(index))


def _require_unseen(vocabulary: Vocabulary) -> None:
    if not vocabulary.unseen_label_ids:
        raise ValueError(
            "every label of the vocabulary is seen, so there is nothing to filter; load the data set with a "
            "vocabulary from load_split or mark_unseen"
        )


def _seen_indices(dataset: PanopticDataset) -> list[int]:
    unseen = frozenset(dataset.vocabulary.unseen_label_ids)
    return [index for index in range(len(dataset)) if not dataset.label_ids(index) & unseen]


def hide_labels(example: PanopticExample, label_ids: frozenset[int]) -> PanopticExample:
    """The example with the segments of some labels void."""
    target = example.target
    hidden = [segment.id for segment in target.segments if segment.label_id in label_ids]
    if not hidden:
        return example
    segment_ids = np.where(np.isin(target.segment_ids, hidden), np.int32(VOID_ID), target.segment_ids)
    return replace(example, target=recount_target(target, segment_ids))
