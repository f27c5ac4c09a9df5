import re
from collections import Counter

import pytest

from zsseg.data.patchwork.captions import COUNT_WORDS, build_caption, build_plural, describe_category
from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES, SHAPES
from zsseg.data.patchwork.dataset import PatchworkDataset

LABEL_IDS = {category.name: label_id for label_id, category in enumerate(PATCHWORK_CATEGORIES)}


def caption(*names):
    return build_caption([LABEL_IDS[name] for name in names])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["red brick"], "red brick"),
        (["plain arrow"], "a plain arrow"),
        (["red brick", "plain arrow"], "a plain arrow on red brick"),
        (
            ["red brick", "blue waves", "striped star", "dotted ring", "dotted ring"],
            "a striped star and two dotted rings on red brick and blue waves",
        ),
        (
            [
                "blue waves",
                "dotted ring",
                "grey weave",
                "striped star",
                "red brick",
                "plain cross",
                "dotted ring",
            ],
            "two dotted rings, a striped star and a plain cross on blue waves, grey weave and red brick",
        ),
        (["ringed cross"] * 9, "nine ringed crosses"),
        (["plain crescent"] * 3 + ["plain disc"], "three plain crescents and a plain disc"),
    ],
)
def test_captions(names, expected):
    assert caption(*names) == expected


def test_plurals():
    assert {build_plural(shape) for shape in SHAPES} == {
        *("discs", "triangles", "squares", "stars", "rings", "crosses", "crescents", "arrows")
    }


def test_a_segment_by_itself():
    assert describe_category(PATCHWORK_CATEGORIES[LABEL_IDS["striped star"]]) == "a striped star"
    assert describe_category(PATCHWORK_CATEGORIES[LABEL_IDS["red brick"]]) == "red brick"


def test_a_caption_tells_how_many_of_what_a_scene_holds():
    scenes = PatchworkDataset("hard", seed=11, num_scenes=25, size=64)
    plurals = {build_plural(shape): shape for shape in SHAPES}
    repeated = 0
    for example in scenes:
        told = Counter()
        for part in re.split(", | and | on ", scenes.caption(example.target)):
            words = part.split()
            count = COUNT_WORDS.index(words.pop(0)) if len(words) == 3 else 1
            told[f"{words[0]} {plurals.get(words[1], words[1])}"] = count
            repeated += count > 1
        assert told == Counter(segment.label for segment in example.target.segments)
    assert repeated > 0
