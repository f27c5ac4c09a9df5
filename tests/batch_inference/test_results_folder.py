import json
import random
import resource

import pytest

pytest.importorskip("ray", reason="needs the extra scale")

from zsseg.batch_inference.results_folder import ResultsFolder, ResultsFolderError
from zsseg.image_sources import ImageSource

SETUP = {"labels": ["road"], "thresholds": {"threshold": 0.5}}


def build_sources(*names):
    return [ImageSource(f"/pictures/{name}.png", f"{name}.png") for name in names]


def claim(folder, sources, *, setup=SETUP, part_size=2, overwrite=False):
    results = ResultsFolder(folder)
    results.claim(setup, sources, part_size=part_size, about={"zsseg": "1"}, overwrite=overwrite)
    return results


def write(results, part, *, failed=()):
    results.write_part(
        part,
        [
            {
                "image_id": image_id,
                "image": source.name,
                "file_name": source.file_name,
                "error": f"{source.name} is bad" if image_id in failed else None,
                "seconds": 0.5,
            }
            for image_id, source in results.read_sources(part)
        ],
    )


def planned(results):
    return [
        [(image_id, source.file_name) for image_id, source in results.read_sources(part)]
        for part in range(results.num_parts)
    ]


def test_a_run_begins_with_its_plan_and_ends_when_every_part_has_a_file(tmp_path):
    results = claim(tmp_path / "deep" / "out", build_sources("a", "b", "c"))
    assert planned(results) == [[(1, "a.png"), (2, "b.png")], [(3, "c.png")]]
    assert (results.num_pictures, results.find_pending(with_failed=False)) == (3, {0: 2, 1: 1})
    write(results, 1)
    assert results.find_pending(with_failed=False) == {0: 2}
    assert results.read_part(0) is None
    write(results, 0)
    assert results.find_pending(with_failed=False) == {}
    assert [row["image_id"] for row in results.iterate_rows()] == [1, 2, 3]
    about = json.loads((results.folder / "setup.json").read_text())
    assert about == {"zsseg": "1", "setup": SETUP}


def test_what_a_killed_worker_left_is_no_result(tmp_path):
    results = claim(tmp_path, build_sources("a", "b", "c"))
    write(results, 1)
    whole = (results.parts_folder / "part-000001.parquet").read_bytes()
    left = results.parts_folder / ".part-000000.parquet.0123.part"
    left.write_bytes(whole[: len(whole) // 2])
    assert results.find_pending(with_failed=True) == {0: 2}
    assert [row["image_id"] for row in results.iterate_rows()] == [3]
    assert results.read_failures() == []
    results.begin_attempt(1)  # by a worker that died before it removed the file
    results.remove_unfinished()
    assert [path.name for path in results.parts_folder.iterdir()] == ["part-000001.parquet"]
    assert results.read_part(1) is not None


@pytest.fixture
def no_large_file():
    """No file can grow beyond this many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_part_that_cannot_be_written_leaves_what_was_there(tmp_path, no_large_file):
    results = claim(tmp_path, build_sources("a", "b"))
    write(results, 0)
    before = results.read_part(0)
    with pytest.raises(OSError, match="too large"):
        results.write_part(0, [{"image_id": 1, "panoptic_png": random.Random(0).randbytes(100_000)}])
    assert results.read_part(0) == before
    assert [path.name for path in results.parts_folder.iterdir()] == ["part-000000.parquet"]


def test_failures_are_found_and_tried_again_only_if_asked_for(tmp_path):
    results = claim(tmp_path, build_sources("a", "b", "c"))
    write(results, 0, failed={2})
    write(results, 1)
    assert results.read_failures() == [("/pictures/b.png", "/pictures/b.png is bad")]
    assert results.find_pending(with_failed=False) == {}
    assert results.find_pending(with_failed=True) == {0: 1}


def test_pictures_that_are_new_come_behind_and_names_stay_apart(tmp_path):
    results = claim(tmp_path, build_sources("a", "c", "e"))
    write(results, 0)
    elsewhere = ImageSource("/elsewhere/A.jpg", "A.jpg")
    row = ImageSource("/pictures/a.png", "row.png", 0)
    again = claim(tmp_path, [elsewhere, row, *build_sources("a", "b", "c")], part_size=9)
    assert planned(again) == [
        [(1, "a.png"), (2, "c.png")],
        [(3, "e.png")],
        [(4, "A-2.jpg"), (5, "row.png"), (6, "b.png")],
    ]
    assert again.read_sources(2)[1][1] == row
    assert again.find_pending(with_failed=False) == {1: 1, 2: 3}
    assert planned(claim(tmp_path, build_sources("b"))) == planned(again)


def test_another_setup_is_refused_with_what_differs(tmp_path):
    write(claim(tmp_path, build_sources("a")), 0)
    other = {**SETUP, "thresholds": {"threshold": 0.8}}
    with pytest.raises(
        ResultsFolderError, match=r"another setup: thresholds.threshold 0.5 there, 0.8 now. Run with that"
    ):
        claim(tmp_path, build_sources("a"), setup=other)
    with pytest.raises(ResultsFolderError, match=r"size null there, 3 now"):
        claim(tmp_path, build_sources("a"), setup={**SETUP, "size": 3})
    assert ResultsFolder(tmp_path).read_part(0) is not None
    again = claim(tmp_path, build_sources("b"), setup=other, overwrite=True)
    assert planned(again) == [[(1, "b.png")]]
    assert again.read_part(0) is None


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ResultsFolderError, match="not empty and holds no batch run"):
        claim(tmp_path, build_sources("a"))
    with pytest.raises(ResultsFolderError, match="is a file"):
        claim(tmp_path / "letter.txt", build_sources("a"))
    claim(tmp_path, build_sources("a"), overwrite=True)
    assert (tmp_path / "letter.txt").is_file()


def test_damage_is_said(tmp_path):
    results = claim(tmp_path, build_sources("a", "b", "c"))
    write(results, 0)
    part = results.parts_folder / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ResultsFolderError, match=r"damaged .* remove it and run again"):
        results.read_part(0)
    (tmp_path / "pictures.parquet").unlink()
    with pytest.raises(ResultsFolderError, match=r"not their plan pictures.parquet"):
        claim(tmp_path, build_sources("a"))
    for text in ("{", "{}", "[]"):
        (tmp_path / "setup.json").write_text(text)
        with pytest.raises(ResultsFolderError, match="is no setup of a batch run"):
            claim(tmp_path, build_sources("a"))


def test_attempts_are_counted_until_the_part_is_done_or_a_run_begins(tmp_path):
    results = claim(tmp_path, build_sources("a", "b", "c"))
    assert [results.begin_attempt(0), results.begin_attempt(0), results.begin_attempt(1)] == [1, 2, 1]
    write(results, 0)
    assert results.begin_attempt(0) == 1
    results.forget_attempts()
    assert results.begin_attempt(1) == 1
    assert results.find_pending(with_failed=False) == {1: 1}
