import pytest

from zsseg.data.annotation_files import list_folder, read_annotation_json, require_files


def test_read_annotation_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "more": 1}')
    assert read_annotation_json(path, ("images",))["more"] == 1
    with pytest.raises(ValueError, match=r"lacks \['annotations'\]; expected an object with"):
        read_annotation_json(path, ("images", "annotations"))
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got a list"):
        read_annotation_json(path, ())
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a.json is not a JSON file"):
        read_annotation_json(path, ())
    with pytest.raises(FileNotFoundError, match="no annotation file at"):
        read_annotation_json(tmp_path / "b.json", ())


def test_require_files_counts_and_names_the_first(tmp_path):
    (tmp_path / "nested").mkdir()
    for name in ("a.png", "nested/b.png"):
        (tmp_path / name).touch()
    require_files(tmp_path, ["a.png", "nested/b.png"], "image")
    names = ["a.png", *(f"{i}.png" for i in range(7))]
    with pytest.raises(FileNotFoundError, match=r"7 of 8 image files are missing in .*: 0.png, .*4.png, …$"):
        require_files(tmp_path, names, "image")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 image files are missing in .*: c.png$"):
        require_files(tmp_path, ["c.png"], "image")
    with pytest.raises(FileNotFoundError, match="no label folder at"):
        list_folder(tmp_path / "labels", "label")
