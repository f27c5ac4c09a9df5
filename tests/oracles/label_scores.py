"""SCAN's scores of labels, number by number in float64."""

import numpy as np

from oracles.panoptic_merge import resize, sigmoid, softmax


def ensemble(class_logits, clip_logits, is_valid, weight):
    """(Q, K + 1) and (Q, K) → (Q, K) scores p_in^(1 − w) · p_out^w."""
    inside, outside = (
        softmax(np.asarray(class_logits, np.float64)),
        softmax(np.asarray(clip_logits, np.float64)),
    )
    scores = np.empty(clip_logits.shape)
    for query, label in np.ndindex(*scores.shape):
        seen = outside[query, label] if is_valid[query] else 1.0
        scores[query, label] = inside[query, label] ** (1 - weight) * seen**weight
    return scores


def renormalise_void(scores, class_logits):
    """Each query's scores summed to 1 − p(no-object)."""
    is_object = 1 - softmax(np.asarray(class_logits, np.float64))[:, -1]
    return scores / scores.sum(1, keepdims=True) * is_object[:, None]


def score_map(scores, mask_logits, target_size, valid_fraction=(1.0, 1.0)):
    """Σ_q S · sigmoid(mask): (Q, K) and (Q, h, w) → (K, H, W)."""
    masks = sigmoid(resize(mask_logits, target_size, valid_fraction))
    total = np.zeros((scores.shape[1], *target_size))
    for query_scores, mask in zip(scores, masks, strict=True):
        total += query_scores[:, None, None] * mask
    return total
