import logging

import numpy as np
import pytest

from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.seen_filter import (
    SeenLabelsDataset,
    SubsetDataset,
    drop_images_with_unseen,
    ignore_unseen,
)
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.vocabularies import load_split, mark_unseen


@pytest.fixture
def sky_unseen(coco_folder, coco_dataset):
    return CocoPanopticDataset(
        coco_folder / "panoptic.json",
        coco_folder / "images",
        vocabulary=mark_unseen(coco_dataset.vocabulary, ["sky"]),
    )


def test_images_with_an_unseen_segment_are_dropped_and_counted(sky_unseen, caplog):
    with caplog.at_level(logging.INFO):
        kept = drop_images_with_unseen(sky_unseen)
    assert "kept 1 of 2 pictures: 1 hold an unseen segment" in caplog.text
    assert len(kept) == 1
    assert kept[0].image_id == 11
    assert kept.label_ids(0) == {0, 1}
    assert kept.vocabulary is sky_unseen.vocabulary


def test_unseen_pixels_become_void(sky_unseen):
    ignored = ignore_unseen(sky_unseen)
    assert len(ignored) == 2
    assert ignored.images_with_unseen == 1
    assert ignored.vocabulary is sky_unseen.vocabulary
    before, after = sky_unseen[0], ignored[0]
    after.target.check_pixels()
    assert {segment.label for segment in after.target.segments} == {"road", "car"}
    np.testing.assert_array_equal(
        after.target.segment_ids,
        np.where(before.target.segment_ids == 300, 0, before.target.segment_ids),
    )
    np.testing.assert_array_equal(np.asarray(after.image), np.asarray(before.image))
    assert ignored.label_ids(0) == {0, 1}
    np.testing.assert_array_equal(ignored[1].target.segment_ids, sky_unseen[1].target.segment_ids)


def test_a_data_set_of_seen_labels_does_not_know_the_others(coco_folder, coco_dataset):
    vocabulary = mark_unseen(coco_dataset.vocabulary, ["car"])
    dataset = CocoPanopticDataset(
        coco_folder / "panoptic.json", coco_folder / "images", vocabulary=vocabulary
    )
    seen = SeenLabelsDataset(dataset)
    assert "car" not in seen.vocabulary.names
    assert seen.vocabulary.unseen_label_ids == ()
    assert len(seen) == len(dataset)
    for index in range(len(dataset)):
        before, after = dataset[index].target, seen[index].target
        after.check_pixels()
        labels = {segment.id: segment.label for segment in before.segments if segment.label != "car"}
        assert {s.id: seen.vocabulary.names[s.label_id] for s in after.segments} == labels
        assert seen.label_ids(index) == {segment.label_id for segment in after.segments}
        hidden = ~np.isin(before.segment_ids, list(labels))
        np.testing.assert_array_equal(after.segment_ids, np.where(hidden, 0, before.segment_ids))


def test_nothing_to_filter(coco_dataset):
    for tool in (drop_images_with_unseen, ignore_unseen):
        with pytest.raises(ValueError, match="every label of the vocabulary is seen"):
            tool(coco_dataset)


def test_nothing_left(sky_unseen):
    with pytest.raises(ValueError, match="all 1 pictures hold an unseen segment"):
        drop_images_with_unseen(SubsetDataset(sky_unseen, [0]))


def test_subset_in_any_order(coco_dataset):
    subset = SubsetDataset(coco_dataset, [1, 0, 1])
    assert [example.image_id for example in subset] == [11, 10, 11]
    with pytest.raises(IndexError, match=r"\[0, 2\), got \[2\]"):
        SubsetDataset(coco_dataset, [0, 2])


@pytest.mark.real_data
def test_coco_split_on_photographs(real_data):
    folder = real_data / "coco_panoptic_small"
    dataset = CocoPanopticDataset(
        folder / "panoptic.json", folder / "images", vocabulary=load_split("coco_panoptic_119_14")
    )
    ignored = ignore_unseen(dataset)
    unseen = set(dataset.vocabulary.unseen_label_ids)
    with_unseen = [bool({s.label_id for s in example.target.segments} & unseen) for example in dataset]
    assert ignored.images_with_unseen == sum(with_unseen)
    kept = len(dataset) - sum(with_unseen)
    if kept:
        assert len(drop_images_with_unseen(dataset)) == kept
    else:
        with pytest.raises(ValueError, match="none would be left"):
            drop_images_with_unseen(dataset)
    for example in ignored:
        assert not {segment.label_id for segment in example.target.segments} & unseen


@pytest.mark.slow
@pytest.mark.real_data
def test_street_scenes(real_data):
    dataset = SemanticMapDataset(real_data / "camvid" / "train")
    assert len(drop_images_with_unseen(dataset)) == 11
