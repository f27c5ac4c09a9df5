import numpy as np
import pytest

from testing.official_layouts import write_map, write_picture
from zsseg.data.label_maps import LabelMapDataset
from zsseg.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary((Category("road", category_id=3), Category("car", category_id=7)))


@pytest.fixture
def folder(tmp_path):
    for number, values in enumerate([(2, 6), (6, 255)]):
        write_picture(tmp_path / "images" / f"{number}.jpg", number)
        write_map(tmp_path / "maps" / f"{number}.png", *values)
    return tmp_path


def open_maps(folder, **options):
    return LabelMapDataset(folder / "images", folder / "maps", VOCABULARY, value_offset=-1, **options)


def test_values_become_labels(folder):
    dataset = open_maps(folder)
    assert dataset.file_names == ("0.jpg", "1.jpg")
    assert [dataset.label_ids(index) for index in (0, 1)] == [{0, 1}, {1}]
    example = dataset[1]
    assert (example.image_id, example.file_name) == ("1", "1.jpg")
    ids = example.target.segment_ids
    assert np.unique(ids[:, :32]).tolist() == [2]
    assert np.unique(ids[:, 32:]).tolist() == [0]


def test_only_listed_pictures_are_read_in_their_order(folder):
    (folder / "val.txt").write_text("1\n\n0 \n")
    assert open_maps(folder, list_file=folder / "val.txt").file_names == ("1.jpg", "0.jpg")


def test_values_that_stand_for_nothing(folder):
    dataset = open_maps(folder, ignored_values=())
    with pytest.raises(ValueError, match=r"1\.png holds values that stand for no label .*: \[255\]"):
        dataset[1]


def test_files_that_do_not_fit(folder):
    with pytest.raises(FileNotFoundError, match="no list of pictures"):
        open_maps(folder, list_file=folder / "val.txt")
    (folder / "val.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match="lists no picture"):
        open_maps(folder, list_file=folder / "val.txt")
    (folder / "maps" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 label map files are missing .*0\.png"):
        open_maps(folder)
    write_picture(folder / "images" / "1.png")
    with pytest.raises(ValueError, match="differ in their suffix alone"):
        open_maps(folder)
    (folder / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        LabelMapDataset(folder / "none", folder / "maps", VOCABULARY)
    with pytest.raises(ValueError, match="need category ids"):
        LabelMapDataset(folder / "images", folder / "maps", Vocabulary.from_labels(["road"]))
