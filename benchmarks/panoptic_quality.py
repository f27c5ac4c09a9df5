"""Panoptic quality against panopticapi on one core, in memory and with PNG decoding.

    PYTHONPATH=<checkout of cocodataset/panopticapi> python benchmarks/panoptic_quality.py --output FILE

The peer is not on PyPI; without it the script says so and ends. In memory, the peer's own loop runs on maps
that are already decoded to ids, so its arithmetic alone is timed. With PNG decoding, both read the same
files. Both run in turn in one process, and every repetition checks that they find the same averages. Ragged
boundaries give about 25 pixels a run, as CamVid's and COCO's maps have.
"""

import argparse
import contextlib
import csv
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from zsseg.metrics import PanopticQuality, coco_panoptic_quality
from zsseg.panoptic_format import write_panoptic_png
from zsseg.structures import PanopticSegmentation, SegmentInfo
from zsseg.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary(
    tuple(Category(f"category {i}", is_thing=i < 80, category_id=i + 1) for i in range(133))
)
CATEGORIES = [{"id": c.category_id, "name": c.name, "isthing": int(c.is_thing)} for c in VOCABULARY]


def make_segmentation(random, sites, label_ids, size, raggedness):
    """Each pixel belongs to the site nearest to a point up to ``raggedness`` pixels away; site 0 is void."""
    rows, columns = np.mgrid[: size[0], : size[1]] + random.uniform(-raggedness, raggedness, (2, *size))
    nearest = ((rows[..., None] - sites[:, 0]) ** 2 + (columns[..., None] - sites[:, 1]) ** 2).argmin(axis=-1)
    ids = random.randint(1, 2**23) + 4099 * np.arange(len(sites))
    ids[0] = 0
    areas = np.bincount(nearest.ravel(), minlength=len(sites))
    segments = tuple(
        SegmentInfo(
            int(ids[site]),
            int(label_ids[site]),
            isthing=VOCABULARY[label_ids[site]].is_thing,
            area=int(areas[site]),
            bbox=(0, 0, 1, 1),
        )
        for site in range(1, len(sites))
        if areas[site]
    )
    return PanopticSegmentation(ids[nearest].astype(np.int32), segments)


def make_pairs(num_pairs, num_segments, size, raggedness):
    """(prediction, target) pairs: the prediction's sites lie a little beside, every fifth label is wrong."""
    random = np.random.RandomState(0)
    pairs = []
    for _ in range(num_pairs):
        sites = random.uniform((0, 0), size, (num_segments + 1, 2))
        label_ids = random.choice(len(VOCABULARY), num_segments + 1, replace=False)
        target = make_segmentation(random, sites, label_ids, size, raggedness)
        label_ids[1::5] = (label_ids[1::5] + 1) % len(VOCABULARY)
        moved = sites + random.normal(0, 10, sites.shape)
        pairs.append((make_segmentation(random, moved, label_ids, size, raggedness), target))
    return pairs


def annotate(segmentations):
    """COCO annotations; image ids are positions in the list."""
    return [
        {
            "image_id": image_id,
            "file_name": f"{image_id}.png",
            "segments_info": [
                {"id": s.id, "category_id": VOCABULARY[s.label_id].category_id, "area": s.area, "iscrowd": 0}
                for s in segmentation.segments
            ],
        }
        for image_id, segmentation in enumerate(segmentations)
    ]


def write_files(folder, stem, segmentations):
    (folder / stem).mkdir()
    for image_id, segmentation in enumerate(segmentations):
        write_panoptic_png(folder / stem / f"{image_id}.png", segmentation.segment_ids)
    content = {"annotations": annotate(segmentations), "categories": CATEGORIES}
    (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder / f"{stem}.json"


def run_peer(peer, pairs, folders):
    """The peer's loop over one core's share of images, quietly; returns PQ, SQ, RQ."""
    categories = {category["id"]: category for category in CATEGORIES}
    predictions, targets = (annotate(maps) for maps in zip(*pairs, strict=True))
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        stat = peer.pq_compute_single_core(
            0, list(zip(targets, predictions, strict=True)), *folders, categories
        )
    seconds = time.perf_counter() - start
    results, _ = stat.pq_average(categories, isthing=None)
    return seconds, (results["pq"], results["sq"], results["rq"])


def run_peer_in_memory(peer, pairs):
    """The same with the peer's file and colour reading replaced by look-ups of decoded maps."""
    maps = {}
    for image_id, (prediction, target) in enumerate(pairs):
        maps[f"prediction/{image_id}.png"] = prediction.segment_ids
        maps[f"target/{image_id}.png"] = target.segment_ids
    with (
        mock.patch.object(peer, "Image", SimpleNamespace(open=maps.__getitem__)),
        mock.patch.object(peer, "rgb2id", lambda ids: ids),
    ):
        return run_peer(peer, pairs, ("target", "prediction"))


def run_ours_in_memory(pairs):
    start = time.perf_counter()
    metric = PanopticQuality(VOCABULARY)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return time.perf_counter() - start, averages(metric)


def run_ours_on_files(target_json, prediction_json):
    start = time.perf_counter()
    metric = coco_panoptic_quality(target_json, prediction_json)
    return time.perf_counter() - start, averages(metric)


def averages(metric):
    results = metric.compute()
    return results["PQ"], results["SQ"], results["RQ"]


def compare_both_ways(peer, pairs, repeats):
    """(name of the case, medians) in memory and with PNG decoding."""
    yield (
        "in memory",
        compare(
            lambda: run_ours_in_memory(pairs), lambda: run_peer_in_memory(peer, pairs), len(pairs), repeats
        ),
    )
    with tempfile.TemporaryDirectory() as temporary:
        predictions, targets = zip(*pairs, strict=True)
        target_json = write_files(Path(temporary), "target", targets)
        prediction_json = write_files(Path(temporary), "prediction", predictions)
        folders = (target_json.with_suffix(""), prediction_json.with_suffix(""))
        yield (
            "with PNG decoding",
            compare(
                lambda: run_ours_on_files(target_json, prediction_json),
                lambda: run_peer(peer, pairs, folders),
                len(pairs),
                repeats,
            ),
        )


def compare(ours, theirs, num_pairs, repeats):
    """Time both in turn; medians."""
    seconds = []
    for _ in range(repeats):
        (our_seconds, our_results), (their_seconds, their_results) = ours(), theirs()
        np.testing.assert_allclose(our_results, their_results, rtol=0, atol=1e-12)
        seconds.append((our_seconds, their_seconds))
    our_median, their_median = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "zsseg_pairs_per_s": round(num_pairs / our_median),
        "panopticapi_pairs_per_s": round(num_pairs / their_median),
        "ratio": round(statistics.median(their / our for our, their in seconds), 2),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    try:
        import panopticapi.evaluation as peer
    except ImportError:
        sys.exit(
            "skipped: panopticapi is not importable; put a checkout of cocodataset/panopticapi on PYTHONPATH"
        )

    rows = []
    for boundaries, raggedness in (("smooth", 0.0), ("ragged", 2.0)):
        pairs = make_pairs(arguments.pairs, arguments.segments, tuple(arguments.size), raggedness)
        for name, row in compare_both_ways(peer, pairs, arguments.repeats):
            rows.append({"case": f"{name}, {boundaries}", **row})
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
