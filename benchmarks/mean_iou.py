"""Mean IoU against the arithmetic of ``evaluate``'s mean_iou, on one core.

    python benchmarks/mean_iou.py --peer <checkout of huggingface/evaluate>/metrics/mean_iou/mean_iou.py

``evaluate`` loads its metrics from the Hub, so the peer is given as a file; without it the script says so and
ends. Both run in turn in one process, and every repetition checks that they find the same IoU of each label.
Ragged boundaries give about 25 pixels a run, as CamVid's and COCO's maps have; noise is the worst case. Maps
are held as files store them: uint8 for 150 labels, uint16 for 847.
"""

import argparse
import csv
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from zsseg.metrics import MeanIoU
from zsseg.vocabulary import Vocabulary


def load_peer(path):
    spec = importlib.util.spec_from_file_location("evaluate_mean_iou", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smallest_dtype(num_labels):
    return np.uint8 if num_labels < 255 else np.uint16


def ignore_index_of(num_labels):
    """The largest value of the maps' type."""
    return int(np.iinfo(smallest_dtype(num_labels)).max)


def make_maps(num_images, num_labels, size, raggedness):
    """(predictions, targets): 20 regions around random sites, which lie a little beside in the prediction."""
    random = np.random.RandomState(0)
    predictions, targets = [], []
    for _ in range(num_images):
        sites = random.uniform((0, 0), size, (20, 2))
        labels = np.append(random.randint(0, num_labels, 19), ignore_index_of(num_labels))
        labels = labels.astype(smallest_dtype(num_labels))
        targets.append(labels[nearest_site(random, sites, size, raggedness)])
        labels[::5] = random.randint(0, num_labels, 4)
        labels[-1] = 0
        moved = sites + random.normal(0, 10, sites.shape)
        predictions.append(labels[nearest_site(random, moved, size, raggedness)])
    return predictions, targets


def nearest_site(random, sites, size, raggedness):
    rows, columns = np.mgrid[: size[0], : size[1]] + random.uniform(-raggedness, raggedness, (2, *size))
    return ((rows[..., None] - sites[:, 0]) ** 2 + (columns[..., None] - sites[:, 1]) ** 2).argmin(axis=-1)


def make_noise(num_images, num_labels, size):
    """A new label at every pixel: runs of one pixel, the worst case."""
    random = np.random.RandomState(0)
    predictions, targets = random.randint(0, num_labels, (2, num_images, *size)).astype(
        smallest_dtype(num_labels)
    )
    return list(predictions), list(targets)


def run_ours(predictions, targets, num_labels):
    vocabulary = Vocabulary.from_labels([str(i) for i in range(num_labels)])
    start = time.perf_counter()
    metric = MeanIoU(vocabulary, ignore_index=ignore_index_of(num_labels))
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update(prediction, target)
    iou = list(metric.compute_per_class().values())
    return time.perf_counter() - start, iou


def run_peer(peer, predictions, targets, num_labels):
    start = time.perf_counter()
    with np.errstate(invalid="ignore"):
        results = peer.mean_iou(predictions, targets, num_labels, ignore_index=ignore_index_of(num_labels))
    return time.perf_counter() - start, results["per_category_iou"]


def compare(peer, predictions, targets, num_labels, repeats):
    """Time both in turn; medians per image."""
    seconds = []
    for _ in range(repeats):
        our_seconds, our_iou = run_ours(predictions, targets, num_labels)
        their_seconds, their_iou = run_peer(peer, predictions, targets, num_labels)
        np.testing.assert_allclose(our_iou, their_iou, rtol=0, atol=1e-12)
        seconds.append((our_seconds, their_seconds))
    ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "zsseg_ms_per_image": round(1e3 * ours / len(targets), 3),
        "evaluate_ms_per_image": round(1e3 * theirs / len(targets), 3),
        "ratio": round(statistics.median(their / our for our, their in seconds), 2),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="evaluate's metrics/mean_iou/mean_iou.py")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    if arguments.peer is None:
        sys.exit("skipped: pass --peer with the path of mean_iou.py in a checkout of huggingface/evaluate")
    peer = load_peer(arguments.peer)
    size = tuple(arguments.size)
    rows = []
    for num_labels in (150, 847):
        cases = {
            "smooth": make_maps(arguments.images, num_labels, size, raggedness=0.0),
            "ragged": make_maps(arguments.images, num_labels, size, raggedness=2.0),
            "noise": make_noise(arguments.images, num_labels, size),
        }
        for name, maps in cases.items():
            medians = compare(peer, *maps, num_labels, arguments.repeats)
            rows.append({"labels": num_labels, "boundaries": name, **medians})
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
