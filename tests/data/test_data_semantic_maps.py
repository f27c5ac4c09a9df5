import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from zsseg.data.semantic_maps import (
    SemanticMapDataset,
    convert_panoptic_to_semantic,
    convert_semantic_to_panoptic,
)
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car", "tree"], stuff_labels=["road"])
LABEL_MAPS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 1, 2, 255])
)


@given(LABEL_MAPS)
def test_conversions_are_inverse(label_map):
    target = convert_semantic_to_panoptic(label_map, VOCABULARY)
    target.check_pixels()
    assert {s.label_id for s in target.segments} == set(np.unique(label_map).tolist()) - {255}
    back = convert_panoptic_to_semantic(target)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, label_map)
    minus = convert_panoptic_to_semantic(target, ignore_index=-1)
    np.testing.assert_array_equal(minus, np.where(label_map == 255, -1, label_map.astype(int)))


def test_instances_of_one_label_share_it():
    ids = np.array([[9, 4], [0, 9]], np.int32)
    segments = (SegmentInfo(9, 1, True, 2, (0, 0, 2, 2)), SegmentInfo(4, 1, True, 1, (1, 0, 1, 1)))
    result = convert_panoptic_to_semantic(PanopticSegmentation(ids, segments), ignore_index=7)
    np.testing.assert_array_equal(result, [[1, 1], [7, 1]])


def test_conversion_errors():
    with pytest.raises(ValueError, match=r"label ids in \[0, 3\) or 255 .* got also \[3, 9\]"):
        convert_semantic_to_panoptic(np.array([[0, 3], [9, 255]]), VOCABULARY)
    with pytest.raises(ValueError, match=r"got also \[-1\]"):
        convert_semantic_to_panoptic(np.array([[-1]]), VOCABULARY)
    target = convert_semantic_to_panoptic(np.array([[0, 1]]), VOCABULARY)
    with pytest.raises(ValueError, match="label id 1 is in use"):
        convert_panoptic_to_semantic(target, ignore_index=1)
    unlisted = PanopticSegmentation(np.array([[1, 3]], np.int32), target.segments[:1])
    with pytest.raises(ValueError, match=r"ids that no segment lists: \[3\]"):
        convert_panoptic_to_semantic(unlisted)


def test_reading(semantic_folder):
    dataset = SemanticMapDataset(semantic_folder)
    assert len(dataset) == 2
    assert dataset.vocabulary.names == ("road", "car", "traffic light")
    assert dataset.vocabulary.unseen_label_ids == (2,)
    assert dataset.vocabulary.thing_label_ids == (1, 2)
    first, second = dataset
    assert [(s.id, s.label, s.area) for s in first.target.segments] == [(1, "road", 3), (2, "car", 2)]
    first.target.check_pixels()
    assert (second.image_id, second.file_name) == ("b", "b.png")
    np.testing.assert_array_equal(dataset.semantic_map(1), [[2, 1, 1], [2, 255, 255]])
    np.testing.assert_array_equal(dataset.semantic_map(1, ignore_index=-1), [[2, 1, 1], [2, -1, -1]])
    assert dataset.label_ids(0) == {0, 1}
    assert dataset.label_ids(1) == {1, 2}


def test_raw_names_class_file_elsewhere_and_no_split(semantic_folder, edit_json):
    path = semantic_folder.parent / "classes.json"
    edit_json(path, lambda c: c.pop("unseen_split"))
    path = path.rename(semantic_folder.parent / "other.json")
    dataset = SemanticMapDataset(semantic_folder, classes_json=path, clean_names=False)
    assert dataset.vocabulary.names == ("road", "car", "traffic_light")
    assert dataset.vocabulary.unseen_label_ids == ()
    with pytest.raises(FileNotFoundError, match=r"no classes.json in"):
        SemanticMapDataset(semantic_folder)


def test_unseen_split_with_raw_names(semantic_folder):
    assert SemanticMapDataset(semantic_folder, clean_names=False).vocabulary.unseen_label_ids == (2,)


def test_class_file_in_the_folder_wins(semantic_folder):
    classes = {"classes": [{"id": i, "name": str(i)} for i in (1, 2, 7)], "ignore_index": 0}
    (semantic_folder / "classes.json").write_text(json.dumps(classes))
    assert SemanticMapDataset(semantic_folder).vocabulary.names == ("1", "2", "7")


def test_own_vocabulary(semantic_folder):
    vocabulary = Vocabulary((Category("vehicle", category_id=7), Category("tram", category_id=50)))
    dataset = SemanticMapDataset(semantic_folder, vocabulary=vocabulary)
    np.testing.assert_array_equal(dataset.semantic_map(0), [[255, 255, 255], [0, 255, 0]])
    assert [s.label for s in dataset[0].target.segments] == ["vehicle"]
    foreign = Vocabulary((Category("tram", category_id=50),))
    with pytest.raises(ValueError, match=r"expected some of \[1, 2, 7\], got \[50\]"):
        SemanticMapDataset(semantic_folder, vocabulary=foreign)


def test_ignore_index_may_not_be_a_label_id(semantic_folder):
    with pytest.raises(ValueError, match="ignore_index 2 is a label id"):
        SemanticMapDataset(semantic_folder).semantic_map(0, ignore_index=2)


def test_sixteen_bit_maps(semantic_folder):
    values = np.array([[1, 7, 7], [2, 0, 1]], np.uint16)
    Image.fromarray(values).save(semantic_folder / "labels" / "a.png")
    np.testing.assert_array_equal(
        SemanticMapDataset(semantic_folder).semantic_map(0), [[0, 1, 1], [2, 255, 0]]
    )


def test_files_without_a_partner_are_counted(semantic_folder):
    (semantic_folder / "labels" / "a.png").rename(semantic_folder / "labels" / "c.png")
    (semantic_folder / "images" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError) as error:
        SemanticMapDataset(semantic_folder)
    assert "1 of 2 images have no label map: a; 1 of 2 label maps have no image: c" in str(error.value)
    for path in semantic_folder.glob("*/*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="there are no images"):
        SemanticMapDataset(semantic_folder)


def test_long_lists_of_missing_files_are_cut(semantic_folder):
    for i in range(7):
        (semantic_folder / "images" / f"x{i}.jpg").touch()
    with pytest.raises(FileNotFoundError, match="7 of 9 images have no label map: x0, x1, x2, x3, x4, …"):
        SemanticMapDataset(semantic_folder)


def test_two_pictures_of_one_name(semantic_folder):
    (semantic_folder / "images" / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"more than one picture named \['a'\]"):
        SemanticMapDataset(semantic_folder)


def test_broken_maps(semantic_folder):
    dataset, path = SemanticMapDataset(semantic_folder), semantic_folder / "labels" / "a.png"
    Image.fromarray(np.array([[1, 1, 3], [7, 1, 99]], np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a.png holds values .* ignore_index 0: \[3, 99\]"):
        dataset[0]
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(ValueError, match="single-channel PNG of class ids, got Pillow mode 'RGB'"):
        dataset[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a.png cannot be read as a PNG|got Pillow mode"):
        dataset[0]
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"a.png is not a PNG"):
        dataset[0]
    whole = semantic_folder / "labels" / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"b.png cannot be read as a PNG"):
        dataset[1]


@pytest.mark.parametrize("classes", [{"road": 0}, [{"name": "road"}], ["road"]])
def test_broken_class_file(semantic_folder, edit_json, classes):
    edit_json(semantic_folder.parent / "classes.json", lambda c: c.update(classes=classes))
    with pytest.raises(ValueError, match="'classes' must be a list of"):
        SemanticMapDataset(semantic_folder)


@pytest.mark.real_data
def test_street_scenes(real_data):
    dataset = SemanticMapDataset(real_data / "camvid" / "val")
    assert len(dataset) == 101
    assert len(SemanticMapDataset(real_data / "camvid" / "train")) == 367
    unseen = {dataset.vocabulary[i].name for i in dataset.vocabulary.unseen_label_ids}
    assert unseen == {"fence", "bicyclist", "sign"}
    for index in range(0, 101, 20):
        example = dataset[index]
        example.target.check_pixels()
        np.testing.assert_array_equal(
            convert_panoptic_to_semantic(example.target), dataset.semantic_map(index)
        )
