import json
from statistics import fmean

import numpy as np
import pytest

from testing.patchwork_reports import CLIP_CONFUSION, build_clip_report
from zsseg.data.patchwork.categories import MATERIALS, PATCHWORK_CATEGORIES, SHAPES, SURFACES, TONES
from zsseg.data.patchwork.splits import SPLIT_A
from zsseg.training.patchwork_clip_report import CLIP_FIGURES, PatchworkClipReport, build_confusion

NAMES = [category.name for category in PATCHWORK_CATEGORIES]
MEMBERS = {
    "": set(NAMES),
    "things": {name for name in NAMES if name.split()[1] in SHAPES},
    "stuff": {name for name in NAMES if name.split()[1] in MATERIALS},
    "seen": set(NAMES) - set(SPLIT_A),
    "unseen": set(SPLIT_A),
}


def draw_counts():
    """Counts with every kind of confusion; six labels do not occur."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 3, (60, 60)) * (generator.random((60, 60)) < 0.2) + np.diag([7] * 60)
    counts[[0, 4, 16, 33, 41, 59]] = 0
    return counts


def test_counts_go_in_and_out():
    counts = draw_counts()
    report = build_clip_report(confusion=build_confusion(counts))
    assert len(report.confusion) == 54
    assert np.array_equal(report.build_counts(), counts)


def test_figures_are_those_of_every_segment_by_itself():
    counts = draw_counts()
    figures = build_clip_report(confusion=build_confusion(counts)).compute_figures()
    assert tuple(figures) == CLIP_FIGURES
    segments = [
        (NAMES[true], NAMES[predicted])
        for true, predicted in np.argwhere(counts)
        for _ in range(counts[true, predicted])
    ]

    def average(names, is_right):
        """Mean over labels and over segments of those names."""
        by_label = {}
        for true, predicted in segments:
            if true in names:
                by_label.setdefault(true, []).append(is_right(true, predicted))
        return fmean(map(fmean, by_label.values())), fmean(hit for hits in by_label.values() for hit in hits)

    groups = MEMBERS | {
        f"{training}_{kind}": MEMBERS[training] & MEMBERS[kind]
        for training in ("seen", "unseen")
        for kind in ("things", "stuff")
    }
    for group, names in groups.items():
        ending = f"_{group}" if group else ""
        expected = average(names, lambda true, predicted: true == predicted)
        assert (figures[f"top1{ending}"], figures[f"top1_segments{ending}"]) == pytest.approx(expected), group
    for words, kind, place, name in (
        (SURFACES, "things", 0, "surface"),
        (SHAPES, "things", 1, "shape"),
        (TONES, "stuff", 0, "tone"),
        (MATERIALS, "stuff", 1, "material"),
    ):
        expected, _ = average(
            MEMBERS[kind], lambda true, other, at=place: true.split()[at] == other.split()[at]
        )
        assert figures[f"top1_{name}"] == pytest.approx(expected), name
        assert all(true.split()[place] in words for true in MEMBERS[kind])


def test_what_does_not_occur_has_no_figure():
    figures = build_clip_report(confusion={"plain disc": {"red brick": 1}}).compute_figures()
    assert (figures["top1"], figures["top1_things"], figures["top1_surface"]) == (0.0, 0.0, 0.0)
    absent = ("top1_stuff", "top1_segments_stuff", "top1_unseen", "top1_tone", "top1_material")
    assert [figures[name] for name in absent] == [None] * len(absent)


def test_the_most_frequent_confusions_come_first():
    confusions = build_clip_report().list_confusions(3)
    assert [tuple(each) for each in confusions] == [
        ("dotted ring", "dotted arrow", 2, 0.5),
        ("grey waves", "grey gravel", 2, 0.25),
        ("plain disc", "ringed disc", 1, 0.25),
    ]
    assert len(build_clip_report().list_confusions(100)) == 5


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "results.json"
    build_clip_report().save(path)
    assert PatchworkClipReport.load(path) == build_clip_report()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content["figures"]) == list(CLIP_FIGURES)
    assert content["figures"]["top1_segments"] == 9 / 16
    assert content["confusion"] == CLIP_CONFUSION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "brutal"}, "preset is one of"),
        ({"split": "B"}, "split is"),
        ({"confusion": {}}, "at least one segment"),
        ({"confusion": {"zebra": {"plain disc": 1}}}, r"got also \['zebra'\]"),
        ({"confusion": {"plain disc": {"zebra": 1}}}, r"got also \['zebra'\]"),
        ({"confusion": {"plain disc": {}}}, "'plain disc' must be taken for something"),
        ({"confusion": {"plain disc": {"plain disc": 0}}}, "positive times, got {'plain disc': 0}"),
        ({"confusion": {"plain disc": {"plain disc": 1.5}}}, "positive times"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_clip_report(**changes)


@pytest.mark.parametrize(
    "alter",
    [
        lambda content: content.pop("figures"),
        lambda content: content.pop("seed"),
        lambda content: content.pop("model"),
        lambda content: content["model"].update(color="red"),
        lambda content: content["figures"].update(top1=0.99),
        lambda content: content["confusion"]["plain disc"].update({"ringed disc": 2}),
        lambda content: content.update(confusion=[1]),
    ],
)
def test_other_and_altered_files_are_refused_by_name(tmp_path, alter):
    path = tmp_path / "results.json"
    build_clip_report().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    alter(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json is no report of `zsseg evaluate patchwork-clip`"):
        PatchworkClipReport.load(path)
