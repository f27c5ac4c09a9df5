import subprocess
import sys

import numpy as np
import pytest

from zsseg.data.datasets_columns import HfPanopticDataset, iterate_rows, read_row, to_hf_dataset, write_row
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.vocabulary import Vocabulary

datasets = pytest.importorskip("datasets")


def assert_equal(example, expected):
    np.testing.assert_array_equal(np.asarray(example.image), np.asarray(expected.image))
    np.testing.assert_array_equal(example.target.segment_ids, expected.target.segment_ids)
    assert example.target.segments == expected.target.segments
    assert (example.image_id, example.file_name) == (expected.image_id, expected.file_name)


@pytest.mark.slow
def test_round_trip_on_disk_and_streamed(coco_dataset, tmp_path):
    columns = to_hf_dataset(coco_dataset, cache_dir=str(tmp_path / "cache"))
    assert set(columns.column_names) == {"image", "panoptic", "segments_info", "image_id", "file_name"}
    columns.to_parquet(tmp_path / "part.parquet")
    stored = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "part.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    for rows in (columns, stored):
        dataset = HfPanopticDataset(rows, coco_dataset.vocabulary)
        assert len(dataset) == 2
        for index, expected in enumerate(coco_dataset):
            assert_equal(dataset[index], expected)
            assert dataset.label_ids(index) == coco_dataset.label_ids(index)
    streamed = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "part.parquet"), split="train", streaming=True
    )
    for example, expected in zip(iterate_rows(streamed, coco_dataset.vocabulary), coco_dataset, strict=True):
        assert_equal(example, expected)


def test_names_as_image_ids_and_changed_files(semantic_folder, tmp_path):
    source = SemanticMapDataset(semantic_folder)
    cache = str(tmp_path / "cache")
    rows = to_hf_dataset(source, cache_dir=cache)
    for index, expected in enumerate(source):
        assert_equal(HfPanopticDataset(rows, source.vocabulary)[index], expected)
    label = semantic_folder / "labels" / "a.png"
    label.write_bytes((semantic_folder / "labels" / "b.png").read_bytes())
    again = HfPanopticDataset(to_hf_dataset(source, cache_dir=cache), source.vocabulary)
    np.testing.assert_array_equal(again[0].target.segment_ids, source[1].target.segment_ids)


def test_rows_without_the_library(coco_dataset):
    for example in coco_dataset:
        row = write_row(example, coco_dataset.vocabulary)
        assert_equal(read_row(row, coco_dataset.vocabulary), example)
    assert row["segments_info"][0] == {
        "id": 5,
        "category_id": 3,
        "isthing": True,
        "iscrowd": True,
        "area": 4,
    }


def test_broken_rows(coco_dataset):
    row = write_row(coco_dataset[1], coco_dataset.vocabulary)
    with pytest.raises(ValueError, match=r"lacks the columns \['panoptic'\]"):
        read_row({k: v for k, v in row.items() if k != "panoptic"}, coco_dataset.vocabulary)
    with pytest.raises(ValueError, match=r"11.png: category_id 149 is not in the vocabulary of 1 labels"):
        read_row(row, coco_dataset.vocabulary.select([0]))
    with pytest.raises(ValueError, match=r"11.png: pixels carry segment ids that are not listed: \[9\]"):
        read_row({**row, "segments_info": row["segments_info"][:1]}, coco_dataset.vocabulary)
    extra = [*row["segments_info"], {"id": 77, "category_id": 3, "iscrowd": False}]
    with pytest.raises(ValueError, match=r"11.png: the map holds no pixel of the listed segments \[77\]"):
        read_row({**row, "segments_info": extra}, coco_dataset.vocabulary)


def test_vocabulary_without_ids(coco_dataset):
    with pytest.raises(ValueError, match="label 'a' has no category_id"):
        write_row(coco_dataset[1], Vocabulary.from_labels(["a", "b", "c"]))


def test_missing_columns_and_no_rows(coco_dataset):
    rows = datasets.Dataset.from_dict({"image": []})
    with pytest.raises(ValueError, match="the data set lacks the columns"):
        HfPanopticDataset(rows, coco_dataset.vocabulary)

    class Empty:
        vocabulary = coco_dataset.vocabulary

        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="the data set is empty"):
        to_hf_dataset(Empty())


@pytest.mark.slow
def test_reading_needs_neither_torch_nor_datasets():
    code = "import sys, zsseg.data; print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
