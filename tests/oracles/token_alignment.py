"""The two losses of conditional token alignment, written out image by image and pair by pair."""

import numpy as np


def unit(vector):
    return np.asarray(vector, np.float64) / np.linalg.norm(vector)


def minus_log_share(positive, negatives):
    return -np.log(np.exp(positive) / (np.exp(positive) + sum(np.exp(value) for value in negatives)))


def global_alignment(queries, tokens, names, bank, query_temperature, temperature):
    """``bank``: pairs (token, name of its image)."""
    losses = []
    for image, (image_queries, token, name) in enumerate(zip(queries, tokens, names, strict=True)):
        weights = [np.exp(unit(token) @ unit(query) / query_temperature) for query in image_queries]
        average = sum(
            weight / sum(weights) * unit(query) for weight, query in zip(weights, image_queries, strict=True)
        )
        others = [(tokens[other], names[other]) for other in range(len(tokens)) if other != image] + list(
            bank
        )
        negatives = [
            unit(average) @ unit(other) / temperature for other, other_name in others if other_name != name
        ]
        losses.append(minus_log_share(unit(average) @ unit(token) / temperature, negatives))
    return np.mean(losses)


def instance_alignment(queries, tokens, labels, temperature):
    def one_way(anchors, others):
        losses = []
        for anchor, label in zip(anchors, labels, strict=True):
            shares = [np.exp(unit(anchor) @ unit(other) / temperature) for other in others]
            positives = [
                -np.log(share / sum(shares))
                for share, other_label in zip(shares, labels, strict=True)
                if other_label == label
            ]
            losses.append(np.mean(positives))
        return np.mean(losses)

    return (one_way(queries, tokens) + one_way(tokens, queries)) / 2
