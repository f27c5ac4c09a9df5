"""Feeds: parts of streams, of unequal length, and what cannot be read; in one process or in loading ones."""

import multiprocessing

import numpy as np
import pytest

from zsseg.training.arguments import TrainerArguments
from zsseg.training.data_feed import ProcessPlace, build_feed
from zsseg.training.data_order import BEGINNING, Place


class Numbers:
    """Numbers in pieces of unequal length, shuffled in every epoch; a part is every so many pieces."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def shard(self, index, count):
        return Numbers(self.pieces[index::count])

    def __iter__(self):
        numbers = [number for piece in self.pieces for number in piece]
        order = np.random.default_rng(self.epoch).permutation(len(numbers))
        return ((self.epoch, numbers[index]) for index in order)


PIECES = [range(7), range(10, 13), range(20, 24), range(30, 31)]
EXAMPLES = {number for piece in PIECES for number in piece}


def build(tmp_path, process, state=None, *, num_workers=0, batch_size=2, start=BEGINNING):
    arguments = TrainerArguments(output_dir=tmp_path, steps=1, batch_size=batch_size, num_workers=num_workers)
    return build_feed(Numbers(PIECES), list, arguments, process, start=start, stream_state=state)


def take(feed, count):
    return [feed.next_batch() for _ in range(count)]


def test_processes_see_every_example_once_in_each_epoch_and_never_end(tmp_path):
    feeds = [build(tmp_path, ProcessPlace(index, 2)) for index in range(2)]
    shown = [example for feed in feeds for batch in take(feed, 30) for example in batch]
    assert len(set(shown)) == len(shown)
    # The first process has eleven examples an epoch, the other four.
    for epoch in range(5):
        assert {number for number_epoch, number in shown if number_epoch == epoch} == EXAMPLES
    assert [feed.place.epoch for feed in feeds] == [5, 14]


def test_epochs_have_orders_of_their_own(tmp_path):
    feed = build(tmp_path, ProcessPlace(0, 1), batch_size=15)
    first, second = ([number for _, number in batch] for batch in take(feed, 2))
    assert sorted(first) == sorted(second) == sorted(EXAMPLES)
    assert first != second


@pytest.mark.parametrize(
    ("consumed", "num_workers"), [(0, 0), (1, 0), (2, 0), (5, 0), (8, 0), (13, 0), (5, 2), (8, 2)]
)
def test_a_resumed_stream_goes_on_with_the_next_batch(tmp_path, consumed, num_workers):
    process = ProcessPlace(1, 2)
    feed = build(tmp_path, process, num_workers=num_workers)
    take(feed, consumed)
    state, expected = feed.get_state(), take(feed, 7)
    feed.close()
    resumed = build(tmp_path, process, state, num_workers=num_workers)
    assert take(resumed, 7) == expected
    resumed.close()


def test_a_stream_begins_with_the_epoch_it_is_told(tmp_path):
    feed = build(tmp_path, ProcessPlace(0, 1), start=Place(3))
    assert take(feed, 1)[0][0][0] == 3
    assert feed.describe() == "a stream of examples"


def test_a_part_without_examples_is_refused(tmp_path):
    feed = build(tmp_path, ProcessPlace(4, 5))
    with pytest.raises(ValueError, match="leaves one without any example: lower num_workers"):
        feed.next_batch()


class Unreadable:
    """A data set of which nothing can be read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("a.png holds what is not listed; write it again")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_picture_is_said_as_it_is_and_ends_the_loading_processes(tmp_path, num_workers):
    arguments = TrainerArguments(output_dir=tmp_path, steps=1, batch_size=2, num_workers=num_workers)
    before = set(multiprocessing.active_children())
    feed = build_feed(Unreadable(), list, arguments, ProcessPlace(0, 1), start=BEGINNING, stream_state=None)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == num_workers
    with pytest.raises(ValueError, match="listed") as caught:
        feed.next_batch()
    assert str(caught.value) == "a.png holds what is not listed; write it again"
    feed.close()
    # The error is still held here, as it is while a program ends because of it.
    assert caught.value.__traceback__ is not None
    assert not any(worker.is_alive() for worker in workers)
