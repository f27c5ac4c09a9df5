"""Query contrast and cycle loss of the cycle transition, query by query in float64."""

import math

from oracles.open_vocabulary import cosine


def query_contrast_loss(pseudo, targets, negatives, temperature, labels=None):
    """Mean over pseudo queries of −log of the positive's share of the exponentials."""
    losses = []
    for index, query in enumerate(pseudo):
        positive = math.exp(cosine(query, targets[index]) / temperature)
        others = [*negatives]
        if labels is not None:
            others += [
                target for target, label in zip(targets, labels, strict=True) if label != labels[index]
            ]
        normaliser = positive + sum(math.exp(cosine(query, other) / temperature) for other in others)
        losses.append(-math.log(positive / normaliser))
    return sum(losses) / len(losses)


def cycle_loss(class_logits, labels):
    """Mean of −log softmax at the label."""
    losses = []
    for row, label in zip(class_logits, labels, strict=True):
        largest = max(map(float, row))
        normaliser = sum(math.exp(float(logit) - largest) for logit in row)
        losses.append(math.log(normaliser) + largest - float(row[label]))
    return sum(losses) / len(losses)
