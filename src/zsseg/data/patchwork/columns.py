"""Patchwork as columns of the ``datasets`` library: the panoptic columns and ``caption``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zsseg.data.datasets_columns import build_features, write_row
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets


def build_hf_dataset(dataset: PatchworkDataset, *, cache_dir: str | None = None) -> "datasets.Dataset":
    """Render a world into columns; :class:`~zsseg.data.datasets_columns.HfPanopticDataset` reads them back.

    Args:
        dataset: the world.
        cache_dir: where the Arrow files go; by default the ``datasets`` cache.
    """
    import datasets

    # A fingerprint of its own each time: the library's knows the arguments, not how this package draws them.
    return datasets.Dataset.from_generator(
        _Rows(dataset, num_shards=1),
        features=_build_features(dataset.vocabulary),
        cache_dir=cache_dir,
        fingerprint=datasets.fingerprint.generate_random_fingerprint(),
    )


def build_hf_iterable_dataset(
    dataset: PatchworkDataset, *, num_shards: int = 1
) -> "datasets.IterableDataset":
    """A world as columns that are rendered when they are read; nothing is stored.

    :func:`~zsseg.data.datasets_columns.iterate_rows` makes examples of them.

    Args:
        dataset: the world; scene i is in shard i modulo ``num_shards``.
        num_shards: 1 or more; ``split_dataset_by_node`` and a ``DataLoader``'s workers share them out, so it
            should be a multiple of processes × workers. With 1 the rows come in the world's order.

    Raises:
        ValueError: if ``num_shards`` is below 1.
    """
    import datasets

    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    return datasets.IterableDataset.from_generator(
        _Rows(dataset, num_shards),
        features=_build_features(dataset.vocabulary),
        gen_kwargs={"shards": list(range(num_shards))},
    )


def _build_features(vocabulary: Vocabulary) -> "datasets.Features":
    import datasets

    return datasets.Features({**build_features(vocabulary), "caption": datasets.Value("string")})


class _Rows:
    """A picklable generator function over the rows of some shards."""

    def __init__(self, dataset: PatchworkDataset, num_shards: int) -> None:
        self._dataset = dataset
        self._num_shards = num_shards

    def __call__(self, shards: Sequence[int] = (0,)) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for index in range(shard, len(self._dataset), self._num_shards):
                example = self._dataset[index]
                row = write_row(example, self._dataset.vocabulary)
                yield {**row, "caption": self._dataset.caption(example.target)}
