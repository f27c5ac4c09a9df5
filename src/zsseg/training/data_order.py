"""Which example comes when: a function of seed and position alone, so that a run can start anywhere."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler


class SizedDataset(Protocol):
    """A map-style data set; ``set_epoch(epoch)``, where it exists, chooses that epoch's augmentation."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Any:
        """Example ``index``."""


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

    Every process of a distributed run takes its own part of each global batch. The incomplete batch at the
    end of an epoch is left out.

    Args:
        length: number of examples.
        batch_size: examples per batch and process.
        seed: of the shuffling.
        start: number of batches that were already consumed; they are skipped without being loaded.
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
        start: int = 0,
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, position = divmod(self.start, self.batches_per_epoch)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            for batch in range(position, self.batches_per_epoch):
                first = batch * self.global_batch_size + self.process_index * self.batch_size
                yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]
            epoch, position = epoch + 1, 0
