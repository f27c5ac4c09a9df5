import json
import math
from dataclasses import replace

import pytest

from zsseg.training.evaluation_report import EvaluatedModel, EvaluationReport

REPORT = EvaluationReport(
    command="zsseg evaluate --protocol voc-20 --data VOC --model model",
    machine="a machine",
    zsseg="0.1.0",
    model=EvaluatedModel("model", "zsseg-concat", 5, "ab12"),
    protocol="voc-20",
    dataset="PASCAL VOC 2012 validation",
    tasks=["semantic"],
    num_images=2,
    labels=["cat", "dog"],
    unseen_labels=["dog"],
    label_names="clean",
    thresholds={},
    averages={"mIoU": 0.5, "mIoU_unseen": None},
    per_class={"cat": {"IoU": 0.5}, "dog": {"IoU": None}},
)


def test_it_comes_back_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    REPORT.save(path)
    assert EvaluationReport.load(path) == REPORT
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
    assert EvaluationReport.load(path).seen_penalty == 0.0


def test_nan_becomes_null(tmp_path):
    replace(REPORT, averages={"mIoU": math.nan}).save(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["averages"] == {"mIoU": None}


def test_an_unwritable_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    REPORT.save(path)
    with pytest.raises(TypeError):
        replace(REPORT, machine=object()).save(path)
    with pytest.raises(ValueError, match="inf"):
        replace(REPORT, averages={"mIoU": math.inf}).save(path)
    with pytest.raises(OSError, match="directory"):
        REPORT.save(tmp_path)

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("zsseg.training.evaluation_report.flush_to_disk", fail)
    with pytest.raises(OSError, match="no space"):
        replace(REPORT, num_images=7).save(path)
    assert EvaluationReport.load(path) == REPORT
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 0}, "at least one image"),
        ({"labels": [], "unseen_labels": []}, "at least one image, label and task"),
        ({"tasks": []}, "0 tasks"),
        ({"unseen_labels": ["fish"]}, r"\['fish'\] are not"),
    ],
)
def test_impossible_reports(change, message):
    with pytest.raises(ValueError, match=message):
        replace(REPORT, **change)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "results.json"
    for text, message in [("PQ 62", "no report"), ("[]", "no report"), ("{}", "lacks")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            EvaluationReport.load(path)
    REPORT.save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "model": {**content["model"], "colour": 1}}))
    with pytest.raises(ValueError, match="colour"):
        EvaluationReport.load(path)
