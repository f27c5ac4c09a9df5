import json

import pytest

from testing.patchwork_reports import build_report, build_row
from zsseg.training.patchwork_report import FIGURES, PatchworkReport


def test_a_report_is_read_as_it_was_written(tmp_path):
    build_report().save(tmp_path / "results.json")
    assert PatchworkReport.load(tmp_path / "results.json") == build_report()
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(content) == ["command", "machine", "model", "rows"]
    row = content["rows"][1]
    assert list(row) == ["preset", "split", "scenes", "size", "seed", "text", "seen_penalty", *FIGURES]
    assert (row["text"], row["PQ"], row["PQ_unseen_stuff"], row["ms_per_image"]) == (
        "shuffled",
        0.01,
        None,
        61.5,
    )
    assert all(name.isascii() and name.isidentifier() for name in row)
    assert {
        "PQ_seen_things",
        "SQ_stuff",
        "RQ_unseen",
        "mIoU_seen",
        "hPQ",
        "hIoU",
        "pixel_accuracy",
    } <= row.keys()


def test_reports_from_before_the_digest_of_the_weights_are_read(tmp_path):
    path = tmp_path / "results.json"
    build_report().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["model"]["weights_digest"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert PatchworkReport.load(path).model.weights_digest is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "random"}, "text must be one of"),
        ({"figures": {"PQ": 0.5}}, "'SQ'.* are missing"),
        ({"figures": {**build_row().figures, "AP": 0.5}}, r"\['AP'\] unknown"),
        ({"figures": {**build_row().figures, "PQ": 50.0}}, r"PQ must lie in \[0, 1\], got 50.0"),
        ({"figures": {**build_row().figures, "ms_per_image": -1.0}}, "ms_per_image must lie in"),
        ({"figures": {**build_row().figures, "hPQ": float("nan")}}, "hPQ must lie in"),
    ],
)
def test_rows_that_say_something_else_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_row(**changes)


def test_a_report_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        PatchworkReport("", "", build_report().model, ())


@pytest.mark.parametrize(
    "alter",
    [
        lambda content: content.pop("machine"),
        lambda content: content["model"].pop("family"),
        lambda content: content["model"].update(color="red"),
        lambda content: content["rows"][0].pop("preset"),
        lambda content: content["rows"][0].pop("PQ"),
        lambda content: content.update(rows=[1]),
        lambda content: content.update(model="tiny"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, alter):
    path = tmp_path / "results.json"
    build_report().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    alter(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.json is no report of `zsseg evaluate patchwork`"):
        PatchworkReport.load(path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("PQ 62", encoding="utf-8")
    with pytest.raises(ValueError, match="is no report"):
        PatchworkReport.load(tmp_path / "results.json")
