"""Score a checkpoint in Python: panoptic quality and mean IoU of one pass, by label and over all of them.

python examples/05_evaluate.py CHECKPOINT panoptic.json images --unseen cow zebra

`zsseg evaluate` does the same, and the protocols of the literature, on the command line.
"""

import argparse

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.data import CocoPanopticDataset, mark_unseen
from zsseg.training.evaluation import build_metric, score_predictions


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder, or name on the Hub")
    parser.add_argument("annotations", help="JSON in COCO's panoptic format, its PNGs beside it")
    parser.add_argument("images", help="folder of the pictures")
    parser.add_argument("--unseen", nargs="*", default=[], help="labels that training never showed")
    arguments = parser.parse_args()

    model = ConcatForPanopticSegmentation.from_pretrained(arguments.checkpoint)
    processor = ConcatProcessor.from_pretrained(arguments.checkpoint)
    dataset = CocoPanopticDataset(arguments.annotations, arguments.images)
    dataset.vocabulary = mark_unseen(dataset.vocabulary, arguments.unseen)

    # Metrics are sums by label: those of several machines add up with merge().
    metrics = {task: build_metric(task, dataset.vocabulary) for task in ("panoptic", "semantic")}
    seconds = score_predictions(model, processor, dataset, metrics=metrics)

    # Labels that do not occur are left out here; names that end in _all_classes count them as 0.
    figures = metrics["panoptic"].compute() | metrics["semantic"].compute()
    for name in ("PQ", "SQ", "RQ", "PQ_seen", "PQ_unseen", "hPQ", "mIoU", "hIoU"):
        if name in figures:
            print(f"{name:10}{100 * figures[name]:6.1f} %")
    print(f"{len(seconds)} pictures, {sum(seconds) / len(seconds):.2f} s each")

    per_class = metrics["panoptic"].compute_per_class()
    occurring = [name for name, each in per_class.items() if each["TP"] + each["FN"]]
    for name in sorted(occurring, key=lambda name: per_class[name]["PQ"])[:5]:
        print(f"hard: {name}, PQ {100 * per_class[name]['PQ']:.1f} %")


if __name__ == "__main__":
    main()
