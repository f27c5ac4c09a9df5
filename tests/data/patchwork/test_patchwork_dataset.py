import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import features

from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.data.patchwork.presets import PRESETS
from zsseg.data.patchwork.splits import SPLIT_A

GOLDEN_MAPS = {
    "easy": ["36ed331e1f9b4b63", "70d5c5c6a0b3ce7c", "35f4490f9efc1f88"],
    "standard": ["17ed82a3efea85aa", "200d5de7260393a3", "ae27b39163f1cf73"],
    "hard": ["a5aec3e6461b6dcd", "e799093879fa413b", "385fd18e67daaea9"],
}
GOLDEN_PICTURES = {
    "easy": ["daf986cd70754ae2", "cb246f2815fa9866", "11ffb680cc7e3d69"],
    "standard": ["4c63164a1ce36f3b", "7e0056034055e700", "0a186c96e21271f6"],
    "hard": ["6004d3a6f93618e8", "1d7945b4c0995bcc", "b56b97eb8331ca18"],
}
LIBJPEG_TURBO = "3.2.0"
"""Of the pinned Pillow; it drew the pictures of the worlds with nuisance."""


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def contents(example):
    return example.image.tobytes(), example.target.segment_ids.tobytes(), example.target.segments


def test_scenes_do_not_depend_on_what_was_read_before():
    scenes = PatchworkDataset("hard", seed=3, num_scenes=6, size=48)
    expected = [contents(example) for example in scenes]
    assert len(expected) == 6
    assert len({image for image, _, _ in expected}) == 6
    for index in (5, 0, 3, 3, 1):
        assert contents(scenes[index]) == expected[index]
    longer = PatchworkDataset("hard", seed=3, num_scenes=10**9, size=48)
    assert contents(longer[4]) == expected[4]
    assert longer[10**9 - 1].image_id == 10**9 - 1


def test_every_part_of_the_key_changes_the_scene():
    keys = [("easy", 0, 0), ("standard", 0, 0), ("hard", 0, 0), ("easy", 1, 0), ("easy", 0, 1)]
    maps = [PatchworkDataset(preset, seed=seed, num_scenes=2)[index].target for preset, seed, index in keys]
    assert len({target.segment_ids.tobytes() for target in maps}) == len(keys)


def test_splits_mark_labels_and_leave_the_scenes_alone():
    one, other = (PatchworkDataset(num_scenes=3, split=split, size=48) for split in ("A", "seed-5"))
    assert one.vocabulary != other.vocabulary
    for index in range(3):
        assert contents(one[index]) == contents(other[index])


@pytest.mark.parametrize("preset", PRESETS)
def test_golden_maps(preset):
    scenes = PatchworkDataset(preset, seed=HELD_OUT_SEED, num_scenes=3)
    assert [digest(example.target.segment_ids) for example in scenes] == GOLDEN_MAPS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_golden_pictures(preset):
    version = features.version("libjpeg_turbo")
    if PRESETS[preset].has_nuisance and version != LIBJPEG_TURBO:
        pytest.skip(f"digests are of libjpeg-turbo {LIBJPEG_TURBO}, Pillow has {version}")
    scenes = PatchworkDataset(preset, seed=HELD_OUT_SEED, num_scenes=3)
    assert [digest(np.asarray(example.image)) for example in scenes] == GOLDEN_PICTURES[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_as_designed(preset):
    scenes = PatchworkDataset(preset, seed=7, num_scenes=40)
    counts, labels = Counter(), set()
    for example in scenes:
        example.target.check_pixels()
        assert (example.target.segment_ids > 0).all()
        grounds = [segment for segment in example.target.segments if not segment.isthing]
        assert 2 <= len(grounds) <= 4
        assert len({segment.label_id for segment in grounds}) == len(grounds)
        things = [segment for segment in example.target.segments if segment.isthing]
        assert all(segment.area >= 64 for segment in things)
        counts[len(things)] += 1
        labels |= {segment.label for segment in example.target.segments}
    assert max(counts) == PRESETS[preset].objects[1]
    assert min(counts) <= PRESETS[preset].objects[0]
    assert len(labels) > 50


def test_seen_scenes_hold_no_unseen_name():
    everything = PatchworkDataset(num_scenes=30, size=64)
    seen = PatchworkDataset(num_scenes=30, size=64, categories="seen")
    assert {everything.vocabulary[i].name for i in everything.vocabulary.unseen_label_ids} == set(SPLIT_A)
    assert len(seen.vocabulary) == 48
    assert not seen.vocabulary.unseen_label_ids
    assert not set(seen.vocabulary.names) & set(SPLIT_A)
    by_id = {category.category_id: category.name for category in everything.vocabulary}
    assert all(by_id[category.category_id] == category.name for category in seen.vocabulary)
    shown = {segment.label for example in seen for segment in example.target.segments}
    assert shown <= set(seen.vocabulary.names)
    assert len(shown) > 40
    captions = " ".join(seen.caption(example.target) for example in seen)
    assert not [name for name in SPLIT_A if name in captions]
    assert {segment.label for example in everything for segment in example.target.segments} & set(SPLIT_A)


def test_labels_without_drawing():
    scenes = PatchworkDataset("hard", num_scenes=5, size=64, categories="seen")
    for index, example in enumerate(scenes):
        assert scenes.label_ids(index) == {segment.label_id for segment in example.target.segments}


def test_names_of_files_and_captions():
    scenes = PatchworkDataset(num_scenes=3)
    assert [(example.image_id, example.file_name) for example in scenes] == [
        (index, f"{index:08d}.png") for index in range(3)
    ]
    assert scenes.caption(scenes[2].target) == "a ringed crescent on blue gravel, red gravel and blue brick"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "medium"}, r"one of \['easy', 'standard', 'hard'\], got 'medium'"),
        ({"split": "B"}, '"A" or "seed-N" with an integer N ≥ 0, got \'B\''),
        ({"split": "seed--1"}, "got 'seed--1'"),
        ({"categories": "unseen"}, r"one of \['all', 'seen'\], got 'unseen'"),
        ({"size": 31}, "size must be at least 32, got 31"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_scenes": 0}, "num_scenes must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchworkDataset(**{"num_scenes": 1, **arguments})


@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range(index):
    scenes = PatchworkDataset(num_scenes=3)
    for read in (scenes.__getitem__, scenes.label_ids):
        with pytest.raises(IndexError, match=rf"must lie in \[0, 3\), got {index}"):
            read(index)
