"""Reports of `zsseg evaluate` that nothing was measured for."""

from zsseg import ConcatForPanopticSegmentation
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.training.evaluation_report import EvaluatedModel, EvaluationReport

AVERAGES = {
    "PQ": 0.412,
    "PQ_all_classes": 0.401,
    "SQ": 0.811,
    "RQ": 0.523,
    "PQ_th": 0.307,
    "PQ_st": 0.618,
    "PQ_seen": 0.456,
    "PQ_unseen": 0.289,
    "PQ_unseen_th": None,
    "hPQ": 0.354,
    "hPQ_present_classes": 0.3538,
    "seconds_per_image": 0.0421,
}
PER_CLASS = {
    "road": {"PQ": 0.612, "SQ": 0.8, "RQ": 0.765, "TP": 12, "FP": 3, "FN": 1},
    "car": {"PQ": 0.289, "SQ": 0.7, "RQ": 0.413, "TP": 4, "FP": 6, "FN": 5},
    "tree": {"PQ": None, "SQ": None, "RQ": None, "TP": 0, "FP": 0, "FN": 0},
}


def compute_digest(checkpoint):
    return compute_weights_digest(ConcatForPanopticSegmentation.from_pretrained(checkpoint))


def build_evaluation_report(weights_digest, **changes):
    content = {
        "command": "zsseg evaluate --coco-panoptic /data/street/val.json --model /home/somebody/runs/best",
        "machine": "Some CPU, 2 threads",
        "zsseg": "0.1.0",
        "model": EvaluatedModel("best", "zsseg-concat", 12_345, weights_digest),
        "protocol": "own",
        "dataset": "street",
        "tasks": ["panoptic"],
        "num_images": 7,
        "labels": ["road", "car", "tree"],
        "unseen_labels": ["car"],
        "label_names": "clean",
        "thresholds": {"threshold": 0.8, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.8},
        "averages": AVERAGES,
        "per_class": PER_CLASS,
    }
    return EvaluationReport(**{**content, **changes})


def write_evaluation(path, checkpoint, **changes):
    build_evaluation_report(compute_digest(checkpoint), **changes).save(path)
    return path
