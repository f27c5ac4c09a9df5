from pathlib import Path

import pytest

from zsseg.publishing.folder_replacement import replacing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "deep" / "package"
    with replacing_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["package"]


def test_an_earlier_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "package"
    target.mkdir()
    (target / "a").write_text("old")
    with replacing_folder(target) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
        assert (target / "a").read_text() == "old"
    assert (target / "a").read_text() == "new"
    assert names(target) == ["a", "b"]
    assert names(tmp_path) == ["package"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    target = tmp_path / "package"
    for _ in range(2):
        # Killed: nothing is tidied up.
        replacing_folder(target).__enter__()
    with replacing_folder(target) as folder:
        (folder / "a").touch()
    assert names(target) == ["a"]


def test_the_earlier_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "package"
    target.mkdir()
    (target / "a").write_text("old")
    rename = Path.rename

    def fail_to_appear(path, new):
        if path.name.endswith(".part"):
            raise OSError("disk gone")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fail_to_appear)
    with pytest.raises(OSError, match="disk gone"), replacing_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old"


def fail_midway(target):
    with replacing_folder(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError("disk full")


def test_an_error_leaves_everything_as_it_was(tmp_path):
    target = tmp_path / "package"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        fail_midway(target)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["package"]


def replace(target):
    with replacing_folder(target) as folder:
        (folder / "a").write_text("new")


def test_files_of_others_are_never_dropped(tmp_path):
    target = tmp_path / "package"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt.*choose another folder"):
        replace(target)
    assert (target / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == ["package"]


def test_a_file_in_the_way_stays(tmp_path):
    target = tmp_path / "package"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="a file"):
        replace(target)
    assert target.read_text() == "mine"
