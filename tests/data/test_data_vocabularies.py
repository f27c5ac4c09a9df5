import pytest

from zsseg.data.vocabularies import (
    build_vocabulary,
    clean_category_name,
    clean_category_texts,
    list_label_spaces,
    list_splits,
    load_label_space,
    load_split,
    mark_unseen,
)
from zsseg.vocabulary import Vocabulary

LABEL_COUNTS = {
    "ade150": (150, 100),
    "ade847": (847, 0),
    "coco_instances": (80, 80),
    "coco_panoptic": (133, 80),
    "coco_stuff": (171, 80),
    "pc459": (459, 0),
    "pc59": (59, 0),
    "voc20": (20, 20),
}
PADING_UNSEEN_IDS = (21, 25, 33, 34, 41, 57, 87, 100, 145, 148, 149, 184, 187, 193)


def test_every_label_space_and_split_is_listed():
    assert list_label_spaces() == tuple(sorted(LABEL_COUNTS))
    assert list_splits() == (
        "coco_instances_48_17",
        "coco_instances_65_15",
        "coco_panoptic_119_14",
        "coco_stuff_156_15",
        "voc_15_5",
    )


@pytest.mark.parametrize(("name", "counts"), LABEL_COUNTS.items())
@pytest.mark.parametrize("clean_names", [True, False])
def test_label_spaces(name, counts, clean_names):
    vocabulary = load_label_space(name, clean_names=clean_names)
    assert (len(vocabulary), len(vocabulary.thing_label_ids)) == counts
    assert all(category.is_seen for category in vocabulary)
    assert all(text == text.strip() for category in vocabulary for text in category.texts)
    has_ids = {category.category_id is not None for category in vocabulary}
    assert has_ids == {name != "ade847"}


@pytest.mark.parametrize(
    ("name", "seen", "unseen"),
    [
        ("coco_panoptic_119_14", 119, 14),
        ("coco_stuff_156_15", 156, 15),
        ("voc_15_5", 15, 5),
        ("coco_instances_48_17", 48, 17),
        ("coco_instances_65_15", 65, 15),
    ],
)
@pytest.mark.parametrize("clean_names", [True, False])
def test_splits(name, seen, unseen, clean_names):
    vocabulary = load_split(name, clean_names=clean_names)
    assert (len(vocabulary.seen_label_ids), len(vocabulary.unseen_label_ids)) == (seen, unseen)
    assert len(vocabulary) == seen + unseen


def test_coco_panoptic_split_is_that_of_pading():
    vocabulary = load_split("coco_panoptic_119_14")
    assert tuple(vocabulary[i].category_id for i in vocabulary.unseen_label_ids) == PADING_UNSEEN_IDS
    seen_things = set(vocabulary.seen_label_ids) & set(vocabulary.thing_label_ids)
    assert len(seen_things) == 73


def test_split_keeps_the_label_space_apart_from_seen():
    split, space = load_split("coco_stuff_156_15"), load_label_space("coco_stuff")
    assert split.names == space.names
    assert split.thing_label_ids == space.thing_label_ids


def test_instance_split_leaves_out_labels_of_neither_part():
    names = load_split("coco_instances_48_17").names
    assert "hot dog" not in names
    assert {"zebra", "bus"} <= set(names)


def test_ids_of_merged_coco_stuff_agree():
    """Where COCO panoptic did not merge a stuff label, both label spaces give it the same id."""
    panoptic = load_label_space("coco_panoptic", clean_names=False)
    stuff = {c.name: c.category_id for c in load_label_space("coco_stuff", clean_names=False)}
    shared = [category for category in panoptic if category.name in stuff]
    assert len(shared) == 116
    assert all(stuff[category.name] == category.category_id for category in shared)


@pytest.mark.parametrize(
    ("space", "raw", "clean"),
    [
        ("coco_panoptic", "tree-merged", "tree"),
        ("coco_panoptic", "sky-other-merged", "sky"),
        ("coco_panoptic", "door-stuff", "door"),
        ("coco_panoptic", "window-blind", "window-blind"),
        ("coco_stuff", "wall-concrete", "concrete wall"),
        ("coco_stuff", "ceiling-tile", "tile ceiling"),
        ("voc20", "pottedplant", "potted plant"),
        ("pc459", "horse-drawncarriage", "horse-drawn carriage"),
        ("ade847", "building, edifice", "building"),
        ("ade847", "pier, wharf, wharfage, dock", "wharf"),
    ],
)
def test_raw_and_clean_names_stand_at_the_same_place(space, raw, clean):
    label_id = load_label_space(space, clean_names=False).label_id(raw)
    assert load_label_space(space).label_id(clean) == label_id


def test_cleaning():
    assert clean_category_name(" traffic_light ") == "traffic light"
    assert clean_category_name("t-shirt") == "t-shirt"
    assert clean_category_name("other") == "other"
    assert clean_category_texts("sky, heaven,, sky") == ("sky", "heaven")


def test_synonyms_come_from_comma_lists():
    vocabulary = load_label_space("ade847")
    assert vocabulary[vocabulary.label_id("person")].synonyms[:2] == ("individual", "someone")


@pytest.mark.parametrize("load", [load_label_space, load_split])
def test_unknown_names_list_the_known(load):
    with pytest.raises(ValueError, match=r"no packaged (split|label space) '\.\./ade150'; there are \['"):
        load("../ade150")


def test_build_vocabulary():
    vocabulary = build_vocabulary([{"name": "tree-merged", "id": 7}, {"name": "car", "isthing": 1}])
    assert vocabulary.names == ("tree", "car")
    assert vocabulary.stuff_label_ids == (0,)
    assert vocabulary.label_id_by_category_id == {7: 0}


def test_names_that_clean_to_the_same_word():
    entries = [{"name": "sky-other"}, {"name": "sky-merged"}]
    with pytest.raises(ValueError, match=r"my.json: labels must be unique.*pass clean_names=False"):
        build_vocabulary(entries, source="my.json")
    assert build_vocabulary(entries, clean_names=False).names == ("sky-other", "sky-merged")
    with pytest.raises(ValueError, match=r"category ids must be unique.*\[2\]$"):
        build_vocabulary([{"name": "sky", "id": 2}, {"name": "sea", "id": 2}])
    with pytest.raises(ValueError, match="more than once") as error:
        build_vocabulary([{"name": "a"}, {"name": "a"}], clean_names=False)
    assert "clean_names" not in str(error.value)


@pytest.mark.parametrize("entry", [{"id": 1}, {"name": " "}, "road"])
def test_entries_without_a_name(entry):
    with pytest.raises(ValueError, match="entry 1 must be an object with a 'name'"):
        build_vocabulary([{"name": "road"}, entry])


def test_mark_unseen():
    vocabulary = Vocabulary.from_labels(["road", "car", "tree"], unseen_labels=["road"])
    assert mark_unseen(vocabulary, ["tree"]).unseen_label_ids == (2,)
    with pytest.raises(ValueError, match=r"not in the vocabulary: \['sky'\]"):
        mark_unseen(vocabulary, ["sky"])
