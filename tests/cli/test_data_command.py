import json

import numpy as np
import pytest
from PIL import Image

from testing.tiny_semantic_maps import write_semantic_maps
from zsseg.cli.data_check_run import draw_sheet
from zsseg.data.opening import open_dataset


@pytest.fixture
def maps(tmp_path):
    return write_semantic_maps(tmp_path / "maps", count=14)


def test_a_sound_data_set(run, maps, tmp_path):
    output = tmp_path / "check"
    outcome = run("data", "check", maps, "-o", output)
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0] == f"{maps} · semantic maps"
    assert lines[1] == "3 labels (2 seen, 1 unseen), clean names"
    assert lines[2].startswith(
        "14 pictures · height 32–32–32, width 32–32–32 pixels (min–median–max) · 0.4 %"
    )
    assert any(line.split()[:2] == ["blue", "*"] for line in lines)
    assert outcome.stderr == ""
    content = json.loads((output / "check.json").read_text())
    assert content["source"] == str(maps)
    assert {label["name"]: label["pictures"] for label in content["labels"]} == {
        "red": 7,
        "green": 14,
        "blue": 7,
    }
    assert sum(label["pixels"] for label in content["labels"]) == 14 * (32 * 32 - 4)
    assert content["void_pixels"] == 14 * 4
    # Again, over what is there.
    assert run("data", "check", maps, "-o", output, "--unseen", "red").code == 0
    content = json.loads((output / "check.json").read_text())
    assert [label["is_seen"] for label in content["labels"]] == [False, True, True]
    assert sorted(path.name for path in output.iterdir()) == ["check.json", "sheet.png"]


def test_the_sheet_shows_pictures_and_labels(maps):
    dataset = open_dataset(maps)
    few, all_of_them = (
        draw_sheet([dataset[i] for i in range(count)], dataset.vocabulary) for count in (4, 12)
    )
    assert all_of_them.width == few.width
    assert all_of_them.height > 2 * few.height
    colors = {color for _, color in all_of_them.getcolors(maxcolors=2**24)}
    # Tints of the pictures below the labels' colours, and a legend with its ink.
    assert len(colors) > 1000
    assert (25, 25, 25) in colors


def test_problems_are_listed_with_the_file_and_end_in_code_1(run, maps, tmp_path):
    (maps / "labels" / "000.png").unlink()
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(maps / "labels" / "001.png")
    (maps / "images" / "002.png").write_bytes((maps / "images" / "002.png").read_bytes()[:200])
    outcome = run("data", "check", maps, "-o", tmp_path / "check")
    assert outcome.code == 1
    assert "error: 000.png: there is no map labels/000.png for this picture" in outcome.stderr
    assert "error: 001.png: " in outcome.stderr
    assert "error: 002.png: cannot load the image" in outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "error: 3 problems"
    assert "Traceback" not in outcome.stderr
    content = json.loads((tmp_path / "check" / "check.json").read_text())
    assert [problem["file_name"] for problem in content["problems"]] == ["000.png", "001.png", "002.png"]
    assert content["pictures"] == 11


def test_many_problems_are_counted_and_the_first_are_shown(run, tmp_path):
    maps = write_semantic_maps(tmp_path / "many", count=30)
    for path in (maps / "labels").iterdir():
        path.write_bytes(b"")
    outcome = run("data", "check", maps, "-o", tmp_path / "check")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1] == "error: 31 problems, 11 of them not shown here"
    assert outcome.stderr.count("is not a PNG") == 20
    assert len(json.loads((tmp_path / "check" / "check.json").read_text())["problems"]) == 31


def test_a_data_set_that_cannot_be_opened_leaves_a_report_and_no_stale_sheet(run, maps, tmp_path):
    assert run("data", "check", maps, "-o", tmp_path / "check").code == 0
    classes = maps / "classes.json"
    classes.write_text(json.dumps({"classes": [], "ignore_index": 255}))
    outcome = run("data", "check", maps, "-o", tmp_path / "check")
    assert outcome.code == 1
    assert "names no label" in outcome.stderr
    assert [path.name for path in (tmp_path / "check").iterdir()] == ["check.json"]
    assert json.loads((tmp_path / "check" / "check.json").read_text())["problem_count"] == 1


def test_options_and_names_that_do_not_fit(run, maps, tmp_path):
    nowhere = run("data", "check", tmp_path / "nowhere", "-o", tmp_path / "check")
    assert nowhere.code == 1
    assert "there is no folder or file" in nowhere.stderr
    part = run("data", "check", maps, "--part", "val", "-o", tmp_path / "check")
    assert part.code == 2
    assert "has no part 'val'" in part.stderr
    both = run("data", "check", maps, "--split", "voc_15_5", "--unseen", "red", "-o", tmp_path / "check")
    assert both.code == 2
    images = run("data", "check", maps, "--images", maps / "images", "-o", tmp_path / "check")
    assert images.code == 2
    assert "leave the images out" in images.stderr
    assert not (tmp_path / "check").exists()
    in_the_way = run("data", "check", maps, "-o", maps)
    assert in_the_way.code == 2
    assert "holds other files" in in_the_way.stderr
    a_file = run("data", "check", maps, "-o", maps / "classes.json")
    assert a_file.code == 2
    assert "is a file; name a folder" in a_file.stderr
