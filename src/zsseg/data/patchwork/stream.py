"""Patchwork as a stream for torch's ``DataLoader``: endless or bounded, every scene in exactly one shard."""

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

from zsseg.data.examples import PanopticExample
from zsseg.data.patchwork.dataset import Categories, PatchworkDataset
from zsseg.vocabulary import Vocabulary

ENDLESS = 2**63 - 1
"""Scenes of a stream without an end."""


class PatchworkIterableDataset(IterableDataset[PanopticExample]):
    """The scenes of one Patchwork world in order, shared out among processes and workers.

    Scene i of the world goes to shard i modulo the number of shards, which is ``world_size`` times the
    workers of each loader. Every pass starts at scene 0.

    Args:
        preset: as all arguments up to ``size``, see
            :class:`~zsseg.data.patchwork.dataset.PatchworkDataset`.
        seed: of the world.
        num_scenes: how many over all shards; None for a stream without an end.
        split: which names are unseen.
        categories: "all" or "seen".
        size: height and width in pixels.
        rank: of this process, in [0, world_size). Leave it at 0 of 1 where something else shares out the
            stream, as accelerate's ``prepare`` does.
        world_size: number of processes that read the world together.

    Attributes:
        scenes: the same world by index; its ``caption`` describes an example.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        preset: str = "standard",
        *,
        seed: int = 0,
        num_scenes: int | None = None,
        split: str = "A",
        categories: Categories = "all",
        size: int = 128,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got rank {rank} of world_size {world_size}")
        self.scenes = PatchworkDataset(
            preset,
            seed=seed,
            num_scenes=ENDLESS if num_scenes is None else num_scenes,
            split=split,
            categories=categories,
            size=size,
        )
        self.rank = rank
        self.world_size = world_size

    @property
    def vocabulary(self) -> Vocabulary:
        """The sixty labels, or the seen ones."""
        return self.scenes.vocabulary

    def __iter__(self) -> Iterator[PanopticExample]:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first = self.rank * num_workers + worker_id
        for index in range(first, self.scenes.num_scenes, self.world_size * num_workers):
            yield self.scenes[index]
