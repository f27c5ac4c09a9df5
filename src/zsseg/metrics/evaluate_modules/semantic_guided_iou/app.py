"""The page of this metric's Space."""

from zsseg.metrics.evaluate_modules.space import launch

EXAMPLE = {
    "predictions": [[[0, 0, 0, 1]], [[2, 0], [1, 1]]],
    "references": [[[0, 0, 1, 1]], [[2, 2], [1, 1]]],
    "labels": ["chair", "armchair", "floor"],
    "stuff_labels": ["floor"],
    "parents": {"armchair": ["chair"]},
    "per_class": True,
}

if __name__ == "__main__":
    launch(__file__, EXAMPLE)
