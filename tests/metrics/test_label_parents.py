import json

import pytest

from zsseg.metrics.label_parents import index_parents, read_parents
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["chair", "armchair", "seat"])


def test_pairs_follow_the_label_ids():
    parents = {"seat": ["chair"], "armchair": ["seat", "chair"], "chair": []}
    assert index_parents(parents, VOCABULARY) == [(1, 0), (1, 2), (2, 0)]


@pytest.mark.parametrize(
    ("parents", "error", "message"),
    [
        ({"sofa": ["chair"]}, ValueError, r"1 labels that the vocabulary lacks: \['sofa'\]"),
        ({"armchair": ["Chair"]}, ValueError, r"lacks: \['Chair'\]"),
        ({"chair": ["seat", "chair"]}, ValueError, r"its own parent, but these are: \['chair'\]"),
        ({"armchair": ["chair", "chair"]}, ValueError, r"listed once, but these labels repeat"),
        ({"armchair": "chair"}, TypeError, r"must be a list, got a string: \['chair'\]"),
    ],
)
def test_other_tables_are_refused(parents, error, message):
    with pytest.raises(error, match=message):
        index_parents(parents, VOCABULARY)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "parents.json"
    path.write_text(json.dumps({"armchair": ["chair", "seat"]}), encoding="utf-8")
    assert read_parents(path) == {"armchair": ["chair", "seat"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("armchair: chair", "cannot be read as a table of parents"),
        ('["armchair"]', "must hold one object .* got a list"),
        ('{"armchair": "chair"}', "parents of 'armchair' must be a list of labels, got 'chair'"),
        ('{"armchair": [3]}', r"must be a list of labels, got \[3\]"),
        ('{"armchair": ["chair"], "armchair": ["seat"]}', r"more than once: \['armchair'\]"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "parents.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_parents(path)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of parents"):
        read_parents(tmp_path / "parents.json")
