import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zsseg.data.examples import measure_segments
from zsseg.data.segment_crops import crop_segment
from zsseg.postprocessing.panoptic import merge_panoptic
from zsseg.structures import SegmentInfo

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crop_and_classify.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_crops_are_those_of_the_package_where_nothing_is_resized(script):
    """A square of the crop's size, one that leaves the picture's edge to plain ground, and no mask at all."""
    pixels = np.random.default_rng(0).integers(1, 256, (32, 48, 3), dtype=np.uint8)
    is_mask = np.zeros((3, 32, 48), dtype=bool)
    is_mask[0, 4:20, 8:24] = True
    is_mask[0, 4:8, 8:12] = False
    is_mask[1, 0:8, 32:48] = True
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float()
    mask_logits = torch.from_numpy(np.where(is_mask, 5.0, -5.0)).float()
    crops = script["crop_masks"](picture, mask_logits, 16)
    for crop, mask in zip(crops, is_mask[:2].astype(np.int32), strict=False):
        extent = measure_segments(mask)[1]
        segment = SegmentInfo(id=1, label_id=0, isthing=True, area=extent.area, bbox=extent.bbox)
        expected = crop_segment(pixels, mask, segment, size=16, fill_color=(0, 0, 0))
        np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), expected, atol=1e-2)
    assert not crops[2].any()


def test_drawn_logits_keep_twenty_queries(script):
    class_logits, mask_logits = script["draw_logits"](100, 133, 40, torch.Generator().manual_seed(0))
    assert class_logits.shape == (100, 134)
    assert mask_logits.shape == (100, 40, 40)
    things_alone = merge_panoptic(class_logits, mask_logits, stuff_label_ids=())
    assert 15 <= len(things_alone.segments) <= 20
    assert (things_alone.segment_ids > 0).mean() > 0.8


def test_a_row_for_each_number_of_crops(monkeypatch, tmp_path, capsys):
    output = tmp_path / "results" / "times.csv"
    options = ["--tiny", "--size", "64", "--rounds", "1", "--crops", "3", "1", "--devices", "cpu"]
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        sys, "argv", ["crop_and_classify.py", *options, "--threads", str(threads), "--output", str(output)]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["crops"] for row in rows] == ["3", "1"]
    for row in rows:
        assert float(row["concat_seconds"]) > 0
        assert float(row["crop_and_classify_seconds"]) > 0
        shares = [float(row[f"{part}_percent"]) for part in ("segmentor", "crops", "tower", "merge")]
        assert sum(shares) == pytest.approx(100, abs=0.3)
    assert "round 1/1: CONCAT" in capsys.readouterr().out
