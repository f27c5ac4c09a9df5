import json

import numpy as np
import pytest

from zsseg.panoptic_format import read_panoptic_png
from zsseg.postprocessing.result_files import segments_to_json, write_coco_panoptic_results
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car"], stuff_labels=["road"])


HALF = np.float32(0.5)


def segmentation_of(label_id=1, score=HALF, segment_id=1, iscrowd=False):
    ids = np.array([[0, segment_id, segment_id]], dtype=np.int32)
    bbox = (np.int64(1), 0, 2, 1)
    segment = SegmentInfo(np.int32(segment_id), label_id, label_id == 1, np.int64(2), bbox, score, iscrowd)
    return PanopticSegmentation(ids, (segment,))


def test_segments_become_plain_records():
    [record] = segments_to_json(segmentation_of(), VOCABULARY)
    assert record == {"id": 1, "label": "car", "score": 0.5, "isthing": True, "area": 2, "bbox": [1, 0, 2, 1]}
    assert json.loads(json.dumps(record)) == record
    [without_score] = segments_to_json(segmentation_of(label_id=0, score=None), VOCABULARY)
    assert (without_score["score"], without_score["isthing"]) == (None, False)


def test_results_can_be_read_back(tmp_path):
    results = [
        (7, "a.jpg", segmentation_of(segment_id=70_000)),
        (8, "deep/b.jpeg", segmentation_of(label_id=0, score=None, iscrowd=True)),
    ]
    path = write_coco_panoptic_results(tmp_path / "out", iter(results), VOCABULARY)
    assert path == tmp_path / "out" / "panoptic.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["images"] == [
        {"id": 7, "file_name": "a.jpg", "height": 1, "width": 3},
        {"id": 8, "file_name": "deep/b.jpeg", "height": 1, "width": 3},
    ]
    assert content["categories"] == [
        {"id": 1, "name": "road", "isthing": 0},
        {"id": 2, "name": "car", "isthing": 1},
    ]
    first, second = content["annotations"]
    assert (first["image_id"], first["file_name"]) == (7, "a.png")
    assert first["segments_info"] == [
        {
            "id": 70_000,
            "category_id": 2,
            "isthing": 1,
            "area": 2,
            "bbox": [1, 0, 2, 1],
            "iscrowd": 0,
            "score": 0.5,
        }
    ]
    assert second["file_name"] == "deep/b.png"
    [info] = second["segments_info"]
    assert "score" not in info
    assert (info["category_id"], info["isthing"], info["iscrowd"]) == (1, 0, 1)
    for (_, _, segmentation), annotation in zip(results, content["annotations"], strict=True):
        ids = read_panoptic_png(tmp_path / "out" / "panoptic" / annotation["file_name"])
        assert np.array_equal(ids, segmentation.segment_ids)
    assert not list(tmp_path.rglob("*.part"))


def test_category_ids_are_those_of_the_data_set_where_it_has_them(tmp_path):
    vocabulary = Vocabulary(
        (Category("road", is_thing=False, category_id=149), Category("car", category_id=3))
    )
    path = write_coco_panoptic_results(
        tmp_path, [(1, "a.jpg", segmentation_of())], vocabulary, json_name="val.json"
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [category["id"] for category in content["categories"]] == [149, 3]
    assert content["annotations"][0]["segments_info"][0]["category_id"] == 3
    assert (tmp_path / "val" / "a.png").is_file()


def test_no_results_make_a_valid_file(tmp_path):
    content = json.loads(write_coco_panoptic_results(tmp_path, [], VOCABULARY).read_text(encoding="utf-8"))
    assert content["images"] == []
    assert content["annotations"] == []


def test_each_result_is_written_before_the_next_is_asked_for(tmp_path):
    def results():
        for number in range(3):
            assert len(list(tmp_path.glob("panoptic/*.png"))) == number
            yield number, f"{number}.jpg", segmentation_of()

    write_coco_panoptic_results(tmp_path, results(), VOCABULARY)


def test_a_failure_midway_keeps_the_json_of_the_last_complete_run(tmp_path):
    path = write_coco_panoptic_results(tmp_path, [(1, "a.jpg", segmentation_of())], VOCABULARY)
    before = path.read_bytes()

    def failing():
        yield 2, "b.jpg", segmentation_of()
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        write_coco_panoptic_results(tmp_path, failing(), VOCABULARY)
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([(1, "a.jpg"), (1, "b.jpg")], "repeats an image id"),
        ([(1, "a.jpg"), (2, "a.png")], "the PNG name 'a.png'"),
        ([(1, "../a.jpg")], "inside the results folder"),
        ([(1, "/a.jpg")], "inside the results folder"),
        ([(1, "")], "inside the results folder"),
    ],
)
def test_names_that_clash_or_leave_the_folder_are_refused(tmp_path, names, message):
    results = [(image_id, name, segmentation_of()) for image_id, name in names]
    with pytest.raises(ValueError, match=message):
        write_coco_panoptic_results(tmp_path / "out", results, VOCABULARY)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("json_name", ["panoptic.txt", "deep/panoptic.json", "../panoptic.json"])
def test_the_json_lies_in_the_folder(tmp_path, json_name):
    with pytest.raises(ValueError, match=r"ends in '\.json'"):
        write_coco_panoptic_results(tmp_path, [], VOCABULARY, json_name=json_name)


def test_category_ids_that_collide_are_refused(tmp_path):
    vocabulary = Vocabulary((Category("road", category_id=2), Category("car")))
    with pytest.raises(ValueError, match=r"category ids \[2\] would stand for two labels"):
        write_coco_panoptic_results(tmp_path, [], vocabulary)


def test_labels_outside_the_vocabulary_are_refused(tmp_path):
    alone = Vocabulary.from_labels(["road"])
    with pytest.raises(ValueError, match=r"\[1\] are outside the vocabulary of 1 labels"):
        segments_to_json(segmentation_of(), alone)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        write_coco_panoptic_results(tmp_path, [(1, "a.jpg", segmentation_of())], alone)
