import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.datasets_columns import HfPanopticDataset, to_hf_dataset
from zsseg.data.opening import Layout, SourceError, find_dataset, open_dataset, open_stream
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.vocabulary import Category, Vocabulary

datasets = pytest.importorskip("datasets")

SQUARE = [[0, 0, 2, 0, 2, 2, 0, 2]]


def write_instances(path, names, image_folder):
    """An instance JSON of a person in each picture."""
    image_folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (6, 5)).save(image_folder / name)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": SQUARE} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def columns(coco_dataset, tmp_path):
    return to_hf_dataset(coco_dataset, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def test_small_layouts(coco_folder, tmp_path):
    for source in (coco_folder, str(coco_folder), coco_folder / "panoptic.json"):
        dataset = open_dataset(source)
        assert isinstance(dataset, CocoPanopticDataset)
        assert dataset.file_names == ("10.png", "11.png")
        assert dataset.vocabulary.names == ("car", "road", "sky")
    assert open_dataset(coco_folder, clean_names=False).vocabulary.names[2] == "sky-other-merged"
    write_instances(tmp_path / "own" / "instances.json", ["a.png"], tmp_path / "own" / "images")
    instances = open_dataset(tmp_path / "own")
    assert isinstance(instances, CocoInstanceDataset)
    assert instances[0].target.segments[0].label == "person"


def test_cocos_own_layout_prefers_the_panoptic_truth(coco_folder, tmp_path, caplog):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (coco_folder / "panoptic.json").rename(root / "annotations" / "panoptic_val2017.json")
    (coco_folder / "panoptic").rename(root / "panoptic_val2017")
    (coco_folder / "images").rename(root / "val2017")
    write_instances(root / "annotations" / "instances_val2017.json", ["x.png"], root / "val2017")
    write_instances(root / "annotations" / "instances_train2017.json", ["y.png"], root / "train2017")
    (root / "annotations" / "captions_val2017.json").write_text(
        '{"annotations": [{"caption": "segmentation"}]}'
    )
    with caplog.at_level(logging.INFO):
        validation = open_dataset(root, part="validation")
    assert "reading val2017 (COCO panoptic)" in caplog.text
    assert isinstance(validation, CocoPanopticDataset)
    assert validation[0].file_name == "10.png"
    assert open_dataset(root, default_part="train").file_names == ("y.png",)
    assert open_dataset(root / "annotations" / "instances_val2017.json").file_names == ("x.png",)


def test_pictures_beside_an_instance_json(tmp_path):
    path = write_instances(tmp_path / "train" / "_annotations.coco.json", ["a.png"], tmp_path / "train")
    assert open_dataset(tmp_path / "train").image_folder == path.parent
    (tmp_path / "train" / "a.png").rename(tmp_path / "train" / "b.png")
    with pytest.raises(SourceError, match=r"no folder of pictures beside .*name it with --images"):
        open_dataset(path)


def test_pictures_in_the_folder_named_like_an_instance_json(tmp_path):
    path = write_instances(tmp_path / "train.json", ["a.png"], tmp_path / "train")
    assert open_dataset(path).image_folder == tmp_path / "train"


def test_folders_of_pictures_that_are_named(coco_folder, tmp_path):
    (coco_folder / "images").rename(tmp_path / "photos")
    (coco_folder / "panoptic").rename(tmp_path / "maps")
    with pytest.raises(SourceError, match=r"the folders there are \['maps', 'photos'"):
        open_dataset(coco_folder)
    dataset = open_dataset(coco_folder, images=tmp_path / "photos", panoptic=tmp_path / "maps")
    assert len(dataset) == 2


def test_train_and_val_folders(semantic_folder, tmp_path):
    root = semantic_folder.parent
    shutil.copytree(semantic_folder, root / "val")
    semantic_folder.rename(root / "train")
    (root / "val" / "images" / "b.png").unlink()
    (root / "val" / "labels" / "b.png").unlink()
    train = open_dataset(root, default_part="train")
    assert isinstance(train, SemanticMapDataset)
    assert train.file_names == ("a.png", "b.png")
    assert train.vocabulary.unseen_label_ids == (2,)
    for part in ("validation", "val"):
        assert open_dataset(root, part=part).file_names == ("a.png",)
    with pytest.raises(
        SourceError, match=r"several data sets: train \(semantic maps, .*; val \(semantic maps"
    ):
        open_dataset(root)
    with pytest.raises(SourceError, match=r"no part 'test'; it holds train"):
        open_dataset(root, part="test")
    with pytest.raises(SourceError, match="no part 'val'; it holds unnamed"):
        open_dataset(root / "train", part="val")


def test_two_layouts_in_one_folder(semantic_folder, coco_folder):
    (semantic_folder / "labels").rename(coco_folder / "labels")
    with pytest.raises(SourceError, match=r"several data sets: unnamed \(semantic maps.*\(COCO panoptic"):
        open_dataset(coco_folder)


@pytest.mark.slow
def test_columns_saved_in_any_way_keep_their_labels(columns, coco_dataset, tmp_path):
    columns.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=columns, validation=columns.select([1])).save_to_disk(tmp_path / "parts")
    # As push_to_hub names them.
    (tmp_path / "pushed" / "data").mkdir(parents=True)
    columns.shard(2, 0).to_parquet(tmp_path / "pushed" / "data" / "train-00000-of-00002.parquet")
    columns.shard(2, 1).to_parquet(tmp_path / "pushed" / "data" / "train-00001-of-00002.parquet")
    columns.select([1]).to_parquet(tmp_path / "pushed" / "data" / "validation-00000-of-00001.parquet")
    for source, options in (
        ("saved", {}),
        ("parts", {"default_part": "train"}),
        ("pushed", {"part": "train"}),
        ("pushed/data", {"part": "train"}),
    ):
        dataset = open_dataset(tmp_path / source, **options)
        assert isinstance(dataset, HfPanopticDataset)
        assert dataset.vocabulary == coco_dataset.vocabulary
        assert dataset.file_names == coco_dataset.file_names
        assert dataset[0].target.segments == coco_dataset[0].target.segments
        stream = open_stream(tmp_path / source, **options, shuffle_buffer=1)
        assert stream.vocabulary == coco_dataset.vocabulary
        assert sorted(example.file_name for example in stream) == ["10.png", "11.png"]
    for source in ("parts", "pushed"):
        assert open_dataset(tmp_path / source, part="val").file_names == ("11.png",)
    single = open_dataset(tmp_path / "pushed" / "data" / "train-00001-of-00002.parquet")
    assert single.file_names == ("11.png",)


def test_columns_whose_labels_lie_beside_them(columns, coco_dataset, tmp_path):
    def forget(row):
        return {"segments_info": [{**s, "category": 0} for s in row["segments_info"]]}

    segment = {**columns.features["segments_info"].feature, "category": datasets.Value("int64")}
    features = datasets.Features({**columns.features, "segments_info": datasets.List(segment)})
    (tmp_path / "own").mkdir()
    columns.map(forget, features=features).to_parquet(tmp_path / "own" / "part.parquet")
    for read in (open_dataset, open_stream):
        with pytest.raises(ValueError, match=r"own.*no label names: .*classes.json"):
            read(tmp_path / "own")
    classes = [
        {"id": 3, "name": "car", "isthing": True},
        {"id": 149, "name": "road"},
        {"id": 187, "name": "sky"},
    ]
    (tmp_path / "own" / "classes.json").write_text(json.dumps({"classes": classes, "unseen_split": ["sky"]}))
    for read in (open_dataset, open_stream):
        vocabulary = read(tmp_path / "own").vocabulary
        assert [(c.name, c.is_thing, c.is_seen) for c in vocabulary] == [
            ("car", True, True),
            ("road", False, True),
            ("sky", False, False),
        ]
    vocabulary = Vocabulary((Category("auto", category_id=3), Category("way", category_id=149)))
    assert open_dataset(tmp_path / "own", vocabulary=vocabulary).vocabulary == vocabulary


def test_nothing_that_is_known(coco_folder, tmp_path, edit_json):
    with pytest.raises(FileNotFoundError, match=r"no folder or file .*nowhere; expected a folder of"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"known layout; found notes.txt. Expected a folder of images/"):
        open_dataset(tmp_path / "other")
    with pytest.raises(ValueError, match=r"notes.txt is no annotation file"):
        open_dataset(tmp_path / "other" / "notes.txt")
    edit_json(coco_folder / "panoptic.json", lambda c: c.update(annotations=[]))
    with pytest.raises(SourceError, match=r"panoptic.json lists no annotation with a mask"):
        open_dataset(coco_folder)
    with pytest.raises(ValueError, match="lists no annotation with 'segments_info'"):
        open_dataset(coco_folder / "panoptic.json")
    (coco_folder / "panoptic.json").write_text('{"images": [')
    with pytest.raises(SourceError, match=r"panoptic.json is not valid JSON .*: download or write it again"):
        open_dataset(coco_folder)
    (coco_folder / "panoptic.json").write_text("[]")
    with pytest.raises(SourceError, match=r'panoptic.json has no "annotations"'):
        open_dataset(coco_folder)


def test_what_does_not_fit_the_data_set(semantic_folder, coco_folder):
    with pytest.raises(SourceError, match="semantic maps with pictures of its own; leave the images out"):
        open_dataset(semantic_folder, images=coco_folder / "images")
    with pytest.raises(SourceError, match="no panoptic PNGs"):
        open_dataset(semantic_folder, panoptic=coco_folder / "panoptic")
    with pytest.raises(SourceError, match="no configurations or revisions"):
        open_dataset(semantic_folder, revision="main")
    with pytest.raises(SourceError, match="cannot be streamed and need not be"):
        open_stream(coco_folder)


def test_a_name_that_is_neither_on_disk_nor_on_the_hub(monkeypatch):
    def refuse(*arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'user/street' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"no folder or file user/street, and no data set of that name"
    ):
        open_dataset("user/street")


def test_keys_across_chunks_are_recognised(coco_folder, monkeypatch):
    for chunk_bytes in (7, 20, 33):
        monkeypatch.setattr("zsseg.data.opening._CHUNK_BYTES", chunk_bytes)
        assert find_dataset(coco_folder / "panoptic.json").layout is Layout.COCO_PANOPTIC


@pytest.mark.real_data
def test_photographs(real_data):
    assert len(open_dataset(real_data / "camvid", part="train")) == 367
    assert len(open_dataset(real_data / "coco_panoptic_small")) == 13
    assert len(open_dataset(real_data / "coco_instances_small")) == 80
    official = real_data / "coco_panoptic_official_sample"
    dataset = open_dataset(official / "panoptic_examples.json", images=official / "input_images")
    assert np.asarray(dataset[0].image).shape == (427, 640, 3)
