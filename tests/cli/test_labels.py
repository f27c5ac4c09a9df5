import pytest

from zsseg.cli.labels import parse_labels, parse_vocabulary
from zsseg.cli.messages import UsageError


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("road", ["road"]),
        (" road ,car|automobile,  traffic light ", ["road", "car|automobile", "traffic light"]),
        ("", []),
        ("  ", []),
        ("road,", ["road", ""]),
        ("🚗, straße", ["🚗", "straße"]),
    ],
)
def test_labels_are_separated_by_commas(text, labels):
    assert parse_labels(text) == labels


def test_a_file_holds_one_label_a_line(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffroad\n\n car|automobile \nwindow, blind\n", encoding="utf-8")
    assert parse_labels(f"@{path}") == ["road", "car|automobile", "window, blind"]


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no file of labels at nowhere"):
        parse_labels("@nowhere.txt")


def test_vocabulary_has_synonyms_stuff_and_unseen():
    vocabulary = parse_vocabulary("road, car|automobile, tree", "road, tree", "tree")
    assert vocabulary.names == ("road", "car", "tree")
    assert vocabulary[1].texts == ("car", "automobile")
    assert vocabulary.stuff_label_ids == (0, 2)
    assert vocabulary.unseen_label_ids == (2,)


@pytest.mark.parametrize(
    ("labels", "stuff", "unseen", "message"),
    [
        ("", "", "", "--labels holds no label"),
        ("road,,car", "", "", "empty text"),
        ("road, road", "", "", "more than once"),
        ("road", "sky", "", r"stuff_labels.*\['sky'\]"),
        ("road", "", "sky", r"unseen_labels.*\['sky'\]"),
    ],
)
def test_labels_that_do_not_fit_are_a_mistake_of_usage(labels, stuff, unseen, message):
    with pytest.raises(UsageError, match=message):
        parse_vocabulary(labels, stuff, unseen)
