from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsseg.image_sources import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "below/c.jpg", "below/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(sources):
    return [source.file_name for source in sources]


def test_a_folder_means_its_pictures_sorted(folder):
    assert names(find_images([str(folder)])) == ["a.PNG", "b.jpg"]


def test_a_pattern_reaches_folders_below(folder):
    sources = find_images([f"{folder}/**/*.jpg"])
    assert [Path(source.location).relative_to(folder) for source in sources] == [
        Path("b.jpg"),
        Path("below/c.jpg"),
    ]


def test_a_picture_that_is_meant_twice_is_done_once(folder):
    assert names(find_images([f"{folder}/b.jpg", str(folder), f"{folder}/*.jpg"])) == ["b.jpg", "a.PNG"]


def test_equal_stems_are_told_apart(folder):
    sources = find_images([str(folder), str(folder / "below")])
    assert names(sources) == ["a.PNG", "b.jpg", "b-2.png", "c.jpg"]
    assert sources[2].stem == "b-2"


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "photo[1].jpg").touch()
    assert names(find_images([str(tmp_path / "photo[1].jpg")])) == ["photo[1].jpg"]


def test_a_missing_file_is_left_to_the_reader(tmp_path):
    (source,) = find_images([str(tmp_path / "missing.jpg")])
    assert source.location == str(tmp_path / "missing.jpg")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/street%20view.jpg?size=3#top", "street view.jpg"),
        ("HTTP://example.org", "picture"),
        ("https://example.org/x/", "x"),
        ("https://example.org/..%2F..%2Fetc", "etc"),
        ("https://example.org/a%5Cb%3A*.jpg", "a_b__.jpg"),
        ("https://example.org/%2e%2e", "picture"),
    ],
)
def test_a_url_names_its_results_safely(url, name):
    (source,) = find_images([url])
    assert (source.location, source.file_name) == (url, name)


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        find_images([str(tmp_path)])


def test_a_pattern_without_a_match_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_images([f"{tmp_path}/*.jpg"])


@given(st.lists(st.sampled_from(["a", "A", "a-2", "b", "a-2-2"]), max_size=6), st.data())
def test_stems_are_unique_whatever_the_names(stems, data):
    locations = {
        f"{index}/{stem}{data.draw(st.sampled_from(['.jpg', '.png', '']))}"
        for index, stem in enumerate(stems)
    }
    sources = find_images(sorted(locations))
    assert len({source.stem.casefold() for source in sources}) == len(stems)
