"""A data set whose random changes are a pure function of (seed, epoch, index)."""

import numpy as np

from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.transforms import Transform
from zsseg.vocabulary import Vocabulary


class TransformedDataset:
    """A data set seen through a transform.

    The generator of every item is seeded with (seed, epoch, index): results depend neither on the order of
    reading nor on the number of workers, and a resumed run sees what the uninterrupted one would.

    Args:
        dataset: what to transform.
        transform: called with each example and its generator.
        seed: 0 or more.

    Raises:
        ValueError: if the seed is negative.
    """

    def __init__(self, dataset: PanopticDataset, transform: Transform, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    @property
    def vocabulary(self) -> Vocabulary:
        """That of the data set."""
        return self.dataset.vocabulary

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before its iterator is made.

        Worker processes copy the data set when they start: use ``persistent_workers=False``, or they stay
        with the epoch they started in.

        Raises:
            ValueError: if the epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PanopticExample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}), got {index}")
        position = index % len(self)
        generator = np.random.default_rng([self.seed, self.epoch, position])
        return self.transform(self.dataset[position], generator)

    def label_ids(self, index: int) -> frozenset[int]:
        """The label ids of one target before the transform, which may remove some."""
        return self.dataset.label_ids(index)
