"""Panoptic columns read as they stream in, from the Hub or from files too large to index, for training."""

import copy
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

import numpy as np

from zsseg.data.datasets_columns import find_void_category_ids, read_row, read_vocabulary, store_undecoded
from zsseg.data.examples import PanopticExample
from zsseg.data.seen_filter import UnseenPolicy, hide_labels
from zsseg.data.transforms import Transform
from zsseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets

Row = TypeVar("Row")
SHUFFLE_BUFFER = 1000
"""Rows held back for shuffling: 0.2 GB of undecoded pictures of COCO's size."""


class StreamedPanopticDataset:
    """Rows of a streamed data set as examples, in an order and with changes that seed and epoch decide.

    The files of the stream are shuffled anew in every epoch, and rows within a buffer. Several readers share
    it out by :meth:`shard`; every row goes to exactly one of them. A reader only opens files of its own as
    far as the number of files and the number of readers have a common divisor: with twelve files, four
    readers open three each, eight readers share each three files among two. Within one process the stream
    does not look at the ``DataLoader``'s workers: whoever starts them gives each a shard.

    Args:
        rows: columns as of :mod:`zsseg.data.datasets_columns`.
        vocabulary: labels to use instead of those that the columns carry, matched by category id; segments
            of categories that the columns name and it lacks become void.
        clean_names: clean the names that the columns carry for text encoders.
        shuffle_buffer: rows among which the next one is drawn; 1 keeps the order of the rows in a file.
        seed: of order and transform, 0 or more.

    Attributes:
        vocabulary: the labels that targets refer to.

    Raises:
        ValueError: if a number is out of range, or as for
            :func:`~zsseg.data.datasets_columns.read_vocabulary`.
    """

    def __init__(
        self,
        rows: "datasets.IterableDataset",
        vocabulary: Vocabulary | None = None,
        *,
        clean_names: bool = False,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        seed: int = 0,
    ) -> None:
        if shuffle_buffer < 1 or seed < 0:
            raise ValueError(
                f"shuffle_buffer must be 1 or more and seed 0 or more, got {shuffle_buffer} and {seed}"
            )
        features = rows.features
        if features is None:
            raise ValueError(
                "the stream does not say the types of its columns; write it as parquet, or give load_dataset "
                "the features of zsseg.data.datasets_columns.build_features"
            )
        self.vocabulary = (
            read_vocabulary(features, clean_names=clean_names) if vocabulary is None else vocabulary
        )
        self._void_category_ids = find_void_category_ids(features, self.vocabulary)
        self._rows = store_undecoded(rows)
        self._shuffle_buffer = shuffle_buffer
        self._seed = seed
        self._epoch = 0
        self._index, self._count = 0, 1
        self._transform: Transform | None = None
        self._unseen: UnseenPolicy | None = None

    def prepare(self, transform: Transform, *, seed: int, unseen: UnseenPolicy) -> Self:
        """The stream as training sees it.

        Args:
            transform: called with each example and a generator that follows from seed, epoch and the
                picture's id, whoever reads it.
            seed: of order and transform, 0 or more.
            unseen: what happens to unseen segments, if the vocabulary has unseen labels: "drop_images" leaves
                out each picture that holds one, "ignore_pixels" makes them void.

        Raises:
            ValueError: if an argument is out of range.
        """
        if seed < 0 or unseen not in get_args(UnseenPolicy):
            raise ValueError(
                f"seed must be 0 or more and unseen one of {list(get_args(UnseenPolicy))}, got {seed} and "
                f"{unseen!r}"
            )
        prepared = copy.copy(self)
        prepared._transform, prepared._seed, prepared._unseen = transform, seed, unseen
        return prepared

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before its iterator is made.

        Raises:
            ValueError: if it is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self._epoch = epoch

    def shard(self, index: int, count: int) -> Self:
        """The part of this stream that reader ``index`` of ``count`` reads.

        Raises:
            ValueError: if ``index`` is not in [0, count).
        """
        if not 0 <= index < count:
            raise ValueError(f"index must lie in [0, count), got index {index} of count {count}")
        shard = copy.copy(self)
        shard._index, shard._count = self._index + index * self._count, self._count * count
        return shard

    def __iter__(self) -> Iterator[PanopticExample]:
        """Read one epoch.

        Raises:
            ValueError: if a row is no example, or nothing is left for this reader: an endless training loop
                would wait for it forever.
        """
        is_empty, num_dropped = True, 0
        for row in self._read_rows():
            if self._is_dropped(row):
                num_dropped += 1
                continue
            is_empty = False
            yield self._read(row)
        if is_empty:
            dropped = (
                f"; {num_dropped} pictures hold an unseen segment and are left out" if num_dropped else ""
            )
            raise ValueError(
                f"reader {self._index} of {self._count} found no picture to train on{dropped}. Use fewer "
                "processes or loading workers"
                + (", or keep the pictures and ignore their unseen pixels" if num_dropped else "")
            )

    def _read_rows(self) -> Iterator[Mapping[str, Any]]:
        """This reader's rows, undecoded, in the order of the epoch."""
        num_files = self._rows.num_shards
        groups = math.gcd(num_files, self._count)
        # The readers of one group see the same rows in the same order, and take turns.
        group, turn, turns = self._index % groups, self._index // groups, self._count // groups
        generator = np.random.default_rng([self._seed, self._epoch, group])
        files = generator.permutation(range(group, num_files, groups)).tolist()
        rows = itertools.chain.from_iterable(self._read_file(file) for file in files)
        for position, row in enumerate(_shuffle(rows, self._shuffle_buffer, generator)):
            if position % turns == turn:
                yield row

    def _read_file(self, file: int) -> Iterator[Mapping[str, Any]]:
        rows = self._rows.shard(num_shards=self._rows.num_shards, index=file)
        # Batches, as the library's plain iteration would share rows out among a DataLoader's workers again.
        for batch in rows.iter(batch_size=1):
            yield {column: values[0] for column, values in batch.items()}

    def _is_dropped(self, row: Mapping[str, Any]) -> bool:
        if self._unseen != "drop_images":
            return False
        return any(
            (label_id := self.vocabulary.label_id_by_category_id.get(segment["category_id"])) is not None
            and not self.vocabulary[label_id].is_seen
            for segment in row["segments_info"]
        )

    def _read(self, row: Mapping[str, Any]) -> PanopticExample:
        example = read_row(row, self.vocabulary, void_category_ids=self._void_category_ids)
        if self._unseen == "ignore_pixels":
            example = hide_labels(example, frozenset(self.vocabulary.unseen_label_ids))
        if self._transform is None:
            return example
        digest = hashlib.sha256(repr(example.image_id).encode()).digest()
        generator = np.random.default_rng(
            [self._seed, self._epoch, int.from_bytes(digest[:8], byteorder="big")]
        )
        return self._transform(example, generator)


def _shuffle(rows: Iterable[Row], buffer_size: int, generator: np.random.Generator) -> Iterator[Row]:
    """Draw each row from a buffer that the next one refills."""
    # The library's own shuffle would mix more files, but sleeps for seconds at the end of every reading.
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(generator.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    yield from (buffer[place] for place in generator.permutation(len(buffer)).tolist())
