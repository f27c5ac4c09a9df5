import json

import numpy as np
import pytest
from PIL import Image

from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.vocabularies import load_label_space, load_split
from zsseg.vocabulary import Category, Vocabulary


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.fixture
def folder(tmp_path):
    """A 6×5 picture with a crowd below a person, a tie on it, one hidden person; and one without objects."""
    crowd = {"size": [5, 6], "counts": [0, 30]}
    annotations = [
        {"id": 1, "image_id": 2, "category_id": 32, "segmentation": rectangle(2, 2, 1, 2)},
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": rectangle(1, 1, 3, 4)},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": crowd, "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 1, "segmentation": rectangle(2, 2, 1, 2)},
    ]
    content = {
        "images": [{"id": 2, "file_name": "2.png"}, {"id": 3, "file_name": "3.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 32, "name": "tie"}],
    }
    (tmp_path / "images").mkdir()
    for name in ("2.png", "3.png"):
        Image.new("RGB", (6, 5)).save(tmp_path / "images" / name)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def read(folder, **options):
    return CocoInstanceDataset(folder / "instances.json", folder / "images", **options)


def test_small_instances_lie_on_large_ones_and_all_on_crowds(folder):
    dataset = read(folder)
    assert len(dataset) == 2
    expected = np.full((5, 6), 3)
    expected[1:5, 1:4] = 2
    expected[2:4, 2] = 4  # as large as the tie and later in the file
    target = dataset[0].target
    np.testing.assert_array_equal(target.segment_ids, expected)
    target.check_pixels()
    assert [(s.id, s.label, s.iscrowd, s.isthing) for s in target.segments] == [
        (2, "person", False, True),
        (3, "person", True, True),
        (4, "person", False, True),
    ]
    assert dataset.label_ids(0) == {0, 1}


def test_picture_without_objects_is_void(folder):
    dataset = read(folder)
    assert dataset[1].target.segments == ()
    assert not dataset[1].target.segment_ids.any()
    assert dataset.label_ids(1) == frozenset()


def test_categories_outside_the_vocabulary_are_void_on_top(folder, edit_json):
    edit_json(folder / "instances.json", lambda c: c["annotations"].pop())
    dataset = read(folder, vocabulary=Vocabulary((Category("person", category_id=1),)))
    assert dataset.void_category_names == ("tie",)
    target = dataset[0].target
    assert not target.segment_ids[2:4, 2].any()
    assert {segment.id for segment in target.segments} == {2, 3}
    assert dataset.label_ids(0) == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].pop("segmentation"), "read panoptic JSON with CocoPanopticDataset"),
        (lambda c: c["annotations"][0].update(image_id=9), "annotation 1 refers to image id 9"),
    ],
)
def test_broken_json(folder, edit_json, change, message):
    edit_json(folder / "instances.json", change)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_broken_mask_is_named(folder, edit_json):
    edit_json(folder / "instances.json", lambda c: c["annotations"][2]["segmentation"].update(counts=[5]))
    with pytest.raises(ValueError, match=r"instances.json: annotation 3 of 2.png: run lengths must"):
        read(folder)[0]


def test_missing_pictures(folder):
    (folder / "images" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 image files are missing"):
        read(folder)


@pytest.mark.real_data
def test_coco_photographs(real_data):
    folder = real_data / "coco_instances_small"
    dataset = read(folder)
    assert len(dataset) == 80
    assert dataset.vocabulary == load_label_space("coco_instances")
    for index in range(0, 80, 8):
        dataset[index].target.check_pixels()
    crowds = sum(a.get("iscrowd", 0) for group in dataset._annotations.values() for a in group)
    assert crowds == 6
    assert len(read(folder, vocabulary=load_split("coco_instances_48_17")).void_category_names) == 15
