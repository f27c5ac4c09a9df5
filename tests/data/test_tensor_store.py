import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from zsseg.data.tensor_store import TensorStore, TensorStoreError, build_tensor_store

NUM_ITEMS, SHARD_SIZE = 11, 4
IDENTITY = {"teacher": "abc", "mode": "box"}
SHARDS = ["items-00000000-00000004", "items-00000004-00000008", "items-00000008-00000011"]


def compute_item(index):
    generator = torch.Generator().manual_seed(index)
    return {
        "rows": torch.randn(index % 3, 5, generator=generator),
        "half": torch.randn(1, 2, 3, generator=generator).to(torch.bfloat16),
        "ids": torch.arange(index, dtype=torch.int32),
        "flags": torch.tensor([index % 2 == 0]),
    }


class Compute:
    """Remembers what it was asked, and dies like a killed process when told to."""

    def __init__(self, dies_at=None):
        self.asked = []
        self.dies_at = dies_at

    def __call__(self, items):
        if self.dies_at in items:
            raise KeyboardInterrupt
        self.asked.append((items.start, items.stop))
        return [compute_item(index) for index in items]


def build(folder, compute=None, **changes):
    arguments = {
        "identity": IDENTITY,
        "num_items": NUM_ITEMS,
        "compute": compute or Compute(),
        "shard_size": SHARD_SIZE,
        "description": "test tensors",
        **changes,
    }
    return build_tensor_store(folder, **arguments)


def assert_holds_all(store):
    assert len(store) == NUM_ITEMS
    for index in range(NUM_ITEMS):
        expected, item = compute_item(index), store[index]
        assert item.keys() == expected.keys()
        for name, tensor in expected.items():
            assert item[name].dtype == tensor.dtype
            assert torch.equal(item[name], tensor)


def test_items_come_back_as_they_were_computed(tmp_path):
    store = build(tmp_path / "store")
    assert_holds_all(store)
    assert_holds_all(TensorStore.open(tmp_path / "store", IDENTITY, num_items=NUM_ITEMS))
    assert sorted(path.stem for path in (tmp_path / "store").iterdir()) == SHARDS
    with pytest.raises(IndexError, match=r"must lie in \[0, 11\), got 11"):
        store[NUM_ITEMS]
    with pytest.raises(IndexError, match="got -1"):
        store[-1]


def test_everything_at_once(tmp_path):
    everything = build(tmp_path).read_all()
    for name in compute_item(0):
        expected = torch.cat([compute_item(index)[name] for index in range(NUM_ITEMS)])
        assert torch.equal(everything[name], expected)


def test_writing_to_an_item_changes_no_later_read(tmp_path):
    store = build(tmp_path)
    store[2]["rows"].fill_(7.0)
    assert_holds_all(store)


def test_workers_and_pickled_copies_read_the_same(tmp_path):
    store = build(tmp_path)
    store[0]  # the files that this process has mapped must not disturb the workers
    assert_holds_all(pickle.loads(pickle.dumps(store)))
    loader = DataLoader(store, batch_size=None, num_workers=2)
    for index, item in enumerate(loader):
        assert torch.equal(item["ids"], compute_item(index)["ids"])
    assert index == NUM_ITEMS - 1


def test_a_killed_build_goes_on(tmp_path, caplog):
    caplog.set_level(logging.INFO, "zsseg")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Compute(dies_at=9))
    with pytest.raises(TensorStoreError, match="first 8 of 11 items"):
        TensorStore.open(tmp_path, IDENTITY, num_items=NUM_ITEMS)
    compute = Compute()
    assert_holds_all(build(tmp_path, compute))
    assert compute.asked == [(8, 11)]
    assert "test tensors: 2 of 3 shards are there already" in caplog.text
    compute = Compute()
    build(tmp_path, compute)
    assert compute.asked == []


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "it is damaged"),
    "one bit": (flip_last_byte, "its contents do not fit its digest"),
    "half written": (
        lambda path: path.rename(path.with_name(path.name + ".incomplete")),
        "it is half written",
    ),
    "absent": (lambda path: path.unlink(), ""),
    "another's name": (
        lambda path: path.write_bytes((path.parent / f"{SHARDS[0]}.safetensors").read_bytes()),
        "it says that it holds items 0 to 4, against its name",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_shards_are_computed_anew(tmp_path, caplog, damage, reason):
    build(tmp_path)
    damage(tmp_path / f"{SHARDS[1]}.safetensors")
    compute = Compute()
    assert_holds_all(build(tmp_path, compute))
    assert compute.asked == [(4, 8)]
    assert reason in caplog.text
    assert sorted(path.stem for path in tmp_path.iterdir()) == SHARDS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"identity": {**IDENTITY, "teacher": "xyz"}}, "the identity changed: teacher abc then, xyz now"),
        ({"identity": {"teacher": "abc"}}, "the identity changed: mode box then, absent now"),
        ({"num_items": 10}, "the store had 11 items then, has 10 now"),
        ({"shard_size": 5}, "a shard held 4 items then, holds 5 now"),
    ],
)
def test_a_store_of_something_else_is_built_anew(tmp_path, caplog, changes, reason):
    build(tmp_path)
    compute = Compute()
    store = build(tmp_path, compute, **changes)
    assert sum(stop - start for start, stop in compute.asked) == len(store)
    assert [record.message for record in caplog.records] == [
        f"test tensors: 3 shard(s) in {tmp_path} are computed anew: {reason}"
    ]


def test_opening_a_store_of_something_else(tmp_path):
    build(tmp_path)
    with pytest.raises(TensorStoreError, match="the identity changed: teacher abc then, xyz now"):
        TensorStore.open(tmp_path, {**IDENTITY, "teacher": "xyz"}, num_items=NUM_ITEMS)
    with pytest.raises(TensorStoreError, match="had 11 items then, has 12 now"):
        TensorStore.open(tmp_path, IDENTITY, num_items=12)
    with pytest.raises(TensorStoreError, match="first 0 of 11 items"):
        TensorStore.open(tmp_path / "nowhere", IDENTITY, num_items=NUM_ITEMS)
    (tmp_path / f"{SHARDS[2]}.safetensors").write_bytes(b"nothing")
    with pytest.raises(TensorStoreError, match="is damaged"):
        TensorStore.open(tmp_path, IDENTITY, num_items=NUM_ITEMS)


def test_a_gap_is_no_complete_store(tmp_path):
    build(tmp_path)
    (tmp_path / f"{SHARDS[1]}.safetensors").unlink()
    with pytest.raises(TensorStoreError, match="first 4 of 11 items without a gap"):
        TensorStore.open(tmp_path, IDENTITY, num_items=NUM_ITEMS)


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", f"{SHARDS[0]}.safetensors"])
def test_files_of_others_are_never_deleted(tmp_path, name):
    build(tmp_path)
    (tmp_path / f"{SHARDS[1]}.safetensors").write_bytes(b"damaged")
    save_file({"weights": torch.ones(2)}, tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=name):
        build(tmp_path, identity={"teacher": "xyz"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_shards_that_were_computed_otherwise_under_one_identity(tmp_path):
    build(tmp_path)
    (tmp_path / f"{SHARDS[1]}.safetensors").unlink()

    def compute_wider(items):
        return [{**compute_item(index), "rows": torch.zeros(1, 6)} for index in items]

    with pytest.raises(TensorStoreError, match="has changed while the identity has not"):
        build(tmp_path, compute_wider)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "expected tensors for items 0 to 2, got 0 items"),
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], "item 1 has tensors"),
        ([{}, {}], "item 0 has tensors"),
        ([{"a": torch.ones(1, 2)}, {"a": torch.ones(1, 3)}], "item 1: a must be of one dtype and one shape"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(1).half()}], "item 1: a must be of one dtype"),
        ([{"a": torch.tensor(1.0)}] * 2, "item 0: a must be of one dtype"),
        ([{"a.lengths": torch.ones(1)}] * 2, "the name 'a.lengths' is the store's own"),
    ],
)
def test_broken_promises_of_what_computes(tmp_path, items, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, lambda _: items, num_items=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"num_items": 0}, {"shard_size": 0}])
def test_sizes_out_of_range(tmp_path, changes):
    with pytest.raises(ValueError, match="must be 1 or more"):
        build(tmp_path, **changes)


def test_any_reader_of_safetensors_reads_a_shard(tmp_path):
    build(tmp_path)
    tensors = load_file(tmp_path / f"{SHARDS[1]}.safetensors")
    assert tensors["rows.lengths"].tolist() == [index % 3 for index in range(4, 8)]
    assert torch.equal(tensors["ids"], torch.cat([torch.arange(i, dtype=torch.int32) for i in range(4, 8)]))


BUILDER = """
import logging, sys, time
from pathlib import Path
import torch
from zsseg.data.tensor_store import build_tensor_store

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"

def compute(items):
    print("computes", items.start, flush=True)
    if dies and items.start:
        time.sleep(60)
    time.sleep(0.1)
    return [{"item": torch.tensor([index])} for index in items]

build_tensor_store(
    folder, identity={"of": "numbers"}, num_items=6, compute=compute, shard_size=2, description="numbers"
)
"""


def start_builder(folder, mode):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_processes_that_build_at_once_wait_for_each_other_and_outlive_one_that_is_killed(tmp_path):
    killed = start_builder(tmp_path / "store", "dies")
    try:
        # It has written the first shard and holds the lock.
        assert [killed.stdout.readline() for _ in range(2)] == ["computes 0\n", "computes 2\n"]
        others = [start_builder(tmp_path / "store", "lives") for _ in range(2)]
        for other in others:
            assert "another process builds" in other.stderr.readline()
    finally:
        killed.kill()
        killed.communicate()
    outputs = [other.communicate(timeout=60) for other in others]
    assert [other.returncode for other in others] == [0, 0], outputs
    # One of them computed what was missing, the other nothing.
    assert sorted(output for output, _ in outputs) == ["", "computes 2\ncomputes 4\n"]
    store = TensorStore.open(tmp_path / "store", {"of": "numbers"}, num_items=6)
    assert [int(store[index]["item"]) for index in range(6)] == list(range(6))
