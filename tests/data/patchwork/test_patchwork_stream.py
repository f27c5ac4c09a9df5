from itertools import islice

import pytest
from torch.utils.data import DataLoader

import zsseg.data
from zsseg.data import PatchworkDataset, PatchworkIterableDataset

NUM_SCENES = 7


def image_ids(stream, **options):
    return [example.image_id for example in DataLoader(stream, batch_size=None, **options)]


def test_a_stream_is_the_world_in_order():
    scenes = PatchworkDataset("easy", seed=4, num_scenes=NUM_SCENES, size=32, categories="seen")
    stream = PatchworkIterableDataset("easy", seed=4, num_scenes=NUM_SCENES, size=32, categories="seen")
    assert stream.vocabulary == scenes.vocabulary
    for example, expected in zip(stream, scenes, strict=True):
        assert example.image.tobytes() == expected.image.tobytes()
        assert example.target.segments == expected.target.segments
        assert stream.scenes.caption(example.target) == scenes.caption(expected.target)
    assert image_ids(stream) == list(range(NUM_SCENES))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
def test_workers_and_processes_share_the_scenes_out(world_size):
    shards = [
        image_ids(
            PatchworkIterableDataset(
                "easy", num_scenes=NUM_SCENES, size=32, rank=rank, world_size=world_size
            ),
            num_workers=2,
        )
        for rank in range(world_size)
    ]
    assert all(shards)
    assert sorted(image_id for shard in shards for image_id in shard) == list(range(NUM_SCENES))


def test_a_stream_without_an_end():
    stream = PatchworkIterableDataset("easy", size=32, rank=1, world_size=2)
    assert [example.image_id for example in islice(stream, 4)] == [1, 3, 5, 7]


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world(rank, world_size):
    with pytest.raises(ValueError, match=rf"got rank {rank} of world_size {world_size}"):
        PatchworkIterableDataset(rank=rank, world_size=world_size)


def test_no_other_name_is_loaded_late():
    with pytest.raises(AttributeError, match="has no attribute 'Patchwork'"):
        _ = zsseg.data.Patchwork
