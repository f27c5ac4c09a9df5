import json
import math

import numpy as np
import pytest
from PIL import Image

from testing.tiny_semantic_maps import write_semantic_maps
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.training.evaluation import evaluate_model

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
    averages = read_results(tmp_path / "scores")["averages"]
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
