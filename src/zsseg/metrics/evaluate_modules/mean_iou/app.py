"""The page of this metric's Space."""

from zsseg.metrics.evaluate_modules.space import launch

EXAMPLE = {
    "predictions": [[[0, 0, 1, 1]], [[2, 2], [1, 1]]],
    "references": [[[0, 1, 1, 255]], [[2, 2], [2, 1]]],
    "labels": ["road", "car", "zebra"],
    "stuff_labels": ["road"],
    "unseen_labels": ["zebra"],
    "per_class": True,
}

if __name__ == "__main__":
    launch(__file__, EXAMPLE)
