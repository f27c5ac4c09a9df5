"""The panoptic merge of MaskFormer's Sec. 3.4, pixel by pixel over all queries, in float64 NumPy."""

import numpy as np


def sample_positions(samples, pixels, valid_fraction):
    position = (np.arange(pixels) + 0.5) * valid_fraction * samples / pixels - 0.5
    position = np.clip(position, 0, samples - 1)
    lower = np.floor(position).astype(int)
    return lower, np.minimum(lower + 1, samples - 1), position - lower


def resize(mask_logits, target_size, valid_fraction=(1.0, 1.0)):
    """(Q, h, w) → (Q, H, W): first along the row, then between rows."""
    masks = np.asarray(mask_logits, dtype=np.float32).astype(np.float64)
    top, bottom, down = sample_positions(masks.shape[1], target_size[0], valid_fraction[0])
    left, right, along = sample_positions(masks.shape[2], target_size[1], valid_fraction[1])
    wide = masks[:, :, left] + (masks[:, :, right] - masks[:, :, left]) * along
    return wide[:, top] + (wide[:, bottom] - wide[:, top]) * down[:, None]


def sigmoid(logits):
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-logits))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def merge(
    class_logits,
    mask_logits,
    stuff_label_ids,
    target_size=None,
    threshold=0.8,
    mask_threshold=0.5,
    overlap=0.8,
    valid_fraction=(1.0, 1.0),
):
    """The map and a list of dicts: id, label_id, area, bbox, score."""
    class_probabilities = softmax(np.asarray(class_logits, dtype=np.float64))
    target_size = target_size or mask_logits.shape[1:]
    no_object = class_probabilities.shape[1] - 1
    labels, scores = class_probabilities.argmax(1), class_probabilities.max(1)
    kept = [q for q in range(len(labels)) if labels[q] != no_object and scores[q] > threshold]
    result = np.zeros(target_size, dtype=np.int32)
    segments = []
    if not kept:
        return result, segments
    probabilities = sigmoid(resize(mask_logits[kept], target_size, valid_fraction))
    winner = (scores[kept][:, None, None] * probabilities).argmax(0)
    parts = {}
    for i, q in enumerate(kept):
        own = probabilities[i] >= mask_threshold
        won = winner == i
        painted = won & own
        if not painted.any() or won.sum() / own.sum() < overlap:
            continue
        label = int(labels[q])
        shared = [s for s in segments if s["label_id"] == label and label in stuff_label_ids]
        if shared:
            segment = shared[0]
        else:
            segment = {"id": len(segments) + 1, "label_id": label}
            segments.append(segment)
        result[painted] = segment["id"]
        parts.setdefault(segment["id"], []).append((int(painted.sum()), float(scores[q])))
    for segment in segments:
        ys, xs = np.nonzero(result == segment["id"])
        segment["area"] = len(ys)
        segment["bbox"] = (
            int(xs.min()),
            int(ys.min()),
            int(xs.max() - xs.min()) + 1,
            int(ys.max() - ys.min()) + 1,
        )
        segment["score"] = max(parts[segment["id"]])[1]
    return result, segments
