"""The page of this metric's Space."""

from zsseg.metrics.evaluate_modules.space import launch

EXAMPLE = {
    "predictions": [
        {
            "segmentation": [[1, 1, 2, 2], [1, 1, 2, 2]],
            "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 2}],
        }
    ],
    "references": [
        {
            "segmentation": [[1, 1, 1, 2], [1, 1, 2, 2]],
            "segments_info": [{"id": 1, "label_id": 0}, {"id": 2, "label_id": 1}],
        }
    ],
    "labels": ["car", "zebra", "road"],
    "stuff_labels": ["road"],
    "unseen_labels": ["zebra"],
    "per_class": True,
}

if __name__ == "__main__":
    launch(__file__, EXAMPLE)
