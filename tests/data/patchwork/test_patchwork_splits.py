from collections import Counter

import pytest

from zsseg.data.patchwork.categories import (
    MATERIALS,
    PATCHWORK_CATEGORIES,
    SHAPES,
    SURFACES,
    TONES,
    build_patchwork_vocabulary,
)
from zsseg.data.patchwork.splits import SPLIT_A, load_patchwork_split


def test_sixty_categories():
    vocabulary = build_patchwork_vocabulary()
    assert len(vocabulary) == len(set(vocabulary.names)) == 60
    assert len(vocabulary.thing_label_ids) == 40
    assert set(vocabulary.names) == {
        *(f"{surface} {shape}" for surface in SURFACES for shape in SHAPES),
        *(f"{tone} {material}" for tone in TONES for material in MATERIALS),
    }
    assert [category.category_id for category in vocabulary] == list(range(1, 61))
    assert not vocabulary.unseen_label_ids


@pytest.mark.parametrize("split", ["A", *(f"seed-{seed}" for seed in range(51))])
def test_unseen_names_are_made_of_seen_words(split):
    unseen = [PATCHWORK_CATEGORIES[label_id] for label_id in load_patchwork_split(split)]
    things = [category for category in unseen if category.is_thing]
    stuff = [category for category in unseen if not category.is_thing]
    assert sorted(category.base for category in things) == sorted(SHAPES)
    assert sorted(category.attribute for category in stuff) == sorted(TONES)
    assert len({category.base for category in stuff}) == 4
    assert max(Counter(category.attribute for category in things).values()) <= 2
    seen = [category for category in PATCHWORK_CATEGORIES if category not in unseen]
    assert len(seen) == 48
    assert {word for category in unseen for word in (category.attribute, category.base)} <= {
        word for category in seen for word in (category.attribute, category.base)
    }


def test_split_a_is_the_published_list():
    assert {PATCHWORK_CATEGORIES[label_id].name for label_id in load_patchwork_split("A")} == set(SPLIT_A)
    vocabulary = build_patchwork_vocabulary(load_patchwork_split("A"))
    assert {vocabulary[label_id].name for label_id in vocabulary.unseen_label_ids} == set(SPLIT_A)


def test_seeds_give_different_splits():
    assert len({load_patchwork_split(f"seed-{seed}") for seed in range(51)}) > 45


@pytest.mark.parametrize("split", ["", "a", "B", "seed", "seed-", "seed-x", "seed--1", "seed-1.5", "seed-²"])
def test_unknown_splits(split):
    with pytest.raises(ValueError, match='a Patchwork split is "A" or "seed-N"'):
        load_patchwork_split(split)
