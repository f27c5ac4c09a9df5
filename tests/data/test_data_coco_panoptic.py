import logging

import numpy as np
import pytest
from PIL import Image

from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.vocabularies import load_label_space, load_split
from zsseg.image_loading import ImageLoadError
from zsseg.panoptic_format import write_panoptic_png
from zsseg.vocabulary import Category, Vocabulary


def described(target):
    return [(s.id, s.label, s.isthing, s.iscrowd, s.area, s.bbox) for s in target.segments]


def test_reading(coco_dataset, coco_folder):
    assert len(coco_dataset) == 2
    assert coco_dataset.vocabulary.names == ("car", "road", "sky")
    assert coco_dataset.vocabulary.stuff_label_ids == (1, 2)
    first, second = coco_dataset
    assert described(first.target) == [
        (300, "sky", False, False, 4, (0, 0, 4, 1)),
        (1, "road", False, False, 3, (0, 1, 2, 2)),
        (70000, "car", True, False, 3, (2, 1, 2, 2)),
        (2, "car", True, False, 1, (3, 2, 1, 1)),
    ]
    assert described(second.target)[0] == (5, "car", True, True, 4, (0, 0, 2, 2))
    assert (second.image_id, second.file_name) == (11, "11.png")
    with Image.open(coco_folder / "images" / "10.png") as image:
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(image))
    assert coco_dataset.label_ids(0) == {0, 1, 2}
    assert coco_dataset.label_ids(1) == {0, 1}


def test_raw_names_and_a_folder_elsewhere(coco_folder):
    (coco_folder / "panoptic").rename(coco_folder / "elsewhere")
    dataset = CocoPanopticDataset(
        coco_folder / "panoptic.json", coco_folder / "images", coco_folder / "elsewhere", clean_names=False
    )
    assert dataset.vocabulary.names == ("car", "road", "sky-other-merged")
    dataset[0].target.check_pixels()


def test_vocabulary_of_a_split(coco_folder):
    split = load_split("coco_panoptic_119_14")
    dataset = CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images", vocabulary=split)
    assert {s.label for s in dataset[0].target.segments} == {"sky", "road", "car"}
    assert not split[split.label_id("road")].is_seen


def test_categories_outside_the_vocabulary_become_void(coco_folder, caplog):
    vocabulary = Vocabulary((Category("lane", is_thing=False, category_id=149),))
    with caplog.at_level(logging.INFO):
        dataset = CocoPanopticDataset(
            coco_folder / "panoptic.json", coco_folder / "images", vocabulary=vocabulary
        )
    assert dataset.void_category_names == ("car", "sky-other-merged")
    assert "segments of 2 categories become void" in caplog.text
    target = dataset[0].target
    target.check_pixels()
    assert [segment.label for segment in target.segments] == ["lane"]
    assert set(np.unique(target.segment_ids)) == {0, 1}


def test_vocabulary_of_another_data_set(coco_folder):
    vocabulary = Vocabulary((Category("a", category_id=1), Category("b")))
    with pytest.raises(ValueError, match=r"expected some of \[3, 149, 187\], got \[1\]"):
        CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images", vocabulary=vocabulary)


def test_missing_files_are_counted(coco_folder):
    (coco_folder / "panoptic" / "11.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 panoptic PNG files are missing in .*: 11.png"):
        CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images")
    (coco_folder / "images" / "10.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 image files are missing in .*: 10.png"):
        CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images")
    with pytest.raises(FileNotFoundError, match="no image folder at"):
        CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "nowhere")


def test_png_ids_that_the_json_does_not_list(coco_dataset, coco_folder):
    png = coco_folder / "panoptic" / "11.png"
    write_panoptic_png(png, np.array([[5, 5, 9], [5, 8, 9]]))
    with pytest.raises(
        ValueError, match=r"11.png holds 1 segment ids that .*panoptic.json does not list: \[8\]"
    ):
        coco_dataset[1]
    write_panoptic_png(png, np.array([[5, 5, 5], [5, 5, 0]]))
    with pytest.raises(ValueError, match=r"11.png holds no pixel of 1 segments .* lists: \[9\]"):
        coco_dataset[1]
    coco_dataset[0].target.check_pixels()


def test_sizes_that_differ_and_broken_pictures(coco_dataset, coco_folder):
    write_panoptic_png(coco_folder / "panoptic" / "11.png", np.array([[5, 9]]))
    with pytest.raises(ValueError, match=r"11.png: the picture is 3×2 but its map is 2×1"):
        coco_dataset[1]
    (coco_folder / "images" / "10.png").write_bytes(b"")
    with pytest.raises(ImageLoadError, match=r"10.png': it is empty"):
        coco_dataset[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].pop("segments_info"), "read instance JSON with CocoInstanceDataset"),
        (lambda c: c["images"].pop(), "11.png: 'images' does not list its image_id 11"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=9),
            "10.png: segment 300 has category_id 9, which 'categories' does not list",
        ),
        (lambda c: c.pop("categories"), r"lacks \['categories'\]"),
        (lambda c: c["categories"][1].pop("isthing"), r"categories\[1\] lacks \['isthing'\]"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\] lacks \['file_name'\]"),
        (lambda c: c["annotations"][1].pop("image_id"), "11.png: the annotation lacks 'image_id'"),
        (
            lambda c: c["annotations"][0]["segments_info"][2].pop("id"),
            r"10.png: segments_info\[2\] lacks \['id'\]",
        ),
        (lambda c: c["annotations"][1].update(image_id=10), "10.png: 2 annotations have the image_id 10"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=1),
            r"10.png: several segments have the same id: \[1\]",
        ),
    ],
)
def test_broken_json(coco_folder, edit_json, change, message):
    edit_json(coco_folder / "panoptic.json", change)
    with pytest.raises(ValueError, match=message):
        CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images")


@pytest.mark.real_data
def test_coco_photographs(real_data):
    folder = real_data / "coco_panoptic_small"
    dataset = CocoPanopticDataset(folder / "panoptic.json", folder / "images")
    assert len(dataset) == 13
    assert dataset.vocabulary == load_label_space("coco_panoptic")
    for example in dataset:
        example.target.check_pixels()


@pytest.mark.real_data
def test_official_sample(real_data):
    folder = real_data / "coco_panoptic_official_sample"
    dataset = CocoPanopticDataset(folder / "panoptic_examples.json", folder / "input_images")
    examples = list(dataset)
    assert sum(segment.iscrowd for e in examples for segment in e.target.segments) > 0
    listed = {
        segment["id"]: (segment["area"], tuple(segment["bbox"]))
        for annotation in dataset._annotations
        for segment in annotation["segments_info"]
    }
    counted = {s.id: (s.area, s.bbox) for example in examples for s in example.target.segments}
    assert counted == listed
