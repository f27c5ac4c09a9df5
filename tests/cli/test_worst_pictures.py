import numpy as np
import pytest
from PIL import Image

from zsseg.cli.worst_pictures import WorstPictures, describe_confusion
from zsseg.data.examples import PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic, convert_semantic_to_panoptic
from zsseg.training.evaluation import IGNORED
from zsseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_labels(["road", "car", "tree"], stuff_labels=["road", "tree"])
SIZE = 20


def build_map(*shares):
    """A map whose columns hold these (label id, columns)."""
    return np.repeat(np.concatenate([[label] * columns for label, columns in shares])[None], SIZE, axis=0)


def take(worst, name, predicted, true, *, task="panoptic"):
    target = convert_semantic_to_panoptic(true.astype(np.int32), VOCABULARY, ignore_index=IGNORED)
    found = convert_semantic_to_panoptic(predicted.astype(np.int32), VOCABULARY, ignore_index=IGNORED)
    example = PanopticExample(Image.new("RGB", (SIZE, SIZE), (90, 90, 90)), target, name, f"sub/{name}.jpg")
    if task == "panoptic":
        worst.take(example, found, target)
    else:
        worst.take(
            example, *(convert_panoptic_to_semantic(each, ignore_index=IGNORED) for each in (found, target))
        )


def right_share(columns):
    """The road of ``columns`` found, the rest taken for a tree; PQ falls to 0 below a half."""
    return build_map((0, columns), (2, SIZE - columns))


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_the_worst_are_kept_and_the_first_of_equals(tmp_path, task):
    worst = WorstPictures(VOCABULARY, task, 3)
    true = build_map((0, SIZE))
    for name, columns in [("a", 20), ("b", 12), ("c", 2), ("d", 12), ("e", 18), ("f", 12), ("g", 20)]:
        take(worst, name, right_share(columns), true, task=task)
        assert len(worst._heap) <= 3
    paths = worst.write(tmp_path / "worst")
    assert [path.stem.rpartition("-")[2] for path in paths] == ["c", "b", "d"]
    figure = "PQ" if task == "panoptic" else "mIoU"
    scores = {"c": 0.0 if task == "panoptic" else 5.0, "b": 30.0, "d": 30.0}
    assert [path.name for path in paths] == [
        f"{rank:02d}-{figure}-{score}-{name}.png"
        for rank, (name, score) in enumerate(scores.items(), start=1)
    ]
    assert all(Image.open(path).width > 3 * SIZE for path in paths)


def test_pictures_of_an_earlier_run_go_and_other_files_stay(tmp_path):
    for count, expected in ((2, 2), (1, 1)):
        worst = WorstPictures(VOCABULARY, "panoptic", count)
        for name in "ab":
            take(worst, f"{name}{count}", right_share(2), build_map((0, SIZE)))
        (tmp_path / "notes.txt").write_text("mine")
        paths = worst.write(tmp_path)
        assert len(paths) == expected
        assert set(tmp_path.iterdir()) == {*paths, tmp_path / "notes.txt"}


def test_nothing_is_kept_unless_asked_for_nor_what_has_no_score(tmp_path):
    none = WorstPictures(VOCABULARY, "panoptic", 0)
    take(none, "a", right_share(2), build_map((0, SIZE)))
    unknown = WorstPictures(VOCABULARY, "semantic", 2)
    take(unknown, "a", right_share(2), build_map((IGNORED, SIZE)), task="semantic")
    for worst in (none, unknown):
        assert worst.write(tmp_path / "worst") == []
    assert not (tmp_path / "worst").exists()


@pytest.mark.parametrize(
    ("predicted", "true", "text"),
    [
        ([(0, 12), (2, 8)], [(0, 20)], "40.0 % of the known pixels are road taken for tree"),
        ([(0, 5), (2, 15)], [(0, 8), (1, 12)], "60.0 % of the known pixels are car taken for tree"),
        ([(IGNORED, 5), (0, 15)], [(0, 20)], "25.0 % of the known pixels are road left without a label"),
        ([(0, 8), (2, 12)], [(0, 10), (IGNORED, 10)], "20.0 % of the known pixels are road taken for tree"),
        ([(0, 20)], [(0, 10), (IGNORED, 10)], "every known pixel has the right label"),
    ],
)
def test_the_main_confusion_is_the_largest_wrong_area(predicted, true, text):
    assert describe_confusion(build_map(*predicted), build_map(*true), VOCABULARY) == text
    segmentations = [
        convert_semantic_to_panoptic(build_map(*each).astype(np.int32), VOCABULARY, ignore_index=IGNORED)
        for each in (predicted, true)
    ]
    assert describe_confusion(*segmentations, VOCABULARY) == text
