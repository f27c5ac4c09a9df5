"""Panoptic quality from boolean masks, one pair of segments at a time (arXiv:1801.00868, Sec. 4)."""

import numpy as np


def match_one_image(prediction_ids, prediction_segments, target_ids, target_segments, num_labels):
    """Per label (sum of IoU, TP, FP, FN); segments are dicts with id, label_id and, in targets, iscrowd."""
    counts = [[0.0, 0, 0, 0] for _ in range(num_labels)]
    is_void = target_ids == 0
    matched_predictions, matched_targets = [], []
    for target in target_segments:
        for prediction in prediction_segments:
            if target["iscrowd"] or target["label_id"] != prediction["label_id"]:
                continue
            target_mask = target_ids == target["id"]
            prediction_mask = (prediction_ids == prediction["id"]) & ~is_void
            iou = np.sum(target_mask & prediction_mask) / np.sum(target_mask | prediction_mask)
            if iou > 0.5:
                counts[target["label_id"]][0] += iou
                counts[target["label_id"]][1] += 1
                matched_targets.append(target["id"])
                matched_predictions.append(prediction["id"])
    for prediction in prediction_segments:
        if prediction["id"] in matched_predictions:
            continue
        ignored = is_void.copy()
        crowds = [t for t in target_segments if t["iscrowd"] and t["label_id"] == prediction["label_id"]]
        for crowd in crowds[-1:]:
            ignored |= target_ids == crowd["id"]
        prediction_mask = prediction_ids == prediction["id"]
        if 2 * np.sum(prediction_mask & ignored) <= np.sum(prediction_mask):
            counts[prediction["label_id"]][2] += 1
    for target in target_segments:
        if not target["iscrowd"] and target["id"] not in matched_targets:
            counts[target["label_id"]][3] += 1
    return counts


def average(counts, label_ids, *, skip_absent):
    """(PQ, SQ, RQ) averaged over these labels; None if no label is left."""
    figures = []
    for label_id in label_ids:
        iou_sum, tp, fp, fn = counts[label_id]
        if tp + fp + fn == 0:
            if not skip_absent:
                figures.append((0.0, 0.0, 0.0))
            continue
        recognition = tp / (tp + fp / 2 + fn / 2)
        segmentation = iou_sum / tp if tp else 0.0
        figures.append((segmentation * recognition, segmentation, recognition))
    if not figures:
        return None
    return tuple(sum(column) / len(figures) for column in zip(*figures, strict=True))
