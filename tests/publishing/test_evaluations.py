import json
from dataclasses import replace

import pytest

from testing.evaluation_reports import build_evaluation_report
from testing.patchwork_reports import build_report, build_row
from zsseg.publishing.evaluations import load_evaluation, load_evaluations, make_portable

DIGEST, OTHER = "a" * 64, "b" * 64


def save(folder, name, report):
    report.save(folder / name)
    return folder / name


def build_patchwork_report(weights_digest=DIGEST, **changes):
    report = build_report(**changes)
    return replace(report, model=replace(report.model, weights_digest=weights_digest))


def test_both_kinds_are_read(tmp_path):
    street = load_evaluation(save(tmp_path, "a.json", build_evaluation_report(DIGEST)))
    assert (street.name, [each.title for each in street.measurements]) == ("street", ["street"])
    assert street.measurements[0].unseen_labels == ["car"]
    patchwork = load_evaluation(save(tmp_path, "b.json", build_patchwork_report()))
    assert patchwork.name == "patchwork"
    assert [each.is_headline for each in patchwork.measurements] == [True, False]
    assert len(patchwork.measurements[0].labels) == 60
    assert "striped star" in patchwork.measurements[0].unseen_labels


def test_a_protocol_names_the_file(tmp_path):
    report = build_evaluation_report(DIGEST, protocol="coco-panoptic-119-14", dataset="COCO val2017")
    evaluation = load_evaluation(save(tmp_path, "a.json", report))
    assert evaluation.name == "coco-panoptic-119-14"
    assert evaluation.measurements[0].title == "COCO val2017, coco-panoptic-119-14"


@pytest.mark.parametrize("text", ["{}", "PQ 60", '{"rows": []}', "[]"])
def test_what_is_no_evaluation_is_refused_by_name(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is no report"):
        load_evaluation(tmp_path / "results.json")


@pytest.mark.parametrize("build", [build_evaluation_report, build_patchwork_report])
def test_evaluations_of_other_weights_are_refused(tmp_path, build):
    path = save(tmp_path, "results.json", build(OTHER))
    with pytest.raises(ValueError, match=r"results\.json is of other weights.*evaluate this checkpoint"):
        load_evaluations([path], DIGEST)
    assert len(load_evaluations([path], OTHER)) == 1


def test_reports_that_name_no_weights_are_refused(tmp_path):
    path = save(tmp_path, "results.json", build_report())
    with pytest.raises(ValueError, match="does not say which weights it is of"):
        load_evaluations([path], DIGEST)


def test_two_evaluations_of_the_same_data_are_refused_but_copies_are_not(tmp_path):
    first = save(tmp_path, "a.json", build_evaluation_report(DIGEST))
    copy = save(tmp_path, "b.json", build_evaluation_report(DIGEST))
    assert len(load_evaluations([first, copy], DIGEST)) == 1
    other = save(tmp_path, "c.json", build_evaluation_report(DIGEST, averages={"PQ": 0.9}))
    with pytest.raises(ValueError, match=r"a\.json and .*c\.json are both of street"):
        load_evaluations([first, other], DIGEST)
    raw = save(tmp_path, "d.json", build_evaluation_report(DIGEST, label_names="raw"))
    assert [each.name for each in load_evaluations([first, raw], DIGEST)] == ["street", "street-1"]


def test_what_is_no_result_is_there_once_too(tmp_path):
    plain = save(tmp_path, "a.json", build_evaluation_report(DIGEST))
    lowered = build_evaluation_report(DIGEST, seen_penalty=0.3)
    given, copy = save(tmp_path, "b.json", lowered), save(tmp_path, "c.json", lowered)
    assert len(load_evaluations([given, copy], DIGEST)) == 1
    earlier = save(tmp_path, "d.json", make_portable(lowered, "user/name"))
    assert len(load_evaluations([given], DIGEST, earlier=[earlier])) == 1
    measured_again = replace(lowered, averages={**lowered.averages, "seconds_per_image": 0.9})
    (kept,) = load_evaluations([save(tmp_path, "e.json", measured_again)], DIGEST, earlier=[earlier])
    assert kept.report == measured_again
    other = save(tmp_path, "f.json", build_evaluation_report(DIGEST, seen_penalty=0.5))
    assert len(load_evaluations([given, plain], DIGEST, earlier=[earlier, other])) == 3


def test_names_stay_when_files_are_read_again(tmp_path):
    other = save(tmp_path, "a.json", build_evaluation_report(DIGEST, dataset="avenue"))
    plain = save(tmp_path, "b.json", build_evaluation_report(DIGEST))
    raw = save(tmp_path, "c.json", build_evaluation_report(DIGEST, label_names="raw"))
    (tmp_path / "evaluation").mkdir()
    first = load_evaluations([plain, raw, other], DIGEST)
    assert [each.name for each in first] == ["street", "street-1", "avenue"]
    files = sorted(save(tmp_path / "evaluation", f"{each.name}.json", each.report) for each in first)
    again = load_evaluations([], DIGEST, earlier=files)
    assert {each.name: each.report for each in again} == {each.name: each.report for each in first}


def test_what_lies_in_the_checkpoint_gives_way(tmp_path):
    given = save(tmp_path, "a.json", build_evaluation_report(DIGEST))
    earlier = save(tmp_path, "b.json", build_evaluation_report(DIGEST, averages={"PQ": 0.9}))
    other = save(tmp_path, "c.json", build_patchwork_report())
    (street, patchwork) = load_evaluations([given], DIGEST, earlier=[earlier, other])
    assert street.report.averages["PQ"] == 0.412
    assert patchwork.name == "patchwork"
    wrong = save(tmp_path, "d.json", build_patchwork_report(OTHER))
    with pytest.raises(ValueError, match=r"d\.json is of other weights"):
        load_evaluations([given], DIGEST, earlier=[wrong])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("zsseg evaluate --semantic ../../ada/camvid/val", "zsseg evaluate --semantic val"),
        ("zsseg evaluate --semantic . --unseen '' --x=", "zsseg evaluate --semantic . --unseen '' --x="),
        ("zsseg evaluate --semantic=../camvid", "zsseg evaluate --semantic=camvid"),
        ("zsseg evaluate --semantic data/../../camvid", "zsseg evaluate --semantic camvid"),
        (
            "zsseg evaluate --unseen @../ada/new.txt --labels @/ada/all.txt",
            "zsseg evaluate --unseen @new.txt --labels @all.txt",
        ),
        (
            "zsseg evaluate --semantic data/camvid --labels 'road, a/b'",
            "zsseg evaluate --semantic data/camvid --labels 'road, a/b'",
        ),
        ("zsseg evaluate --model /home/me/best --split x", "zsseg evaluate --model user/name --split x"),
        (
            "zsseg evaluate -m runs/best --semantic /data/camvid/val",
            "zsseg evaluate -m user/name --semantic val",
        ),
        ("zsseg evaluate --model=runs/best --images=/data/x", "zsseg evaluate --model=user/name --images=x"),
        ("zsseg evaluate --model 'my runs/best'", "zsseg evaluate --model user/name"),
        ("zsseg evaluate --semantic ~/camvid", "zsseg evaluate --semantic camvid"),
    ],
)
def test_commands_are_published_without_the_folders_of_this_machine(command, expected):
    report = make_portable(build_evaluation_report(DIGEST, command=command), "user/name")
    assert report.command == expected
    assert report.model.name == "user/name"
    assert report == make_portable(report, "user/name")
    assert report.averages == build_evaluation_report(DIGEST).averages


def test_a_row_of_patchwork_that_is_no_result_is_no_headline(tmp_path):
    rows = (build_row(), build_row(seen_penalty=1.0), build_row(preset="hard"))
    path = save(tmp_path, "a.json", build_patchwork_report(rows=rows))
    measurements = load_evaluation(path).measurements
    assert [each.is_headline for each in measurements] == [True, False, True]
    assert [each.config for each in measurements] == ["easy-A", "easy-A", "hard-A"]
    assert json.loads(path.read_text())["rows"][1]["seen_penalty"] == 1.0
