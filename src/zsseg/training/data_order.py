"""Which example comes when: a function of seed and position alone, so that a run can start anywhere."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from torch.utils.data import Dataset, Sampler


class SizedDataset(Protocol):
    """A map-style data set; ``set_epoch(epoch)``, where it exists, chooses that epoch's augmentation."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Example ``index``."""


class StreamedDataset(Protocol):
    """A data set of unknown length that is read from front to end.

    Its order is a function of shard and epoch; read twice, it is the same.
    """

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the augmentation, of the next reading."""

    def shard(self, index: int, count: int) -> Self:
        """Part ``index`` of ``count``; the parts have no example in common and leave none out."""

    def __iter__(self) -> Iterator[Any]:
        """The examples of one epoch."""


def is_streamed(dataset: SizedDataset | StreamedDataset) -> bool:
    """Whether a data set is read from front to end, and not by index."""
    return hasattr(dataset, "shard") and not hasattr(dataset, "__len__")


class Place(NamedTuple):
    """A place in the data: so many examples of an epoch are consumed, by all processes together."""

    epoch: int = 0
    position: int = 0


BEGINNING = Place()


class EpochDataset(Dataset[Any]):
    """Examples addressed by (epoch, index).

    The epoch travels with the index into every worker process, so that one loader runs through all epochs
    without being restarted and without a worker augmenting for the wrong one.
    """

    def __init__(self, dataset: SizedDataset) -> None:
        self.dataset = dataset
        self.epoch: int | None = None

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if epoch != self.epoch:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            self.epoch = epoch
        return self.dataset[index]


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """An endless sequence of batches of (epoch, index), shuffled anew in every epoch.

    Every process of a distributed run takes its own part of each global batch. What is left at the end of an
    epoch and fills no global batch is left out. The order of an epoch knows nothing of batches, so that a run
    can go on in the middle of it with batches of another size or other processes.

    Args:
        length: number of examples.
        batch_size: examples per batch and process.
        seed: of the shuffling.
        start: what was already consumed; it is skipped without being loaded.
        process_index: this process.
        process_count: number of processes.

    Raises:
        ValueError: if not even one global batch fits into an epoch.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        start: Place = BEGINNING,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.global_batch_size = batch_size * process_count
        if length < self.global_batch_size:
            raise ValueError(
                f"a batch of {batch_size} on {process_count} process(es) needs {self.global_batch_size} "
                f"examples, but the data set has {length}: lower batch_size"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.process_index = process_index
        self.batches_per_epoch = length // self.global_batch_size

    def find_next(self, place: Place) -> Place:
        """Where the first batch from ``place`` on begins: there, or in the next epoch."""
        fits = place.position + self.global_batch_size <= self.length
        return place if fits else Place(place.epoch + 1)

    def advance(self, place: Place) -> Place:
        """Where the next batch begins once the one at ``place`` is consumed."""
        epoch, position = self.find_next(place)
        return self.find_next(Place(epoch, position + self.global_batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        place = self.find_next(self.start)
        while True:
            epoch = place.epoch
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            while place.epoch == epoch:
                first = place.position + self.process_index * self.batch_size
                yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]
                place = self.advance(place)
