import json

import numpy as np
import pytest
from PIL import Image

from zsseg.panoptic_format import read_panoptic_png

LABELS = ("--labels", "road, car|automobile, tree", "--stuff", "tree")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_picture_gets_an_overlay_a_map_and_records(run, photos, finding_checkpoint, tmp_path):
    output = tmp_path / "out"
    outcome = run("segment", photos, *LABELS, "--unseen", "tree", "-m", finding_checkpoint, "-o", output)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[0].endswith("cpu float32 · 3 labels (1 stuff, 1 unseen) · 3 images")
    assert [line.split()[:3] for line in lines[1:4]] == [
        [f"{index + 1}/3", f"street{index}.png", size]
        for index, size in enumerate(["64×48", "40×60", "64×48"])
    ]
    assert "3 overlays" in lines[4]
    panoptic, records = read_json(output / "panoptic.json"), read_json(output / "segments.json")
    assert [category["name"] for category in panoptic["categories"]] == ["road", "car", "tree"]
    assert records["labels"][2] == {"name": "tree", "synonyms": [], "isthing": False, "is_seen": False}
    assert records["failures"] == []
    for record, annotation in zip(records["images"], panoptic["annotations"], strict=True):
        overlay = Image.open(output / record["overlay"])
        assert overlay.width >= record["width"]
        assert overlay.height > record["height"]
        segment_ids = read_panoptic_png(output / "panoptic" / annotation["file_name"])
        areas = {segment["id"]: segment["area"] for segment in record["segments"]}
        assert areas == {i: int((segment_ids == i).sum()) for i in np.unique(segment_ids).tolist() if i}
        number = len(record["segments"])
        assert number > 1
        assert (
            f"{record['file_name']}  {record['width']}×{record['height']}  {number} segments: "
            in outcome.stdout
        )


def test_batches_change_nothing(run, photos, finding_checkpoint, tmp_path):
    for size in (1, 3):
        run(
            "segment",
            photos,
            *LABELS,
            "-m",
            finding_checkpoint,
            "-o",
            tmp_path / str(size),
            "--batch-size",
            size,
        )
    one, three = (read_json(tmp_path / str(size) / "segments.json")["images"] for size in (1, 3))
    for single, batched in zip(one, three, strict=True):
        assert [(s["label"], s["area"]) for s in single["segments"]] == [
            (s["label"], s["area"]) for s in batched["segments"]
        ]


def test_a_semantic_result_leaves_no_pixel_without_a_label(run, photos, finding_checkpoint, tmp_path):
    output = tmp_path / "out"
    outcome = run("segment", photos, *LABELS, "-m", finding_checkpoint, "-o", output, "--task", "semantic")
    assert outcome.code == 0
    for record in read_json(output / "segments.json")["images"]:
        assert sum(s["area"] for s in record["segments"]) == record["width"] * record["height"]
        assert all(s["score"] is None for s in record["segments"])
    assert (output / "street0_overlay.png").is_file()


def test_size_and_dtype_reach_the_model(run, photos, finding_checkpoint, tmp_path):
    outcome = run(
        *("segment", photos / "street0.png", *LABELS, "-m", finding_checkpoint, "-o", tmp_path / "out"),
        *("--size", 96, "--dtype", "bfloat16", "--device", "cpu", "--threshold", 0.1),
    )
    assert outcome.code == 0
    assert "cpu bfloat16" in outcome.stdout


def test_unreadable_pictures_are_reported_and_the_rest_done(run, photos, finding_checkpoint, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    output = tmp_path / "out"
    outcome = run(
        *("segment", photos, tmp_path / "missing.jpg", *LABELS, "-m", finding_checkpoint, "-o", output),
        *("--batch-size", 2),
    )
    assert outcome.code == 1
    assert "2 of 5 images could not be read" in outcome.stderr
    assert "no such file" in outcome.stderr
    assert "1/5  broken.png   cannot be read" in outcome.stdout
    records = read_json(output / "segments.json")
    assert [record["file_name"] for record in records["images"]] == [f"street{i}.png" for i in range(3)]
    assert [failure["image"] for failure in records["failures"]] == [
        str(photos / "broken.png"),
        str(tmp_path / "missing.jpg"),
    ]
    assert len(read_json(output / "panoptic.json")["annotations"]) == 3


def test_equal_names_do_not_overwrite_each_other(run, photos, finding_checkpoint, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photos / "street0.png").save(other / "street0.jpg")
    output = tmp_path / "out"
    run("segment", photos / "street0.png", other, *LABELS, "-m", finding_checkpoint, "-o", output)
    assert {path.name for path in output.glob("*_overlay.png")} == {
        "street0_overlay.png",
        "street0-2_overlay.png",
    }
    assert {path.name for path in (output / "panoptic").iterdir()} == {"street0.png", "street0-2.png"}


def test_an_output_with_something_in_it_needs_overwrite(run, photos, finding_checkpoint, tmp_path):
    arguments = ("segment", photos / "street0.png", *LABELS, "-m", finding_checkpoint, "-o", tmp_path / "out")
    assert run(*arguments).code == 0
    again = run(*arguments)
    assert again.code == 2
    assert "--overwrite" in again.stderr
    assert run(*arguments, "--overwrite").code == 0
    (tmp_path / "file").touch()
    assert "is a file" in run(*arguments[:-1], tmp_path / "file").stderr


def test_characters_that_the_font_lacks_are_noted_once(run, photos, finding_checkpoint, tmp_path):
    outcome = run("segment", photos, "--labels", "道路", "-m", finding_checkpoint, "-o", tmp_path / "out")
    assert outcome.code == 0
    assert outcome.stderr.count("note:") == 1
    assert "道路 ×" in outcome.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--labels", ""), 2, "--labels holds no label"),
        (("--labels", "road", "--stuff", "sky"), 2, "['sky']"),
        (("--labels", "@nowhere.txt"), 1, "no file of labels"),
        (("--labels", "road", "--task", "semantic", "--threshold", "0.5"), 2, "has no thresholds"),
        (("--labels", "road", "--threshold", "1.5"), 2, "[0, 1]"),
        (("--labels", "road", "--font", "nowhere.ttf"), 1, "no font file"),
        (("--labels", "road", "--device", "no-device"), 2, "--device no-device"),
        (("--labels", "a" * 200), 1, "tokens"),
        (("--labels", "road", "--batch-size", "0"), 2, "at least 1"),
        ((), 2, "--labels"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(
    run, photos, finding_checkpoint, tmp_path, options, code, message
):
    outcome = run("segment", photos, "-m", finding_checkpoint, "-o", tmp_path / "out", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_no_picture_no_model(run, tmp_path):
    outcome = run("segment", tmp_path, *LABELS, "-m", "unused", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "holds no picture" in outcome.stderr


def test_a_label_outside_a_closed_bank_names_the_nearest(run, photos, bank_checkpoint, tmp_path):
    outcome = run("segment", photos, "--labels", "cars", "-m", bank_checkpoint, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "nearest names: 'car'" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_traceback_shows_all(run, photos, finding_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no label"):
        run("segment", photos, "--labels", "", "-m", finding_checkpoint, "-o", tmp_path, "--traceback")
