"""Mask2Former's training loss in plain NumPy, float64, one image, query and target at a time.

Written from the papers (arXiv:2112.01527, Sec. 3.3; arXiv:2107.06278, Sec. 3.3): slow, and matched by trying
every assignment.
"""

from itertools import permutations

import numpy as np


def read_at_points(values, points):
    """Bilinear values (P,) of one map (H, W): tent functions around pixel centres, edges repeated."""
    height, width = values.shape
    tents = []
    for size, coordinate in ((height, points[:, 1]), (width, points[:, 0])):
        position = np.clip(coordinate.astype(np.float64) * size - 0.5, 0, size - 1)
        tents.append(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size))))
    return np.array([row @ values.astype(np.float64) @ column for row, column in zip(*tents, strict=True)])


def is_valid_at_points(label_mask, points):
    """Whether each point lies between labelled pixels only."""
    height, width = label_mask.shape
    valid = []
    for x, y in points.astype(np.float64):
        column, row = np.clip(x * width - 0.5, 0, width - 1), np.clip(y * height - 0.5, 0, height - 1)
        rows = slice(int(row), int(row) + 2)
        columns = slice(int(column), int(column) + 2)
        valid.append(bool(label_mask[rows, columns].all()))
    return np.array(valid, dtype=bool)


def cross_entropy(logits, targets, valid):
    """Mean binary cross-entropy over valid points."""
    if not valid.any():
        return 0.0
    x, t = logits[valid], targets[valid]
    return float(np.mean(t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)))


def dice(logits, targets, valid):
    """One minus the smoothed dice coefficient over valid points."""
    p, t = 1 / (1 + np.exp(-logits[valid])), targets[valid]
    return float(1 - (2 * np.sum(p * t) + 1) / (np.sum(p) + np.sum(t) + 1))


def cheapest_assignment(costs):
    """(query, target) pairs of the smallest total cost, by trying all; sorted by query."""
    num_queries, num_targets = costs.shape
    best, best_cost = [], np.inf
    if num_targets <= num_queries:
        candidates = (
            list(zip(queries, range(num_targets), strict=True))
            for queries in permutations(range(num_queries), num_targets)
        )
    else:
        candidates = (
            list(zip(range(num_queries), targets, strict=True))
            for targets in permutations(range(num_targets), num_queries)
        )
    for pairs in candidates:
        cost = sum(costs[pair] for pair in pairs)
        if cost < best_cost:
            best, best_cost = pairs, cost
    return sorted(best)


def softmax(logits):
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def set_criterion(
    class_logits,
    mask_logits,
    mask_labels,
    class_labels,
    label_mask,
    matching_points,
    candidates,
    uniform,
    num_uncertain,
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.1,
    ignore_unknown_queries=False,
):
    """Loss, unweighted terms per layer, and matches per layer and image; inputs are NumPy arrays."""
    num_masks = max(1, sum(len(labels) for labels in class_labels))
    terms, matches = [], []
    for layer_classes, layer_masks in zip(class_logits, mask_logits, strict=True):
        no_object = layer_classes.shape[-1] - 1
        weighted, weight_sum, mask_term, dice_term = 0.0, 0.0, 0.0, 0.0
        layer_matches = []
        for image, labels in enumerate(class_labels):
            queries = layer_masks[image].astype(np.float64)
            targets = [mask.astype(np.float64) for mask in mask_labels[image]]
            probabilities = softmax(layer_classes[image].astype(np.float64))

            def valid_at(points, image=image):
                if label_mask is None:
                    return np.ones(len(points), dtype=bool)
                return is_valid_at_points(label_mask[image], points)

            valid = valid_at(matching_points)
            costs = np.zeros((len(queries), len(targets)))
            for q, query in enumerate(queries):
                for t, target in enumerate(targets):
                    x, y = read_at_points(query, matching_points), read_at_points(target, matching_points)
                    costs[q, t] = (
                        mask_weight * cross_entropy(x, y, valid)
                        + dice_weight * dice(x, y, valid)
                        - class_weight * probabilities[q, labels[t]]
                    )
            pairs = cheapest_assignment(costs)
            layer_matches.append(pairs)

            learned = dict(pairs)
            for q in range(len(queries)):
                inside = read_at_points(queries[q], matching_points) > 0
                if (
                    ignore_unknown_queries
                    and q not in learned
                    and 2 * np.sum(inside & ~valid) > np.sum(inside)
                ):
                    continue
                label = labels[learned[q]] if q in learned else no_object
                weight = no_object_weight if label == no_object else 1.0
                weighted -= weight * np.log(probabilities[q, label])
                weight_sum += weight

            for q, t in pairs:
                certainty = np.abs(read_at_points(queries[q], candidates))
                certainty[~valid_at(candidates)] = np.inf
                uncertain = candidates[np.argsort(certainty, kind="stable")[:num_uncertain]]
                points = np.concatenate((uncertain, uniform))
                x, y = read_at_points(queries[q], points), read_at_points(targets[t], points)
                mask_term += cross_entropy(x, y, valid_at(points)) / num_masks
                dice_term += dice(x, y, valid_at(points)) / num_masks
        terms.append((weighted / weight_sum if weight_sum else 0.0, mask_term, dice_term))
        matches.append(layer_matches)
    loss = sum(class_weight * c + mask_weight * m + dice_weight * d for c, m, d in terms)
    return loss, terms, matches
