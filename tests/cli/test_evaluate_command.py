import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from testing.official_layouts import write_coco_panoptic, write_pascal_voc
from testing.tiny_semantic_maps import write_semantic_maps
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.vocabularies import load_split
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.training.evaluation import build_metric, evaluate_model, score_predictions
from zsseg.training.evaluation_report import EvaluationReport
from zsseg.training.protocols import list_protocols

LABELS = ("--labels", "road-other, car, tree-merged", "--stuff", "tree-merged")


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def read_table(stdout, title):
    """Rows of the table below the header that begins with ``title``, by their first cell."""
    lines = iter(stdout.splitlines())
    header = next(line for line in lines if line.split()[:1] == [title])
    rows = {}
    for line in lines:
        if not line.strip():
            break
        rows[line.split()[0]] = line.split()[1:]
    return header.split()[1:], rows


@pytest.fixture
def semantic_maps(tmp_path):
    return write_semantic_maps(tmp_path / "maps")


@pytest.fixture
def panoptic_json(run, photos, finding_checkpoint, tmp_path):
    """Ground truth that the checkpoint itself has written, under raw COCO names."""
    outcome = run("segment", photos, *LABELS, "-m", finding_checkpoint, "-o", tmp_path / "truth")
    assert outcome.code == 0
    return tmp_path / "truth" / "panoptic.json"


def test_a_checkpoint_agrees_with_itself(run, photos, panoptic_json, finding_checkpoint, tmp_path):
    outcome = run(
        *("evaluate", "--coco-panoptic", panoptic_json, "--images", photos, "-m", finding_checkpoint),
        *(
            "--label-names",
            "raw",
            "--unseen",
            "car",
            "--per-class",
            "-o",
            tmp_path / "scores",
            "--overlays",
            2,
        ),
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "panoptic, 3 images · 3 labels (2 seen, 1 unseen), raw names" in outcome.stdout
    results = read_results(tmp_path / "scores")
    present = [name for name, figures in results["per_class"].items() if figures["TP"]]
    assert results["averages"]["PQ"] == 1.0
    assert results["averages"]["PQ_all_classes"] == len(present) / 3
    assert (results["label_names"], results["unseen_labels"]) == ("raw", ["car"])
    assert all(results["per_class"][name]["FP"] == results["per_class"][name]["FN"] == 0 for name in present)
    header, rows = read_table(outcome.stdout, "%")
    assert header == ["labels", "PQ", "SQ", "RQ", "PQ*", "SQ*", "RQ*"]
    assert list(rows) == ["all", "things", "stuff", "seen", "unseen", "harmonic"]
    assert rows["all"] == ["3", *["100.0"] * 3, *[f"{100 * len(present) / 3:.1f}"] * 3]
    header, rows = read_table(outcome.stdout, "label")
    assert header == ["kind", "training", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    assert rows["car"][:2] == ["thing", "unseen"]
    assert rows[present[0]][2:5] == ["100.0"] * 3
    overlays = sorted((tmp_path / "scores" / "overlays").iterdir())
    assert [path.name for path in overlays] == ["street0.png", "street2.png"]
    assert Image.open(overlays[0]).width > 3 * Image.open(photos / "street0.png").width


def test_panoptic_averages_are_those_of_the_library(run, photos, panoptic_json, finding_checkpoint, tmp_path):
    run(
        *("evaluate", "--coco-panoptic", panoptic_json, "--images", photos, "-m", finding_checkpoint),
        *("--threshold", "0.5", "-o", tmp_path / "scores", "--batch-size", 2),
    )
    dataset = CocoPanopticDataset(panoptic_json, photos)
    assert dataset.vocabulary.names == ("road", "car", "tree")
    expected = evaluate_model(
        ConcatForPanopticSegmentation.from_pretrained(finding_checkpoint),
        ConcatProcessor.from_pretrained(finding_checkpoint),
        dataset,
        task="panoptic",
        threshold=0.5,
        batch_size=2,
    )
    report = EvaluationReport.load(tmp_path / "scores" / "results.json")
    averages = report.averages
    assert report.num_images == expected.pop("num_images") == 3
    assert averages.keys() == expected.keys()
    for name, value in expected.items():
        if name != "seconds_per_image":
            assert averages[name] == (None if math.isnan(value) else pytest.approx(value, abs=1e-12))


def test_semantic_maps_give_the_mean_iou(run, semantic_maps, finding_checkpoint, tmp_path):
    outcome = run(
        *("evaluate", "--semantic", semantic_maps, "-m", finding_checkpoint, "--max-images", 4),
        *("-o", tmp_path / "scores", "--overlays", 9, "--per-class"),
    )
    assert outcome.code == 0
    assert "semantic, 4 images · 3 labels (2 seen, 1 unseen), clean names" in outcome.stdout
    model = ConcatForPanopticSegmentation.from_pretrained(finding_checkpoint)
    processor = ConcatProcessor.from_pretrained(finding_checkpoint)
    expected = evaluate_model(
        model, processor, SemanticMapDataset(semantic_maps), task="semantic", max_images=4
    )
    header, rows = read_table(outcome.stdout, "%")
    assert header == ["labels", "mIoU", "mIoU*"]
    assert rows["seen"] == [
        "2",
        f"{100 * expected['mIoU_seen']:.1f}",
        f"{100 * expected['mIoU_seen_all_classes']:.1f}",
    ]
    assert rows["harmonic"] == [
        f"{100 * expected['hIoU_present_classes']:.1f}",
        f"{100 * expected['hIoU']:.1f}",
    ]
    assert f"pixel accuracy {100 * expected['pixel_accuracy']:.1f} %" in outcome.stdout
    per_class = read_results(tmp_path / "scores")["per_class"]
    assert np.mean([figures["IoU"] for figures in per_class.values()]) == pytest.approx(expected["mIoU"])
    assert len(list((tmp_path / "scores" / "overlays").iterdir())) == 4


def test_without_unseen_labels_there_is_no_harmonic_mean(run, tmp_path, finding_checkpoint):
    folder = write_semantic_maps(tmp_path / "maps", count=1, unseen=())
    outcome = run("evaluate", "--semantic", folder, "-m", finding_checkpoint)
    _, rows = read_table(outcome.stdout, "%")
    assert list(rows) == ["all", "stuff", "seen"]
    assert "3 labels, clean names" in outcome.stdout


def test_a_split_says_what_is_unseen_and_what_becomes_void(run, photos, tmp_path, finding_checkpoint):
    truth = tmp_path / "panoptic_val.json"
    categories = [
        {"id": 184, "name": "tree-merged", "isthing": 0},
        {"id": 3, "name": "car", "isthing": 1},
        {"id": 900, "name": "lamp", "isthing": 1},
    ]
    image = {"id": 1, "file_name": "street0.png", "height": 48, "width": 64}
    segment = {"id": 7, "category_id": 3, "iscrowd": 0, "area": 48 * 64, "bbox": [0, 0, 64, 48]}
    annotation = {"image_id": 1, "file_name": "street0.png", "segments_info": [segment]}
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    truth.write_text(json.dumps(content))
    (tmp_path / "panoptic_val").mkdir()
    Image.new("RGB", (64, 48), (7, 0, 0)).save(tmp_path / "panoptic_val" / "street0.png")
    photos.rename(tmp_path / "val")
    outcome = run(
        *("evaluate", "--coco-panoptic", truth, "-m", finding_checkpoint, "--split", "coco_panoptic_119_14"),
    )
    assert outcome.code == 0
    assert "133 labels (119 seen, 14 unseen), clean names" in outcome.stdout
    assert outcome.stderr.count("\n") == 1
    assert "segments of 1 categories become void: ['lamp']" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "either --coco-panoptic JSON or --semantic FOLDER"),
        (("--semantic", "x", "--coco-panoptic", "y"), 2, "either --coco-panoptic JSON"),
        (("--semantic", "x", "--images", "y"), 2, "belong to --coco-panoptic"),
        (("--semantic", "x", "--threshold", "0.5"), 2, "no thresholds"),
        (("--semantic", "x", "--overlays", "2"), 2, "--overlays needs --output"),
        (("--semantic", "x", "--split", "a", "--unseen", "b"), 2, "give one of them"),
        (("--semantic", "x", "--max-images", "0"), 2, "at least 1"),
        (("--semantic", "nowhere"), 1, "nowhere"),
        (("--coco-panoptic", "nowhere.json"), 1, "no panoptic JSON at nowhere.json"),
        (("--semantic", "x", "--dataset", "y"), 2, "either --coco-panoptic JSON"),
        (("--coco-panoptic", "x", "--protocol", "y"), 2, "either --coco-panoptic JSON"),
        (("--semantic", "x", "--worst", "2"), 2, "--worst needs --output"),
        (("--dataset", "x", "--panoptic", "y"), 2, "belong to --coco-panoptic"),
        (("--semantic", "x", "--data", "y"), 2, "--protocol and --data belong together"),
        (("--protocol", "voc-20"), 2, "--protocol and --data belong together"),
        (("--protocol", "voc-20", "--data", "x", "--split", "y"), 2, "says which labels are unseen"),
        (("--protocol", "voc-20", "--data", "x", "--unseen", "y"), 2, "says which labels are unseen"),
        (("--protocol", "voc-21", "--data", "x"), 1, "there is no protocol 'voc-21'; there are coco-"),
        (("--protocol", "voc-20", "--data", "nowhere"), 1, "needs PASCAL VOC 2012 validation"),
        (("--semantic", "x", "--task", "detection"), 2, "--task"),
    ],
)
def test_mistakes_are_said_in_one_line(run, finding_checkpoint, options, code, message):
    outcome = run("evaluate", "-m", finding_checkpoint, *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_labels_and_files_that_do_not_fit(run, semantic_maps, panoptic_json, finding_checkpoint, tmp_path):
    model = ("-m", finding_checkpoint)
    unknown = run("evaluate", "--semantic", semantic_maps, *model, "--unseen", "violet")
    assert unknown.code == 1
    assert "['violet']" in unknown.stderr
    split = run("evaluate", "--semantic", semantic_maps, *model, "--split", "no_such_split")
    assert "coco_panoptic_119_14" in split.stderr
    no_photos = run("evaluate", "--coco-panoptic", panoptic_json, *model)
    assert no_photos.code == 2
    assert "name it with --images" in no_photos.stderr
    in_the_way = run("evaluate", "--semantic", semantic_maps, *model, "-o", tmp_path)
    assert in_the_way.code == 2
    assert "--overwrite" in in_the_way.stderr


def run_protocol(run, name, data, checkpoint, output, *options):
    outcome = run(
        *("evaluate", "--protocol", name, "--data", data, "-m", checkpoint, "-o", output, *options),
    )
    assert outcome.code == 0, outcome.stderr
    return outcome, EvaluationReport.load(output / "results.json")


def test_a_panoptic_protocol_scores_both_tasks_in_one_pass(run, tmp_path, finding_checkpoint):
    write_coco_panoptic(tmp_path / "coco")
    outcome, report = run_protocol(
        *(run, "coco-panoptic-119-14", tmp_path / "coco", finding_checkpoint, tmp_path / "scores"),
        *(
            "--batch-size",
            2,
            "--threshold",
            0,
            "--overlap-mask-area-threshold",
            0,
            "--worst",
            5,
            "--per-class",
        ),
    )
    assert "coco-panoptic-119-14: zero-shot panoptic segmentation, 119 seen and 14" in outcome.stdout
    assert "panoptic and semantic, 2 images · 133 labels (119 seen, 14 unseen)" in outcome.stdout
    assert "has 5,000 images and 2 are scored: the figures cannot be compared" in outcome.stderr

    model = ConcatForPanopticSegmentation.from_pretrained(finding_checkpoint)
    dataset = CocoPanopticDataset(
        *(tmp_path / "coco" / "annotations" / "panoptic_val2017.json", tmp_path / "coco" / "val2017"),
        vocabulary=load_split("coco_panoptic_119_14"),
    )
    metrics = {task: build_metric(task, dataset.vocabulary) for task in ("panoptic", "semantic")}
    score_predictions(
        *(model, ConcatProcessor.from_pretrained(finding_checkpoint), dataset),
        metrics=metrics,
        threshold=0.0,
        overlap_mask_area_threshold=0.0,
    )
    expected = metrics["panoptic"].compute() | metrics["semantic"].compute()
    assert report.averages.pop("seconds_per_image") > 0
    assert report.averages == {
        name: None if math.isnan(value) else pytest.approx(value, abs=1e-12)
        for name, value in expected.items()
    }
    # The model is untrained, but it does find something.
    assert any(figures["FP"] for figures in metrics["panoptic"].compute_per_class().values())

    assert (report.protocol, report.dataset) == ("coco-panoptic-119-14", "COCO panoptic val2017")
    assert (list(report.tasks), report.num_images) == (["panoptic", "semantic"], 2)
    assert (len(report.labels), len(report.unseen_labels)) == (133, 14)
    assert report.thresholds == {
        "threshold": 0.0,
        "mask_threshold": ConcatProcessor.from_pretrained(finding_checkpoint).mask_threshold,
        "overlap_mask_area_threshold": 0.0,
    }
    assert report.model.weights_digest == compute_weights_digest(model)
    assert (report.model.family, report.model.parameters) == ("zsseg-concat", model.num_parameters())
    header, rows = read_table(outcome.stdout, "%")
    assert header == ["labels", "PQ", "SQ", "RQ", "mIoU", "PQ*", "SQ*", "RQ*", "mIoU*"]
    assert rows["unseen"][4] == f"{100 * expected['mIoU_unseen']:.1f}"
    assert rows["harmonic"][-1] == f"{100 * expected['hIoU']:.1f}"
    compared = [f"{100 * expected[f'PQ_{group}_all_classes']:.1f}" for group in ("seen", "unseen")]
    assert (
        "the protocol's figures, over all seen and all unseen labels, absent ones as 0: "
        f"PQ_seen {compared[0]}, PQ_unseen {compared[1]}, hPQ {100 * expected['hPQ']:.1f}"
    ) in outcome.stdout
    assert [path.name[:6] for path in sorted((tmp_path / "scores" / "worst").iterdir())] == [
        "01-PQ-",
        "02-PQ-",
    ]

    with (tmp_path / "scores" / "per_class.csv").open(encoding="utf-8") as file:
        lines = {line["label"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(report.labels)
    assert list(lines["cow"]) == [
        "label",
        "kind",
        "training",
        *("PQ", "SQ", "RQ", "TP", "FP", "FN"),
        *("IoU", "SG-IoU"),
    ]
    assert [lines[name]["kind"] for name in ("cow", "grass")] == ["thing", "stuff"]
    assert [lines[name]["training"] for name in ("cow", "car")] == ["unseen", "seen"]
    assert lines["cow"]["TP"] == str(report.per_class["cow"]["TP"])
    assert (
        float(lines["cow"]["IoU"])
        == report.per_class["cow"]["IoU"]
        == metrics["semantic"].compute_per_class()["cow"]
    )
    absent = next(name for name, figures in report.per_class.items() if figures["IoU"] is None)
    assert (lines[absent]["IoU"], lines[absent]["SG-IoU"]) == ("", "")
    header, _ = read_table(outcome.stdout, "label")
    assert header == ["kind", "training", "PQ", "SQ", "RQ", "TP", "FP", "FN", "IoU"]


def test_a_semantic_protocol(run, tmp_path, finding_checkpoint):
    write_pascal_voc(tmp_path)
    outcome, report = run_protocol(
        *(run, "voc-20", tmp_path, finding_checkpoint, tmp_path / "scores", "--overlays", 1, "--worst", 2),
        *("--label-names", "raw"),
    )
    assert "semantic, 2 images · 20 labels, raw names" in outcome.stdout
    assert "tvmonitor" in report.labels
    assert (report.label_names, report.thresholds, list(report.unseen_labels)) == ("raw", {}, [])
    assert list(report.per_class["aeroplane"]) == ["IoU"]
    assert f"over the labels that occur: mIoU {100 * report.averages['mIoU']:.1f}" in outcome.stdout
    # The picture of which nothing is known has no score, so it is no worst one.
    (picture,) = (tmp_path / "scores" / "worst").iterdir()
    assert picture.name == f"01-mIoU-{100 * report.averages['mIoU']:.1f}-2008_000000.png"
    refused = run(
        "evaluate", "--protocol", "voc-20", "--data", tmp_path, "-m", finding_checkpoint, "--task", "panoptic"
    )
    assert refused.code == 2
    assert "do not tell things apart" in refused.stderr


def test_own_data_is_scored_by_what_it_allows(
    run, photos, panoptic_json, semantic_maps, finding_checkpoint, tmp_path
):
    model = ("--label-names", "raw", "-m", finding_checkpoint, "-o")
    maps = run("evaluate", "--dataset", semantic_maps, *model, tmp_path / "colours", "--max-images", 1)
    assert "semantic, 1 image · 3 labels" in maps.stdout
    panoptic = run("evaluate", "--dataset", panoptic_json, "--images", photos, *model, tmp_path / "panoptic")
    assert "panoptic and semantic, 3 images" in panoptic.stdout
    report = EvaluationReport.load(tmp_path / "panoptic" / "results.json")
    assert (report.protocol, report.dataset, list(report.tasks)) == (
        "own",
        "panoptic.json",
        ["panoptic", "semantic"],
    )
    assert report.averages["PQ"] == 1.0
    one = run(
        *("evaluate", "--dataset", panoptic_json, "--images", photos, *model, tmp_path / "one"),
        *("--task", "semantic"),
    )
    assert "semantic, 3 images" in one.stdout
    alone = EvaluationReport.load(tmp_path / "one" / "results.json").averages
    assert alone["mIoU"] == pytest.approx(report.averages["mIoU"], abs=1e-12)
    both = run(
        *("evaluate", "--coco-panoptic", panoptic_json, "--images", photos, *model, tmp_path / "both"),
        *("--task", "semantic", "--task", "panoptic"),
    )
    assert "panoptic and semantic, 3 images" in both.stdout


def test_the_command_in_the_report_holds_what_changes_figures_and_no_path_of_this_machine(
    run, photos, panoptic_json, finding_checkpoint, tmp_path, monkeypatch
):
    (tmp_path / "unseen.txt").write_text("car")
    (tmp_path / "parents.json").write_text(json.dumps({"road": ["tree"]}))
    monkeypatch.chdir(tmp_path)
    outcome = run(
        *(
            "evaluate",
            "--dataset",
            panoptic_json,
            "--images",
            photos,
            "-m",
            finding_checkpoint,
            "-o",
            "scores",
        ),
        *("--unseen", f"@{tmp_path / 'unseen.txt'}", "--parents", tmp_path / "parents.json"),
        *("--max-images", 2, "--batch-size", 2, "--threshold", 0.4, "--label-names", "clean"),
        *("--task", "panoptic", "--task", "semantic", "--seen-penalty", 0.5, "--device", "cpu", "--worst", 1),
        "--per-class",
    )
    assert outcome.code == 0
    report = EvaluationReport.load(tmp_path / "scores" / "results.json")
    assert report.command == (
        f"zsseg evaluate --model {finding_checkpoint.name} --dataset truth/panoptic.json --images photos "
        "--unseen @unseen.txt --label-names clean --max-images 2 --batch-size 2 --threshold 0.4 "
        "--task panoptic --task semantic --parents parents.json --seen-penalty 0.5"
    )
    assert report.dataset == "truth/panoptic.json"
    assert report.model.name == finding_checkpoint.name
    # And it runs, in that folder, with the checkpoint there.
    (tmp_path / finding_checkpoint.name).symlink_to(finding_checkpoint)
    again = run(*report.command.split()[1:], "--output", "again")
    assert again.code == 0
    second = EvaluationReport.load(tmp_path / "again" / "results.json")
    timeless = {**report.averages, "seconds_per_image": None}
    assert {**second.averages, "seconds_per_image": None} == timeless

    monkeypatch.chdir(photos)
    run(
        *("evaluate", "--coco-panoptic", panoptic_json, "--images", photos, "-m", finding_checkpoint),
        *("-o", tmp_path / "far"),
    )
    text = (tmp_path / "far" / "results.json").read_text()
    assert json.loads(text)["command"].split()[2:6] == [
        *("--model", finding_checkpoint.name, "--coco-panoptic", "panoptic.json"),
    ]
    assert str(tmp_path) not in text
    assert str(finding_checkpoint.parent) not in text


def test_calibration_lowers_the_seen_labels(run, photos, panoptic_json, finding_checkpoint, tmp_path):
    options = ("evaluate", "--coco-panoptic", panoptic_json, "--images", photos, "-m", finding_checkpoint)
    reports = []
    for penalty in (0, 1000):
        output = tmp_path / f"scores{penalty}"
        outcome = run(
            *(
                *options,
                "--label-names",
                "raw",
                "--unseen",
                "tree-merged",
                "--seen-penalty",
                penalty,
                "-o",
                output,
            ),
            *("--threshold", 0, "--overlap-mask-area-threshold", 0),
        )
        assert outcome.code == 0
        assert ("calibrated by 1000" in outcome.stdout) == (penalty == 1000)
        reports.append(EvaluationReport.load(output / "results.json"))
    plain, calibrated = reports
    assert (plain.seen_penalty, calibrated.seen_penalty) == (0.0, 1000.0)
    found = [
        sum(
            figures["TP"] + figures["FP"]
            for name, figures in report.per_class.items()
            if name != "tree-merged"
        )
        for report in reports
    ]
    assert found[0] > found[1] == 0
    assert calibrated.per_class["tree-merged"]["FP"] > 0


def test_sg_iou_and_what_goes_with_it(run, semantic_maps, finding_checkpoint, tmp_path):
    options = ("evaluate", "--semantic", semantic_maps, "-m", finding_checkpoint, "--max-images", 2)
    (tmp_path / "parents.json").write_text(json.dumps({"red": ["green", "blue"], "green": ["red", "blue"]}))
    outcome = run(*options, "--parents", tmp_path / "parents.json", "-o", tmp_path / "guided", "--per-class")
    header, rows = read_table(outcome.stdout, "%")
    assert header == ["labels", "mIoU", "SG-IoU", "mIoU*", "SG-IoU*"]
    guided = EvaluationReport.load(tmp_path / "guided" / "results.json")
    assert guided.averages["SG-IoU"] > guided.averages["mIoU"]
    assert rows["all"][2] == f"{100 * guided.averages['SG-IoU']:.1f}"
    assert guided.per_class["red"].keys() == {"IoU", "SG-IoU"}
    assert guided.seen_penalty == 0.0

    refused = run(*options, "--parents", tmp_path / "nowhere.json")
    assert (refused.code, "no file of parents" in refused.stderr) == (1, True)
    refused = run(*options, "--parents", "patchwork")
    assert "labels that the vocabulary lacks" in refused.stderr
    seen_alone = write_semantic_maps(tmp_path / "seen", count=1, unseen=())
    refused = run("evaluate", "--semantic", seen_alone, "-m", finding_checkpoint, "--seen-penalty", 1)
    assert (refused.code, "no label is unseen here" in refused.stderr) == (2, True)
    # All its labels are stuff, so maps are enough for the panoptic task too.
    outcome = run(*options, "--task", "panoptic", "--threshold", 0.1)
    assert "panoptic, 2 images" in outcome.stdout
    refused = run(*options, "--task", "panoptic", "--parents", tmp_path / "parents.json")
    assert (refused.code, "--parents is for SG-IoU" in refused.stderr) == (2, True)


def test_a_failed_run_leaves_the_results_of_the_one_before(run, semantic_maps, finding_checkpoint, tmp_path):
    options = ("evaluate", "--semantic", semantic_maps, "-m", finding_checkpoint, "-o", tmp_path / "scores")
    assert run(*options, "--max-images", 2, "--worst", 2).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*") if path.is_file()}
    assert len(before) == 4
    (semantic_maps / "labels" / "003.png").write_bytes(b"no PNG")
    outcome = run(*options, "--overwrite", "--worst", 2)
    assert (outcome.code, "003.png" in outcome.stderr) == (1, True)
    assert {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*") if path.is_file()} == before


def test_the_help_names_every_protocol(run):
    text = "".join(run("evaluate", "--help").stdout.replace("│", "").split())
    assert all(name in text for name in list_protocols())
