import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from zsseg.data.annotation_files import DataProblem
from zsseg.data.checking import Spread, check_dataset, choose_shown
from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.opening import open_dataset
from zsseg.panoptic_format import write_panoptic_png
from zsseg.vocabulary import Vocabulary


def check(source):
    problems = []
    return check_dataset(open_dataset(source, problems=problems), problems, progress=False)


def reasons(found, name):
    return [problem.reason for problem in found.problems if problem.file_name == name]


def test_counts_of_a_sound_data_set(coco_folder):
    found = check(coco_folder)
    assert found.problems == []
    assert found.notes == []
    assert (found.pictures, found.pixels, found.void_pixels) == (2, 18, 1)
    assert (found.heights, found.widths) == (Spread(2, 2, 3), Spread(3, 3, 4))
    counted = [(c.name, c.isthing, c.pictures, c.segments, c.crowds, c.pixels) for c in found.labels]
    assert counted == [
        ("car", True, 2, 3, 1, 8),
        ("road", False, 2, 2, 0, 5),
        ("sky", False, 1, 1, 0, 4),
    ]
    assert found.shown == (0, 1)
    assert found.absent_labels == ()
    assert json.loads(json.dumps(found.to_dict()))["labels"][0]["pixels"] == 8


def test_every_fault_of_a_panoptic_data_set_is_listed(coco_folder, edit_json):
    write_panoptic_png(coco_folder / "panoptic" / "10.png", np.array([[300, 1, 70000, 8]]))
    (coco_folder / "images" / "11.png").unlink()
    (coco_folder / "panoptic" / "12.png").touch()

    def damage(content):
        content["images"] += [{"id": 13, "file_name": "13.png"}, {"id": 13, "file_name": "13.png"}]
        content["annotations"].append({"image_id": 99, "file_name": "99.png", "segments_info": []})
        content["annotations"][1]["segments_info"] += [
            {"id": 5, "category_id": 3},
            {"id": 6, "category_id": 4},
        ]
        content["categories"].append({"id": 4, "name": " ", "isthing": 1})
        content["annotations"][1]["segments_info"].append({"id": 7, "category_id": 5})

    edit_json(coco_folder / "panoptic.json", damage)
    found = check(coco_folder)
    assert reasons(found, "panoptic.json") == ["the label of category id 4 (entry 3) has no name"]
    (ids,) = reasons(found, "10.png")
    assert "holds 1 segment ids that" in ids
    assert "does not list: [8]" in ids
    assert "holds no pixel of 1 segments" in ids
    assert "lists: [2]" in ids
    assert reasons(found, "11.png") == [
        "segment 7 has category_id 5, which 'categories' does not list",
        "several segments have the same id: [5]; ids must be unique in a picture",
        f"this image file is missing in {coco_folder / 'images'}",
    ]
    assert reasons(found, "99.png") == [
        "'images' does not list its image_id 99",
        f"this panoptic PNG file is missing in {coco_folder / 'panoptic'}",
    ]
    assert reasons(found, "13.png") == [
        "2 entries of 'images' have its id 13",
        "'images' lists this file 2 times",
        "'images' lists the picture, but no annotation, and so no map, belongs to it",
        f"this image file is missing in {coco_folder / 'images'}",
    ]
    assert reasons(found, "") == ["no picture could be read with its ground truth"]
    assert (found.pictures, found.heights, found.shown) == (0, None, ())
    assert found.absent_labels == ("car", "road", "sky")
    assert found.notes == [
        f"PNGs in {coco_folder / 'panoptic'} that belong to no annotation: 1, such as 12.png"
    ]


def test_sound_pictures_beside_faulty_ones_are_counted(coco_folder, edit_json):
    edit_json(coco_folder / "panoptic.json", lambda c: c["annotations"][0].pop("segments_info"))
    found = check(coco_folder)
    assert len(found.problems) == 1
    assert (found.pictures, found.shown) == (1, (0,))
    assert found.labels[0].crowds == 1


def test_pictures_that_two_entries_claim_or_whose_map_is_missing_are_left_out(coco_folder, edit_json):
    edit_json(coco_folder / "panoptic.json", lambda c: c["images"].append(dict(c["images"][0])))
    (coco_folder / "panoptic" / "11.png").unlink()
    problems = []
    dataset = open_dataset(coco_folder, problems=problems)
    assert len(dataset) == 0
    assert [problem.file_name for problem in problems] == ["10.png", "10.png", "11.png"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGBA", (3, 2)), "got Pillow mode 'RGBA'"),
        (Image.new("P", (3, 2)), "got Pillow mode 'P'"),
        (Image.fromarray(np.zeros((2, 3), np.uint16)), "16 bits a channel"),
        (Image.new("RGB", (2, 2)), "the picture is 3×2 but its map is 2×2"),
    ],
)
def test_maps_of_a_wrong_kind(coco_folder, image, reason, edit_json):
    image.save(coco_folder / "panoptic" / "11.png")
    if image.mode == "RGB":
        edit_json(coco_folder / "panoptic.json", lambda c: c["annotations"][1].update(segments_info=[]))
    found = check(coco_folder)
    assert found.pictures == 1
    assert [problem.file_name for problem in found.problems] == ["11.png"]
    assert reason in found.problems[0].reason
    assert not found.problems[0].reason.startswith("11.png: ")
    assert "zsseg data check" not in found.problems[0].reason


def test_every_fault_of_semantic_maps_is_listed(semantic_folder):
    images, labels = semantic_folder / "images", semantic_folder / "labels"
    (images / "c.jpg").touch()
    (labels / "d.png").touch()
    (images / "a.jpg").touch()
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(labels / "b.png")
    found = check(semantic_folder)
    assert {problem.file_name for problem in found.problems} == {
        "a.png",
        "a.jpg",
        "b.png",
        "c.jpg",
        "d.png",
        "",
    }
    assert reasons(found, "a.jpg") == ["2 pictures in images/ are named a"]
    assert reasons(found, "c.jpg") == ["there is no map labels/c.png for this picture"]
    assert reasons(found, "d.png") == ["there is no picture in images/ for the map labels/d.png"]
    assert "ignore_index 0: [200]" in reasons(found, "b.png")[0]


def test_instances_that_others_cover_are_counted(tmp_path):
    def rectangle(x, y, width, height):
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "b.png")
    masks = [rectangle(0, 0, 4, 1), rectangle(0, 0, 2, 1), rectangle(2, 0, 2, 1)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "segmentation": mask} for i, mask in enumerate(masks)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = check(tmp_path)
    assert found.labels[0].segments == 2
    assert any("1 of 3 are covered by others as a whole" in note for note in found.notes)
    assert "1 of 2 pictures show no label at all" in found.notes
    content["annotations"] += [
        {"id": 0, "image_id": 2, "category_id": 1, "segmentation": masks[0]},
        {"id": 9, "image_id": 2, "category_id": 8, "segmentation": masks[0]},
        {"id": 10, "image_id": 7, "category_id": 1, "segmentation": masks[0]},
        {"id": 11, "image_id": 2, "category_id": 1},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = check(tmp_path)
    assert found.problems[:-1] == [
        DataProblem("a.png", "2 annotations have the id 0"),
        DataProblem("b.png", "2 annotations have the id 0"),
        DataProblem("b.png", "annotation 9 has category_id 8, which 'categories' does not list"),
        DataProblem("annotations[5]", "annotation 10 refers to image id 7, which 'images' does not list"),
        DataProblem(
            "b.png",
            "annotation 11 lacks ['segmentation'], so this is not the instance format; read panoptic JSON "
            "with CocoPanopticDataset",
        ),
    ]
    with pytest.raises(ValueError, match=r"a\.png: 2 annotations have the id 0; `zsseg data check` lists"):
        CocoInstanceDataset(tmp_path / "instances.json", tmp_path)


def test_names_and_ids_that_several_rows_share(coco_dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    from zsseg.data.datasets_columns import HfPanopticDataset, to_hf_dataset

    columns = to_hf_dataset(coco_dataset, cache_dir=str(tmp_path))
    twice = datasets.concatenate_datasets([columns, columns.select([0])])
    found = check_dataset(HfPanopticDataset(twice), progress=False)
    assert found.problems == [DataProblem("10.png", "2 pictures have this file name")]
    renamed = twice.map(lambda row, index: {"file_name": f"{index}.png"}, with_indices=True)
    found = check_dataset(HfPanopticDataset(renamed), progress=False)
    assert found.problems == [DataProblem("0.png", "2 pictures have its image_id 10: ['0.png', '2.png']")]


def test_shown_pictures_have_as_many_labels_as_any_choice():
    vocabulary = Vocabulary.from_labels([str(label) for label in range(8)])
    generator = np.random.default_rng(0)
    for _ in range(5):
        label_sets = {
            index: frozenset(np.flatnonzero(generator.random(8) < 0.25).tolist()) for index in range(9)
        }
        shown = choose_shown(label_sets, vocabulary, 3)
        covered = len(frozenset().union(*(label_sets[index] for index in shown)))
        best = max(
            len(frozenset().union(*(label_sets[index] for index in chosen)))
            for chosen in combinations(range(9), 3)
        )
        # What greedy choice guarantees of the best one: 1 - 1/e.
        assert covered >= 0.63 * best
        assert shown == choose_shown(dict(reversed(label_sets.items())), vocabulary, 3)


def test_shown_pictures_come_from_all_over_the_data_set():
    vocabulary = Vocabulary.from_labels(["a"])
    shown = choose_shown(dict.fromkeys(range(100), frozenset({0})), vocabulary, 4)
    assert len(shown) == 4
    assert {index // 25 for index in shown} == {0, 1, 2, 3}
    assert choose_shown({}, vocabulary, 4) == ()
