"""Label scores at every pixel, in float64 NumPy, one query after the other."""

import numpy as np

from oracles.panoptic_merge import resize, sigmoid, softmax


def label_map(class_logits, mask_logits, target_size=None, valid_fraction=(1.0, 1.0), query_weights=None):
    probabilities = softmax(np.asarray(class_logits, dtype=np.float64))[:, :-1]
    masks = sigmoid(resize(mask_logits, target_size or mask_logits.shape[1:], valid_fraction))
    scores = np.zeros((probabilities.shape[1], *masks.shape[1:]))
    weights = np.ones(len(masks)) if query_weights is None else np.asarray(query_weights, np.float64)
    for weight, query_probabilities, mask in zip(weights, probabilities, masks, strict=True):
        scores += (query_probabilities * weight)[:, None, None] * mask
    return scores.argmax(0)
