"""Batches for one process of a run, endlessly, and where in the data they come from."""

import atexit
import re
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zsseg.training.arguments import TrainerArguments
from zsseg.training.data_order import (
    EpochBatchSampler,
    EpochDataset,
    Place,
    SizedDataset,
    StreamedDataset,
    is_streamed,
)
from zsseg.training.interruption import leave_signals_to_trainer
from zsseg.training.stage import Batch

Collate = Callable[[list[Any]], Batch]

_RAISED = re.compile(r"^[\w.]+: ", re.MULTILINE)
"""Where a traceback names the error; all other lines of it are indented."""


@dataclass(frozen=True)
class ProcessPlace:
    """Which of the processes this one is, and whether its batches go to a GPU."""

    index: int
    count: int
    is_on_gpu: bool = False


class DataFeed(ABC):
    """An endless sequence of batches.

    Args:
        loader: gives them.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        # Loading processes pay no heed to signals: not told to end, they would keep this process from ending.
        self._source: list[Iterator[Any]] = [iter(loader)]
        atexit.register(self._source.clear)

    @abstractmethod
    def next_batch(self) -> Batch:
        """The next batch of this process."""

    def _load(self) -> Any:
        """What the loader gives next; what is wrong with the data is said without the loader's frames."""
        try:
            return next(self._source[0])
        except (OSError, ValueError) as error:
            # Frames that are kept keep the loader, whose processes would then never be told to end.
            traceback.clear_frames(error.__traceback__)
            raise _drop_traceback(error) from None

    def close(self) -> None:
        """End the loading processes."""
        self._source.clear()
        atexit.unregister(self._source.clear)

    @property
    @abstractmethod
    def place(self) -> Place:
        """Where the next batch begins."""

    @abstractmethod
    def describe(self) -> str:
        """How much data there is."""

    def get_state(self) -> list[list[int]] | None:
        """What this process needs to go on, beside the place; None if that is all."""
        return None


def build_feed(
    dataset: SizedDataset | StreamedDataset,
    collate: Collate,
    arguments: TrainerArguments,
    process: ProcessPlace,
    *,
    start: Place,
    stream_state: list[list[int]] | None,
) -> DataFeed:
    """The feed of a data set.

    Args:
        dataset: examples by index, or a stream of them.
        collate: list of examples → batch.
        arguments: batch size, seed and loading processes.
        process: this one.
        start: where the first batch begins; of a stream only the epoch counts.
        stream_state: of :meth:`DataFeed.get_state`, to go on in the middle of a stream.

    Raises:
        ValueError: if there are fewer examples than a batch.
    """
    if is_streamed(dataset):
        return StreamFeed(
            dataset,  # type: ignore[arg-type]
            collate,
            arguments,
            process,
            [_Part(*part) for part in stream_state]
            if stream_state
            else [_Part(number, start.epoch) for number in range(count_parts(arguments))],
        )
    return IndexedFeed(dataset, collate, arguments, process, start)  # type: ignore[arg-type]


def count_parts(arguments: TrainerArguments) -> int:
    """Into how many parts a process divides its share of a stream: one for each loading process."""
    return max(arguments.num_workers, 1)


class IndexedFeed(DataFeed):
    """Batches of examples by index, shared out between the processes; see :class:`EpochBatchSampler`."""

    def __init__(
        self,
        dataset: SizedDataset,
        collate: Collate,
        arguments: TrainerArguments,
        process: ProcessPlace,
        start: Place,
    ) -> None:
        self.sampler = EpochBatchSampler(
            length=len(dataset),
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            start=start,
            process_index=process.index,
            process_count=process.count,
        )
        self._place = self.sampler.find_next(start)
        loader: DataLoader[Any] = DataLoader(
            EpochDataset(dataset),
            batch_sampler=self.sampler,
            collate_fn=collate,
            **_loader_options(arguments, process),
        )
        super().__init__(loader)

    def next_batch(self) -> Batch:
        """The next batch of this process."""
        batch: Batch = self._load()
        self._place = self.sampler.advance(self._place)
        return batch

    @property
    def place(self) -> Place:
        """Where the next batch begins."""
        return self._place

    def describe(self) -> str:
        """Examples and batches of an epoch."""
        return f"{self.sampler.length:,} examples, {self.sampler.batches_per_epoch:,} batches an epoch"


class StreamFeed(DataFeed):
    """Batches of a stream, each process and each of its loading processes reading a part of its own.

    The parts may differ in length: where one ends, its next epoch begins, in the middle of a batch if need
    be. So no example is left out, and no process waits for a batch that never comes.

    Args:
        dataset: the stream.
        collate: list of examples → batch.
        arguments: batch size and loading processes.
        process: this one.
        parts: its parts, in the order in which their next batches come.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        collate: Collate,
        arguments: TrainerArguments,
        process: ProcessPlace,
        parts: "list[_Part]",
    ) -> None:
        self._parts = deque(parts)
        batches = _StreamedBatches(dataset, collate, arguments.batch_size, process, parts)
        loader: DataLoader[Any] = DataLoader(
            batches, batch_size=None, collate_fn=_leave, **_loader_options(arguments, process)
        )
        super().__init__(loader)

    def next_batch(self) -> Batch:
        """The next batch of this process; the loader asks its processes in turn."""
        batch: Batch
        batch, part = self._load()
        self._parts.popleft()
        self._parts.append(part)
        return batch

    @property
    def place(self) -> Place:
        """The epoch of the part that comes next."""
        return Place(self._parts[0].epoch)

    def describe(self) -> str:
        """Nobody knows how long a stream is."""
        return "a stream of examples"

    def get_state(self) -> list[list[int]]:
        """Number, epoch and position of each part, in the order in which their next batches come."""
        return [list(part) for part in self._parts]


class _Part(NamedTuple):
    """A part of a stream, and what was consumed of it: all epochs before, and so many examples of this."""

    number: int
    epoch: int
    position: int = 0


class _StreamedBatches(IterableDataset[tuple[Batch, _Part]]):
    """What one loading process reads: whole batches, each with what was then consumed of its part."""

    def __init__(
        self,
        dataset: StreamedDataset,
        collate: Collate,
        batch_size: int,
        process: ProcessPlace,
        parts: Sequence[_Part],
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batch_size = batch_size
        self.process = process
        self.parts = tuple(parts)

    def __iter__(self) -> Iterator[tuple[Batch, _Part]]:
        worker = get_worker_info()
        number, epoch, consumed = self.parts[0 if worker is None else worker.id]
        per_process = len(self.parts)
        shard = self.dataset.shard(
            self.process.index * per_process + number, self.process.count * per_process
        )
        examples: list[Any] = []
        while True:
            shard.set_epoch(epoch)
            count = 0
            for count, example in enumerate(shard, start=1):
                if count <= consumed:
                    continue
                examples.append(example)
                if len(examples) == self.batch_size:
                    yield self.collate(examples), _Part(number, epoch, count)
                    examples = []
            if count == 0:
                raise ValueError(
                    f"a stream divided among {self.process.count} process(es) with {per_process} loading "
                    "process(es) each leaves one without any example: lower num_workers, start fewer "
                    "processes, or store the data in more pieces"
                )
            epoch, consumed = epoch + 1, 0


def _drop_traceback(error: OSError | ValueError) -> Exception:
    """The error of a loading process as it was: PyTorch makes its whole traceback part of the message."""
    _, is_from_elsewhere, original = str(error).partition("Original Traceback")
    if not is_from_elsewhere:
        return error
    message = _RAISED.split(original)[-1].strip()
    return OSError(message) if isinstance(error, OSError) else ValueError(message)


def _leave(item: Any) -> Any:
    """Batches of a stream come collated."""
    return item


def _loader_options(arguments: TrainerArguments, process: ProcessPlace) -> dict[str, Any]:
    return {
        "num_workers": arguments.num_workers,
        "pin_memory": process.is_on_gpu,
        "worker_init_fn": leave_signals_to_trainer,
        # Its own generator: otherwise the loader draws its workers' seed from the global one, once more in a
        # resumed run than in one that was never killed.
        "generator": torch.Generator().manual_seed(arguments.seed),
    }
