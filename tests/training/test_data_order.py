from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsseg.training.data_order import EpochBatchSampler, EpochDataset, Place, is_streamed


def walk(sampler, count):
    """The keys of ``count`` batches, and the place after them."""
    place = sampler.find_next(sampler.start)
    for _ in range(count):
        place = sampler.advance(place)
    return [key for batch in islice(sampler, count) for key in batch], place


@given(
    length=st.integers(4, 40), batch_size=st.integers(1, 4), seed=st.integers(0, 5), count=st.integers(0, 30)
)
def test_a_later_start_continues_the_same_sequence(length, batch_size, seed, count):
    whole = EpochBatchSampler(length=length, batch_size=batch_size, seed=seed)
    _, place = walk(whole, count)
    resumed = EpochBatchSampler(length=length, batch_size=batch_size, seed=seed, start=place)
    assert list(islice(resumed, 8)) == list(islice(whole, count, count + 8))


@given(length=st.integers(6, 40), batch_size=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_example_at_most_once_and_loses_less_than_a_batch(length, batch_size, epoch):
    sampler = EpochBatchSampler(length=length, batch_size=batch_size, seed=0, start=Place(epoch))
    keys, place = walk(sampler, sampler.batches_per_epoch)
    assert {number for number, _ in keys} == {epoch}
    assert len({index for _, index in keys}) == len(keys) > length - batch_size
    assert place == Place(epoch + 1)


@given(
    length=st.integers(8, 40),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    count=st.integers(0, 20),
)
def test_batches_of_another_size_go_on_with_what_an_epoch_has_not_shown(length, before, after, count):
    first, place = walk(EpochBatchSampler(length=length, batch_size=before, seed=1), count)
    resumed = EpochBatchSampler(length=length, batch_size=after, seed=1, start=place)
    second, _ = walk(resumed, 20)
    shown = [*first, *second]
    assert len(set(shown)) == len(shown)
    for epoch in range(max(number for number, _ in shown)):
        missing = length - sum(number == epoch for number, _ in shown)
        # What is left over fills no batch of those that the epoch ended with.
        assert missing < (before if epoch < place.epoch else after)


def test_processes_share_out_the_batches_of_a_single_one():
    whole = EpochBatchSampler(length=23, batch_size=6, seed=3)
    parts = [
        EpochBatchSampler(length=23, batch_size=2, seed=3, process_index=i, process_count=3) for i in range(3)
    ]
    for expected, *shares in islice(zip(whole, *parts, strict=False), 9):
        assert [key for share in shares for key in share] == expected
    assert {part.advance(Place()) for part in parts} == {whole.advance(Place())}


def test_epochs_and_seeds_differ():
    batches = [
        next(iter(EpochBatchSampler(length=50, batch_size=50, seed=seed, start=Place(epoch))))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    orders = {tuple(index for _, index in batch) for batch in batches}
    assert len(orders) == 3


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="needs 8 examples, but the data set has 7: lower batch_size"):
        EpochBatchSampler(length=7, batch_size=4, seed=0, process_count=2)


def test_the_epoch_reaches_the_data_set():
    class Augmented(list):
        def set_epoch(self, epoch):
            self[:] = [f"{epoch}-{index}" for index in range(3)]

    dataset = EpochDataset(Augmented())
    assert [dataset[key] for key in ((0, 1), (0, 2), (4, 0), (0, 1))] == ["0-1", "0-2", "4-0", "0-1"]


def test_a_data_set_without_epochs_is_read_as_it_is():
    assert EpochDataset(["a", "b"])[5, 1] == "b"


def test_a_data_set_with_a_length_is_no_stream():
    class Columns(list):
        def shard(self, index, count):
            raise AssertionError

    assert not is_streamed(Columns())
    assert not is_streamed(["a"])
