"""SG-IoU from a confusion matrix, label by label, as the definition reads."""

import numpy as np


def iou_and_guided_iou(matrix, parents):
    """IoU and SG-IoU of each label; None where a label is neither predicted nor true.

    Args:
        matrix: (K + 1, K + 1) pixels; rows are predictions, the last one pixels without a label; columns are
            targets, the last one ignored pixels.
        parents: label id → label ids of its parents.
    """
    known = np.asarray(matrix, dtype=float)[:, :-1]
    num_labels = known.shape[1]
    predicted = known.sum(axis=1)
    true = known.sum(axis=0)
    plain, guided = [], []
    for label in range(num_labels):
        hits = known[label, label]
        union = true[label] + predicted[label] - hits
        if union == 0:
            plain.append(None)
            guided.append(None)
            continue
        credit = hits
        for parent in parents.get(label, ()):
            share = 1.0
            if predicted[parent] > 0:
                share = (known[parent, label] + known[parent, parent]) / predicted[parent]
            credit += known[parent, label] * share
        plain.append(hits / union)
        guided.append(credit / union)
    return plain, guided
