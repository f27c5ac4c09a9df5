from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsseg.training.data_order import EpochBatchSampler, EpochDataset


@given(
    length=st.integers(4, 40), batch_size=st.integers(1, 4), seed=st.integers(0, 5), start=st.integers(0, 60)
)
def test_a_later_start_continues_the_same_sequence(length, batch_size, seed, start):
    whole = EpochBatchSampler(length=length, batch_size=batch_size, seed=seed)
    resumed = EpochBatchSampler(length=length, batch_size=batch_size, seed=seed, start=start)
    assert list(islice(resumed, 8)) == list(islice(whole, start, start + 8))


@given(length=st.integers(6, 40), batch_size=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_example_at_most_once_and_loses_less_than_a_batch(length, batch_size, epoch):
    sampler = EpochBatchSampler(length=length, batch_size=batch_size, seed=0)
    first = epoch * sampler.batches_per_epoch
    keys = [key for batch in islice(sampler, first, first + sampler.batches_per_epoch) for key in batch]
    assert {number for number, _ in keys} == {epoch}
    assert len({index for _, index in keys}) == len(keys) > length - batch_size


def test_processes_share_out_the_batches_of_a_single_one():
    whole = EpochBatchSampler(length=23, batch_size=6, seed=3)
    parts = [
        EpochBatchSampler(length=23, batch_size=2, seed=3, process_index=i, process_count=3) for i in range(3)
    ]
    for expected, *shares in islice(zip(whole, *parts, strict=False), 9):
        assert [key for share in shares for key in share] == expected


def test_epochs_and_seeds_differ():
    batches = [
        next(iter(EpochBatchSampler(length=50, batch_size=50, seed=seed, start=start)))
        for seed, start in ((0, 0), (0, 1), (1, 0))
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
