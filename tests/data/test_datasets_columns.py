import subprocess
import sys

import numpy as np
import pytest

from zsseg.data.datasets_columns import (
    HfPanopticDataset,
    build_features,
    format_category,
    iterate_rows,
    parse_category,
    read_row,
    read_vocabulary,
    to_hf_dataset,
    write_row,
)
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.vocabulary import Category, Vocabulary

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
        "category": 0,
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


ODD_CATEGORIES = (
    Category("car", ("automobile", "motor car"), category_id=3),
    Category("road (paved): wet (thing)", is_thing=False, is_seen=False, category_id=-7),
    Category("été, 12: x", is_thing=True, is_seen=False, category_id=0),
)


@pytest.mark.parametrize("category", ODD_CATEGORIES, ids=lambda category: category.name)
def test_a_category_survives_as_text(category):
    assert parse_category(format_category(category)) == category


def test_what_is_no_category():
    with pytest.raises(ValueError, match="separates synonyms"):
        format_category(Category("a|b", category_id=1))
    for text in ("car", "3: car", "x: car (thing)", "3: car (animal)"):
        with pytest.raises(ValueError, match="a category must read like"):
            parse_category(text)


def test_types_carry_the_vocabulary_to_the_hub_and_back():
    vocabulary = Vocabulary(ODD_CATEGORIES)
    features = build_features(vocabulary)
    # As a repository's README and a parquet file store them.
    by_readme = datasets.info.DatasetInfo.from_dict({"features": features.to_dict()}).features
    by_arrow = datasets.Features.from_arrow_schema(features.arrow_schema)
    for each in (features, by_readme, by_arrow):
        assert read_vocabulary(each) == vocabulary


def label_by_class(coco_dataset, isthing=None):
    """Columns as others write them: ``category_id`` is a ``ClassLabel``, nothing else names labels."""
    names = ["sky-other-merged", "road", "car", "bus"]
    segment = {
        "id": datasets.Value("int64"),
        "category_id": datasets.ClassLabel(names=names),
        "isthing": datasets.Value("bool"),
    }
    rows = [write_row(example, coco_dataset.vocabulary) for example in coco_dataset]
    ids = {187: 0, 149: 1, 3: 2}
    for row in rows:
        row["segments_info"] = [
            {
                "id": each["id"],
                "category_id": ids[each["category_id"]],
                "isthing": each["isthing"] if isthing is None else isthing(each),
            }
            for each in row["segments_info"]
        ]
    kept = {name: [row[name] for row in rows] for name in ("image", "panoptic", "segments_info")}
    features = datasets.Features(
        image=datasets.Image(), panoptic=datasets.Image(), segments_info=datasets.List(segment)
    )
    return datasets.Dataset.from_dict(kept, features=features)


def test_names_of_class_labels_and_things_of_the_segments(coco_dataset):
    dataset = HfPanopticDataset(label_by_class(coco_dataset), clean_names=True)
    assert [(c.name, c.is_thing, c.category_id) for c in dataset.vocabulary] == [
        ("sky", False, 0),
        ("road", False, 1),
        ("car", True, 2),
        ("bus", False, 3),
    ]
    assert dataset.file_names == ("0", "1")
    assert (dataset[1].image_id, dataset[1].file_name) == (1, "1")
    np.testing.assert_array_equal(dataset[1].target.segment_ids, coco_dataset[1].target.segment_ids)
    torn = label_by_class(coco_dataset, isthing=lambda segment: segment["id"] == 2)
    with pytest.raises(ValueError, match=r"others that not: \['car'\]"):
        HfPanopticDataset(torn)
    with pytest.raises(ValueError, match="nothing says which labels are things"):
        read_vocabulary(torn.features)


def test_own_vocabulary_makes_other_categories_void(coco_dataset, tmp_path):
    columns = to_hf_dataset(coco_dataset, cache_dir=str(tmp_path))
    dataset = HfPanopticDataset(columns, Vocabulary((Category("lane", is_thing=False, category_id=149),)))
    assert [segment.label for segment in dataset[0].target.segments] == ["lane"]
    assert set(np.unique(dataset[0].target.segment_ids)) == {0, 1}
    assert dataset.label_ids(0) == {0}
    with pytest.raises(ValueError, match=r"expected some of \[3, 149, 187\], got \[9\]"):
        HfPanopticDataset(columns, Vocabulary((Category("lane", category_id=9),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["segments_info"].append(row["segments_info"][0]), r"same id: \[5\]"),
        (lambda row: row.update(image=None), "the row has no picture"),
        (lambda row: row.update(panoptic=None), "the row has no map"),
        (lambda row: row.update(panoptic=row["panoptic"].convert("RGBA")), "got Pillow mode 'RGBA'"),
        (lambda row: row.update(image={"bytes": b"x", "path": None}), "11.png: cannot load the image"),
        (lambda row: row.update(panoptic={"bytes": b"x", "path": None}), "11.png: the map is not a PNG"),
    ],
)
def test_rows_that_contradict_themselves(coco_dataset, change, message):
    row = write_row(coco_dataset[1], coco_dataset.vocabulary)
    change(row)
    with pytest.raises(ValueError, match=message):
        read_row(row, coco_dataset.vocabulary)


def test_columns_without_rows_or_of_another_kind(coco_dataset, tmp_path):
    columns = to_hf_dataset(coco_dataset, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="the data set has no row"):
        HfPanopticDataset(columns.select([]))
    with pytest.raises(ValueError, match=r"must hold a list of \{id, category_id"):
        read_vocabulary(datasets.Features({**columns.features, "segments_info": datasets.Value("string")}))
    with pytest.raises(IndexError, match=r"\[0, 2\), got 2"):
        HfPanopticDataset(columns)[2]
