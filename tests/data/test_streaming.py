import itertools

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zsseg.data.datasets_columns import HfPanopticDataset, to_hf_dataset
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.seen_filter import drop_images_with_unseen, ignore_unseen
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transforms import LargeScaleJitter

datasets = pytest.importorskip("datasets")

NUM_ROWS, NUM_FILES = 24, 4
JITTER = LargeScaleJitter((32, 32), 0.5, 1.5)


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    world = PatchworkDataset("easy", num_scenes=NUM_ROWS, size=48)
    return to_hf_dataset(world, cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def stream(columns):
    return StreamedPanopticDataset(columns.to_iterable_dataset(num_shards=NUM_FILES), shuffle_buffer=5)


def read_ids(stream):
    return [example.image_id for example in stream]


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(stream, columns):
    first = read_ids(stream)
    assert sorted(first) == list(range(NUM_ROWS))
    assert first != sorted(first)
    assert read_ids(stream) == first
    stream.set_epoch(3)
    second = read_ids(stream)
    stream.set_epoch(0)
    assert sorted(second) == sorted(first)
    assert second != first
    assert read_ids(stream) == first
    expected = HfPanopticDataset(columns)
    for example in itertools.islice(stream, 3):
        np.testing.assert_array_equal(
            example.target.segment_ids, expected[example.image_id].target.segment_ids
        )
        np.testing.assert_array_equal(example.image, expected[example.image_id].image)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 24])
def test_shards_are_a_partition(stream, count):
    parts = [read_ids(stream.shard(index, count)) for index in range(count)]
    assert sorted(itertools.chain(*parts)) == list(range(NUM_ROWS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_of_shards_are_a_partition(stream):
    parts = [read_ids(stream.shard(i, 2).shard(j, 3)) for i in range(2) for j in range(3)]
    assert sorted(itertools.chain(*parts)) == list(range(NUM_ROWS))


def test_readers_open_files_of_their_own(columns):
    opened = []

    def read(shards):
        for shard in shards:
            opened.append(shard)
            for index in range(shard, NUM_ROWS, NUM_FILES):
                yield columns[index]

    rows = datasets.IterableDataset.from_generator(
        read, features=columns.features, gen_kwargs={"shards": list(range(NUM_FILES))}
    )
    stream = StreamedPanopticDataset(rows)
    read_ids(stream.shard(1, 2))
    assert sorted(opened) == [1, 3]
    opened.clear()
    read_ids(stream.shard(6, 8))
    assert opened == [2]


class SharedOut(IterableDataset):
    """What a training loop does in the workers of its loader."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        worker = get_worker_info()
        return iter(read_ids(self.stream.shard(worker.id, worker.num_workers)))


def test_loading_workers_read_all_rows(columns):
    # More workers than files: the library by itself would let one of them idle.
    stream = StreamedPanopticDataset(columns.to_iterable_dataset(num_shards=1))
    read = list(DataLoader(SharedOut(stream), batch_size=None, num_workers=2))
    assert sorted(read) == list(range(NUM_ROWS))


def test_transforms_follow_from_seed_epoch_and_picture(stream):
    prepared = stream.prepare(JITTER, seed=1, unseen="ignore_pixels")
    whole = {example.image_id: np.asarray(example.image) for example in prepared}
    part = list(prepared.shard(1, 3))
    for example in part:
        np.testing.assert_array_equal(example.image, whole[example.image_id])
    prepared.set_epoch(1)
    changed = {example.image_id: np.asarray(example.image) for example in prepared}
    assert any((changed[image_id] != pixels).any() for image_id, pixels in whole.items())
    other_seed = {
        e.image_id: np.asarray(e.image) for e in stream.prepare(JITTER, seed=2, unseen="drop_images")
    }
    assert any((whole[image_id] != pixels).any() for image_id, pixels in other_seed.items())


def test_every_picture_and_epoch_draws_numbers_of_its_own(stream):
    draws = []

    def draw(example, generator):
        draws.append(generator.random())
        return example

    prepared = stream.prepare(draw, seed=0, unseen="ignore_pixels")
    for epoch in range(2):
        prepared.set_epoch(epoch)
        read_ids(prepared)
    assert len(set(draws)) == 2 * NUM_ROWS


def test_unseen_policies_are_those_of_a_data_set(stream, columns):
    dataset = HfPanopticDataset(columns)
    size = dataset[0].target.size
    keep = LargeScaleJitter(size, 1.0, 1.0)
    kept = read_ids(stream.prepare(keep, seed=0, unseen="drop_images"))
    assert 0 < len(kept) < NUM_ROWS
    assert sorted(kept) == list(drop_images_with_unseen(dataset).indices)
    hidden = ignore_unseen(dataset)
    for example in stream.prepare(keep, seed=0, unseen="ignore_pixels"):
        expected = hidden[example.image_id].target
        assert {s.label_id for s in example.target.segments} == {s.label_id for s in expected.segments}
        np.testing.assert_array_equal(example.target.segment_ids, expected.segment_ids)


def test_a_reader_without_a_picture_says_so_instead_of_waiting_forever(stream, columns):
    with pytest.raises(ValueError, match=r"reader 24 of 25 found no picture .* Use fewer processes"):
        read_ids(stream.shard(24, 25))
    dropped = drop_images_with_unseen(HfPanopticDataset(columns)).indices
    unseen = columns.select([index for index in range(NUM_ROWS) if index not in dropped])
    only_unseen = StreamedPanopticDataset(unseen.to_iterable_dataset())
    with pytest.raises(ValueError, match=rf"{len(unseen)} pictures hold an unseen segment .* ignore their"):
        read_ids(only_unseen.prepare(JITTER, seed=0, unseen="drop_images"))


def test_arguments_out_of_range(stream, columns):
    rows = columns.to_iterable_dataset()
    for options in ({"shuffle_buffer": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="shuffle_buffer must be 1 or more and seed 0 or more"):
            StreamedPanopticDataset(rows, **options)
    with pytest.raises(ValueError, match=r"index must lie in \[0, count\), got index 2 of count 2"):
        stream.shard(2, 2)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        stream.set_epoch(-1)
    with pytest.raises(ValueError, match="unseen one of"):
        stream.prepare(JITTER, seed=0, unseen="forget")
    with pytest.raises(ValueError, match="does not say the types of its columns"):
        StreamedPanopticDataset(datasets.IterableDataset.from_generator(lambda: iter([{"image": 1}])))


def test_a_buffer_of_one_keeps_the_order_of_a_file(columns):
    stream = StreamedPanopticDataset(columns.to_iterable_dataset(num_shards=1), shuffle_buffer=1)
    assert read_ids(stream) == list(range(NUM_ROWS))
