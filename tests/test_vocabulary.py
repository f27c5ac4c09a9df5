import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsseg.vocabulary import Category, Vocabulary

NAMES = st.lists(
    st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), min_size=1, max_size=8)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=8,
    unique=True,
)


def test_labels_as_typed():
    vocabulary = Vocabulary.from_labels(
        [" road ", "car | automobile|motorcar", "tree"],
        stuff_labels=["road", "tree"],
        unseen_labels=["car|automobile|motorcar"],
    )
    assert vocabulary.names == ("road", "car", "tree")
    assert vocabulary[1].texts == ("car", "automobile", "motorcar")
    assert vocabulary.stuff_label_ids == (0, 2)
    assert vocabulary.thing_label_ids == (1,)
    assert vocabulary.unseen_label_ids == (1,)
    assert vocabulary.seen_label_ids == (0, 2)
    assert len(vocabulary) == 3
    assert [category.name for category in vocabulary] == ["road", "car", "tree"]


@given(NAMES)
def test_names_survive_and_every_label_is_thing_or_stuff(names):
    stuff = names[::2]
    vocabulary = Vocabulary.from_labels(names, stuff_labels=stuff, unseen_labels=names[1:])
    assert list(vocabulary.names) == names
    assert sorted(vocabulary.thing_label_ids + vocabulary.stuff_label_ids) == list(range(len(names)))
    assert sorted(vocabulary.seen_label_ids + vocabulary.unseen_label_ids) == list(range(len(names)))
    assert [vocabulary[i].name for i in vocabulary.stuff_label_ids] == stuff
    assert [vocabulary.label_id(name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize("argument", ["candidate_labels", "stuff_labels", "unseen_labels"])
def test_one_string_is_not_a_list(argument):
    arguments = {"candidate_labels": ["road"], argument: "road"}
    with pytest.raises(TypeError, match=rf"{argument} must be a list of strings.*pass \['road'\]"):
        Vocabulary.from_labels(**arguments)


@pytest.mark.parametrize("label", [3, None, b"road"])
def test_labels_must_be_strings(label):
    with pytest.raises(TypeError, match="a label must be a string"):
        Vocabulary.from_labels(["road", label])


def test_no_labels():
    with pytest.raises(ValueError, match=r"at least one label, got none: pass candidate_labels"):
        Vocabulary.from_labels([])


@pytest.mark.parametrize("label", ["", "  ", "car|", "|car", "car||auto", "|"])
def test_empty_texts(label):
    with pytest.raises(ValueError, match="label 1 holds an empty text"):
        Vocabulary.from_labels(["road", label])


@pytest.mark.parametrize("labels", [["car", "road", "car"], ["car|auto", "car"], ["car", " car "]])
def test_duplicates(labels):
    with pytest.raises(ValueError, match=r"must be unique.*\['car'\]"):
        Vocabulary.from_labels(labels)


@pytest.mark.parametrize("argument", ["stuff_labels", "unseen_labels"])
def test_labels_that_are_no_candidates(argument):
    with pytest.raises(ValueError, match=rf"{argument} must be among the candidate labels.*\['sky'\]"):
        Vocabulary.from_labels(["road", "car"], **{argument: ["sky", "road"]})


def test_categories_may_not_share_a_name():
    with pytest.raises(ValueError, match=r"labels must be unique.*\['car'\]"):
        Vocabulary((Category("car"), Category("road"), Category("car")))


def test_ten_thousand_labels_and_emoji():
    labels = [f"label {i}" for i in range(10_000)] + ["🦒", "🚗|car"]
    vocabulary = Vocabulary.from_labels(labels, stuff_labels=["🦒"])
    assert len(vocabulary) == 10_002
    assert vocabulary.stuff_label_ids == (10_000,)
    assert vocabulary[10_001].texts == ("🚗", "car")


def test_category_ids():
    vocabulary = Vocabulary(
        (Category("cow", category_id=21), Category("sky"), Category("car", category_id=3))
    )
    assert vocabulary.label_id_by_category_id == {21: 0, 3: 2}
    with pytest.raises(ValueError, match=r"category ids must be unique.*\[21\]"):
        Vocabulary((Category("cow", category_id=21), Category("bull", category_id=21)))


def test_unknown_name():
    with pytest.raises(KeyError, match="no label 'sky' in this vocabulary of 2"):
        Vocabulary.from_labels(["road", "car"]).label_id("sky")


def test_select():
    vocabulary = Vocabulary.from_labels(["road", "car", "tree"], stuff_labels=["road", "tree"])
    chosen = vocabulary.select([2, 1])
    assert chosen.names == ("tree", "car")
    assert chosen.stuff_label_ids == (0,)


@pytest.mark.parametrize("labels", [["car|automobile", "automobile"], ["car|car"], ["car", "road", "car"]])
def test_a_text_of_two_labels_is_refused(labels):
    with pytest.raises(ValueError, match="occur more than once"):
        Vocabulary.from_labels(labels)
