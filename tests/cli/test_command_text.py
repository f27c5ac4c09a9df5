from pathlib import Path

import pytest

from zsseg.cli.command_text import shorten_path


def test_paths_below_the_working_folder_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_path(str(tmp_path / "data" / "coco")) == "data/coco"
    assert shorten_path(f"@{tmp_path / 'unseen.txt'}") == "@unseen.txt"
    assert shorten_path(str(tmp_path)) == tmp_path.name
    assert shorten_path(str(tmp_path.parent / "coco")) == "coco"


def test_the_root_is_no_working_folder(monkeypatch):
    monkeypatch.chdir("/")
    assert shorten_path("/home/ada/coco") == "coco"


@pytest.mark.parametrize(
    "text", ["concat-patchwork", "user/name", "../data/coco", "0.5", "road, car", str(Path("a"))]
)
def test_all_else_stays(text):
    assert shorten_path(text) == text
