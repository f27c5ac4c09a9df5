import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oracles.panoptic_maps import (
    CATEGORIES,
    UNSEEN_CATEGORY_IDS,
    write_coco_panoptic,
    write_perturbed_prediction,
    write_synthetic_set,
)
from zsseg.metrics import coco_panoptic_quality, evaluate_coco_panoptic

GOLDEN = Path(__file__).parents[1] / "golden" / "panoptic_quality"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
NUM_IMAGES = json.loads((GOLDEN / "provenance.json").read_text())["images_per_synthetic_set"]
GROUPS = {"All": "", "Things": "_th", "Stuff": "_st"}
TOLERANCE = 1e-12


def real_data(name):
    folder = os.environ.get("ZSSEG_REAL_DATA")
    if not folder:
        pytest.skip("ZSSEG_REAL_DATA names no folder with real photographs")
    return Path(folder) / name


def assert_equals_panopticapi(metric, expected):
    results = metric.compute()
    for their_group, group in GROUPS.items():
        for figure in ("PQ", "SQ", "RQ"):
            theirs = expected[their_group][figure.lower()]
            assert abs(results[f"{figure}{group}"] - theirs) <= TOLERANCE, (figure, group)
    per_class = {int(label): figures for label, figures in expected["per_class"].items()}
    for category, row in zip(metric.vocabulary, metric.compute_per_class().values(), strict=True):
        theirs = per_class.get(category.category_id, {"pq": 0.0, "sq": 0.0, "rq": 0.0})
        for figure, value in theirs.items():
            assert abs(row[figure.upper()] - value) <= TOLERANCE, (category.name, figure)


@pytest.mark.parametrize("seed", EXPECTED["synthetic"])
def test_equals_golden_values_of_panopticapi(tmp_path, seed):
    paths = write_synthetic_set(tmp_path / "set", int(seed), NUM_IMAGES)
    assert_equals_panopticapi(coco_panoptic_quality(*paths), EXPECTED["synthetic"][seed])


@pytest.mark.real_data
@pytest.mark.parametrize("seed", EXPECTED["official_sample"])
def test_equals_golden_values_on_the_official_sample(tmp_path, seed):
    target = real_data("coco_panoptic_official_sample") / "panoptic_examples.json"
    prediction = write_perturbed_prediction(target, tmp_path / "set", int(seed))
    assert_equals_panopticapi(coco_panoptic_quality(target, prediction), EXPECTED["official_sample"][seed])


def test_equals_panopticapi_itself(tmp_path):
    peer = pytest.importorskip("panopticapi.evaluation", reason="panopticapi is not installed (not on PyPI)")
    for seed in range(100, 104):
        paths = write_synthetic_set(tmp_path / str(seed), seed, 20)
        assert_equals_panopticapi(coco_panoptic_quality(*paths), peer.pq_compute(*map(str, paths)))


@pytest.fixture
def files(tmp_path):
    """(target JSON, prediction JSON) of 40 images: more than one chunk."""
    return write_synthetic_set(tmp_path / "set", 5, 40)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_segments(content):
    """The segments of the first image that has one."""
    return next(a["segments_info"] for a in content["annotations"] if a["segments_info"])


def test_unseen_categories_give_hpq(files):
    results = evaluate_coco_panoptic(*files, unseen_category_ids=UNSEEN_CATEGORY_IDS)
    per_class = coco_panoptic_quality(*files).compute_per_class()
    pq = {category["id"]: per_class[category["name"]]["PQ"] for category in CATEGORIES}
    seen = [value for category_id, value in pq.items() if category_id not in UNSEEN_CATEGORY_IDS]
    unseen = [value for category_id, value in pq.items() if category_id in UNSEEN_CATEGORY_IDS]
    assert results["PQ_seen_all_classes"] == pytest.approx(np.mean(seen), rel=1e-12)
    assert results["PQ_unseen_all_classes"] == pytest.approx(np.mean(unseen), rel=1e-12)
    assert results["hPQ"] == pytest.approx(2 / (1 / np.mean(seen) + 1 / np.mean(unseen)), rel=1e-12)
    assert "hPQ" not in evaluate_coco_panoptic(*files)


@pytest.mark.slow
def test_workers_change_nothing(files):
    assert evaluate_coco_panoptic(*files, workers=2) == evaluate_coco_panoptic(*files)


def test_folders_may_lie_elsewhere(files, tmp_path):
    expected = evaluate_coco_panoptic(*files)
    moved = [shutil.move(path.with_suffix(""), tmp_path / f"moved_{path.stem}") for path in files]
    assert evaluate_coco_panoptic(*map(str, files), *map(str, moved)) == expected
    with pytest.raises(FileNotFoundError, match=r"no folder .*target .*pass it"):
        evaluate_coco_panoptic(*files)


def test_optional_fields_may_be_absent(files):
    expected = evaluate_coco_panoptic(*files)

    def drop_fields(content):
        del content["categories"]
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                del segment["area"], segment["iscrowd"]

    edit(files[1], drop_fields)
    edit(
        files[1], lambda content: content["annotations"].append(content["annotations"][0] | {"image_id": -1})
    )
    assert evaluate_coco_panoptic(*files) == expected

    def drop_areas(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                del segment["area"]

    edit(files[0], drop_areas)
    assert evaluate_coco_panoptic(*files) == expected


def test_ids_in_png_and_json_must_agree(files):
    edit(files[1], lambda content: first_segments(content).pop())
    with pytest.raises(ValueError, match=r"image \d+ .*prediction's pixels carry ids that no segment lists"):
        evaluate_coco_panoptic(*files)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (
            1,
            lambda c: c["annotations"].pop(3),
            r"1 of 40 images have no prediction .*\[3\]; an image without",
        ),
        (1, lambda c: c["annotations"].append(c["annotations"][0]), r"each image once, but repeats \[0\]"),
        (1, lambda c: first_segments(c).append({"id": 9, "category_id": 1}), r"without a pixel: \[9\]"),
        (
            0,
            lambda c: first_segments(c).append({"id": 9, "category_id": 1}),
            r"target .*without a pixel: \[9\]",
        ),
        (
            1,
            lambda c: first_segments(c)[0].update(category_id=2),
            r"unknown category ids \[2\]; .*\[1, 3, 17",
        ),
        (0, lambda c: first_segments(c)[0].update(category_id=2), r"unknown category ids \[2\]"),
        (0, lambda c: first_segments(c)[0].update(area=0.5), r"the target's areas differ"),
        (1, lambda c: first_segments(c)[0].update(id=0), r"positive integers \(0 is void\)"),
        (1, lambda c: first_segments(c)[0].update(id="7"), r"positive integers .*'7'"),
        (1, lambda c: first_segments(c).append(first_segments(c)[0]), r"unique, but \d+\.png repeats"),
        (1, lambda c: first_segments(c)[0].pop("id"), r"a segment of \d+\.png has no 'id'"),
        (1, lambda c: c["annotations"][0].pop("segments_info"), "has no 'segments_info', only"),
        (1, lambda c: c.pop("annotations"), r"prediction\.json has no 'annotations'"),
        (0, lambda c: c.pop("categories"), r"target\.json has no 'categories'"),
        (0, lambda c: c["categories"][0].pop("isthing"), "category 1 has no 'isthing'"),
    ],
)
def test_files_that_do_not_fit_are_refused(files, which, change, message):
    edit(files[which], change)
    with pytest.raises(ValueError, match=message):
        evaluate_coco_panoptic(*files)


def test_missing_pngs_are_counted(files):
    (files[1].with_suffix("") / "7.png").unlink()
    (files[0].with_suffix("") / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 PNGs are missing, the first .*target/3\.png"):
        evaluate_coco_panoptic(*files)


def test_a_png_of_another_mode_names_its_image(files):
    Image.new("L", (8, 8)).save(files[1].with_suffix("") / "7.png")
    with pytest.raises(ValueError, match=r"image 7 .*prediction/7\.png.*8-bit RGB PNG"):
        evaluate_coco_panoptic(*files)


def test_a_prediction_of_another_size_is_refused(tmp_path):
    ids = np.zeros((4, 6), np.int32)
    target = write_coco_panoptic(tmp_path, "target", [("a", ids, [])], CATEGORIES)
    prediction = write_coco_panoptic(tmp_path, "prediction", [("a", ids.T, [])], CATEGORIES)
    with pytest.raises(ValueError, match=r"image 'a' .*\(6, 4\) and \(4, 6\)"):
        evaluate_coco_panoptic(target, prediction)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "one JSON object .*list")],
)
def test_json_files_that_hold_something_else(files, content, message):
    files[1].write_text(content)
    with pytest.raises(ValueError, match=message):
        evaluate_coco_panoptic(*files)


def test_missing_json(files):
    with pytest.raises(FileNotFoundError, match="nothing"):
        evaluate_coco_panoptic(files[0], files[1].with_name("nothing.json"))


def test_arguments_are_checked(files):
    with pytest.raises(ValueError, match=r"unseen_category_ids .*\[2\] are not: \[1, 3"):
        evaluate_coco_panoptic(*files, unseen_category_ids=[2, 21])
    with pytest.raises(ValueError, match="workers must be 1 or more, got 0"):
        evaluate_coco_panoptic(*files, workers=0)


def test_no_images_is_an_error(tmp_path):
    paths = [write_coco_panoptic(tmp_path, stem, [], CATEGORIES) for stem in ("target", "prediction")]
    with pytest.raises(ValueError, match="seen no image"):
        evaluate_coco_panoptic(*paths)
