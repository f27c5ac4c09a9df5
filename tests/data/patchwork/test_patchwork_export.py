import json

import numpy as np
import pytest

from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.patchwork.export import export_coco_panoptic, export_image_captions
from zsseg.data.vocabularies import mark_unseen

SCENES = PatchworkDataset("standard", seed=5, num_scenes=3, size=48)
EXPORTS = [export_coco_panoptic, export_image_captions]


def read_back(folder):
    return CocoPanopticDataset(folder / "panoptic.json", folder / "images")


def test_coco_panoptic_reads_back_equal(tmp_path):
    folder = tmp_path / "made" / "world"
    export_coco_panoptic(SCENES, folder)
    assert {path.name for path in folder.iterdir()} == {"images", "panoptic", "panoptic.json", "unseen.txt"}
    stored = read_back(folder)
    unseen = (folder / "unseen.txt").read_text().splitlines()
    assert mark_unseen(stored.vocabulary, unseen) == SCENES.vocabulary
    assert len(stored) == 3
    for index, (example, expected) in enumerate(zip(stored, SCENES, strict=True)):
        np.testing.assert_array_equal(np.asarray(example.image), np.asarray(expected.image))
        np.testing.assert_array_equal(example.target.segment_ids, expected.target.segment_ids)
        assert example.target.segments == expected.target.segments
        assert (example.image_id, example.file_name) == (expected.image_id, expected.file_name)
        assert stored.label_ids(index) == SCENES.label_ids(index)


def test_a_world_of_seen_names_has_no_list_of_unseen_ones(tmp_path):
    scenes = PatchworkDataset("easy", num_scenes=2, size=32, categories="seen")
    export_coco_panoptic(scenes, tmp_path / "seen")
    assert not (tmp_path / "seen" / "unseen.txt").exists()
    stored = read_back(tmp_path / "seen")
    assert stored.vocabulary == scenes.vocabulary
    assert [e.target.segments for e in stored] == [e.target.segments for e in scenes]


def test_image_captions_read_back_equal(tmp_path):
    datasets = pytest.importorskip("datasets")
    export_image_captions(SCENES, tmp_path / "world")
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "world"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.column_names == ["image", "caption"]
    for row, expected in zip(rows, SCENES, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected.image))
        assert row["caption"] == SCENES.caption(expected.target)


@pytest.mark.parametrize("export", EXPORTS)
def test_only_an_empty_folder_is_filled(export, tmp_path):
    (tmp_path / "empty").mkdir()
    export(SCENES, tmp_path / "empty")
    assert len(list((tmp_path / "empty" / "images").iterdir())) == 3
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="empty is not empty; name a new folder"):
        export(SCENES, tmp_path / "empty")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        export(SCENES, tmp_path / "file")


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(export, error, tmp_path):
    class Failing(PatchworkDataset):
        def __getitem__(self, index):
            if index == 2:
                raise error
            return super().__getitem__(index)

    (tmp_path / "out").mkdir()
    for folder in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(error):
            export(Failing("easy", num_scenes=3, size=32), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_metadata_names_pictures_from_its_own_place(tmp_path):
    export_image_captions(SCENES, tmp_path / "world")
    lines = (tmp_path / "world" / "metadata.jsonl").read_text().splitlines()
    for line, expected in zip(lines, SCENES, strict=True):
        record = json.loads(line)
        assert record == {
            "file_name": f"images/{expected.file_name}",
            "caption": SCENES.caption(expected.target),
        }
        assert (tmp_path / "world" / record["file_name"]).is_file()
