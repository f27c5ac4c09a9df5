import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.panoptic_format import write_panoptic_png

CATEGORIES = [
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 149, "name": "road", "isthing": 0},
    {"id": 187, "name": "sky-other-merged", "isthing": 0},
]


@pytest.fixture
def real_data():
    """The folder of photographs that are not part of the repository."""
    folder = os.environ.get("ZSSEG_REAL_DATA")
    if not folder:
        pytest.skip("ZSSEG_REAL_DATA names no folder of photographs")
    return Path(folder)


@pytest.fixture
def coco_folder(tmp_path):
    """Two pictures in COCO's panoptic format; the second has a crowd of cars and no sky."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "panoptic").mkdir()
    maps = {
        10: np.array([[300, 300, 300, 300], [1, 1, 70000, 70000], [0, 1, 70000, 2]], np.int32),
        11: np.array([[5, 5, 9], [5, 5, 9]], np.int32),
    }
    segments = {
        10: [(300, 187, 0), (1, 149, 0), (70000, 3, 0), (2, 3, 0)],
        11: [(5, 3, 1), (9, 149, 0)],
    }
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id, segment_ids in maps.items():
        height, width = segment_ids.shape
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{image_id}.png")
        write_panoptic_png(tmp_path / "panoptic" / f"{image_id}.png", segment_ids)
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png"})
        infos = [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments[image_id]]
        content["annotations"].append(
            {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": infos}
        )
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def edit_json():
    """Change a JSON file in place."""

    def edit(path, change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture
def coco_dataset(coco_folder):
    return CocoPanopticDataset(coco_folder / "panoptic.json", coco_folder / "images")


@pytest.fixture
def semantic_folder(tmp_path):
    """Two pictures with semantic maps in ``part/``; class ids 1, 2, 7, ignored 0."""
    classes = {
        "classes": [
            {"id": 1, "name": "road", "isthing": False},
            {"id": 7, "name": "car", "isthing": True},
            {"id": 2, "name": "traffic_light", "isthing": True},
        ],
        "ignore_index": 0,
        "unseen_split": ["traffic_light"],
    }
    part = tmp_path / "part"
    (part / "images").mkdir(parents=True)
    (part / "labels").mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    maps = {"a": [[1, 1, 0], [7, 1, 7]], "b": [[2, 7, 7], [2, 0, 0]]}
    for stem, values in maps.items():
        Image.new("RGB", (3, 2), (10, 20, 30)).save(part / "images" / f"{stem}.png")
        Image.fromarray(np.array(values, np.uint8)).save(part / "labels" / f"{stem}.png")
    return part
