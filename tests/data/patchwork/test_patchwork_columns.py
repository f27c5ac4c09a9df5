import numpy as np
import pytest

from zsseg.data.datasets_columns import HfPanopticDataset, iterate_rows, to_hf_dataset
from zsseg.data.patchwork.columns import build_hf_dataset, build_hf_iterable_dataset
from zsseg.data.patchwork.dataset import PatchworkDataset

datasets = pytest.importorskip("datasets")
pytest.importorskip("datasets.distributed")

SCENES = PatchworkDataset("standard", seed=2, num_scenes=4, size=40)


def assert_equal(example, expected):
    np.testing.assert_array_equal(np.asarray(example.image), np.asarray(expected.image))
    np.testing.assert_array_equal(example.target.segment_ids, expected.target.segment_ids)
    assert example.target.segments == expected.target.segments
    assert (example.image_id, example.file_name) == (expected.image_id, expected.file_name)


def captions():
    return [SCENES.caption(example.target) for example in SCENES]


def test_columns_round_trip_with_captions(tmp_path):
    rows = build_hf_dataset(SCENES, cache_dir=str(tmp_path))
    assert rows["caption"][:] == captions()
    plain = to_hf_dataset(SCENES, cache_dir=str(tmp_path))
    assert {*plain.column_names, "caption"} == set(rows.column_names)
    for columns in (rows, plain):
        dataset = HfPanopticDataset(columns, SCENES.vocabulary)
        for index, expected in enumerate(SCENES):
            assert_equal(dataset[index], expected)
            assert dataset.label_ids(index) == SCENES.label_ids(index)


def test_streamed_columns_round_trip():
    rows = build_hf_iterable_dataset(SCENES)
    for example, expected in zip(iterate_rows(rows, SCENES.vocabulary), SCENES, strict=True):
        assert_equal(example, expected)
    assert [row["caption"] for row in rows] == captions()


def test_shards_hold_every_scene_once():
    rows = build_hf_iterable_dataset(SCENES, num_shards=3)
    assert rows.num_shards == 3
    assert [row["image_id"] for row in rows] == [0, 3, 1, 2]
    shares = [datasets.distributed.split_dataset_by_node(rows, rank=rank, world_size=3) for rank in range(3)]
    assert [[row["image_id"] for row in share] for share in shares] == [[0, 3], [1], [2]]
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        build_hf_iterable_dataset(SCENES, num_shards=0)
