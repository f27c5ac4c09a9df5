"""Scored instance masks with whole boolean masks, in float64 NumPy."""

import numpy as np

from oracles.panoptic_merge import resize, sigmoid, softmax


def instances(
    class_logits,
    mask_logits,
    thing_label_ids,
    target_size=None,
    top_k=100,
    threshold=0.0,
    mask_threshold=0.5,
    valid_fraction=(1.0, 1.0),
):
    """(label, score, mask) with non-empty masks, best first."""
    probabilities = softmax(np.asarray(class_logits, dtype=np.float64))
    masks = sigmoid(resize(mask_logits, target_size or mask_logits.shape[1:], valid_fraction))
    pairs = [(q, label) for q in range(len(masks)) for label in sorted(thing_label_ids)]
    best = sorted(pairs, key=lambda pair: -probabilities[pair])[:top_k]
    found = []
    for query, label in sorted(best):
        mask = masks[query] >= mask_threshold
        if mask.any():
            score = probabilities[query, label] * masks[query][mask].mean()
            if score > threshold:
                found.append((label, score, mask))
    return sorted(found, key=lambda item: -item[1])


def decode_coco_counts(counts, size):
    """COCO's uncompressed run lengths, column-major, read one run at a time."""
    flat = []
    for position, length in enumerate(counts):
        flat += [position % 2 == 1] * int(length)
    return np.array(flat, dtype=bool).reshape(size, order="F")
