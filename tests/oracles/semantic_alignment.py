"""PADing's losses, row by row in float64 (arXiv:2306.11087)."""

import math

import numpy as np

from oracles.open_vocabulary import cosine


def softmax(row):
    exponentials = [math.exp(float(value) - float(max(row))) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def softmax_divergence(predictions, targets, temperature=0.1):
    """Sum over rows of Σ p log(p / q), p of the targets and q of the predictions, over the elements."""
    total = 0.0
    for predicted_row, target_row in zip(predictions, targets, strict=True):
        wanted = softmax(np.float64(target_row) / temperature)
        predicted = softmax(np.float64(predicted_row) / temperature)
        total += sum(p * math.log(p / q) for p, q in zip(wanted, predicted, strict=True) if p > 0)
    return total / np.size(predictions)


def cosines(first, second):
    return np.array([[cosine(row, column) for column in second] for row in first])


def semantic_alignment_loss(first_queries, second_queries, first_texts, second_texts, temperature=0.1):
    """Divergence of the cosines of queries from those of their texts."""
    return softmax_divergence(
        cosines(first_queries, second_queries), cosines(first_texts, second_texts), temperature
    )


def relation_loss(logits, labels):
    """Cross-entropy whose logits are themselves sigmoids."""
    losses = [
        -math.log(softmax([1 / (1 + math.exp(-float(logit))) for logit in row])[label])
        for row, label in zip(logits, labels, strict=True)
    ]
    return sum(losses) / len(losses)


def relation_logits(related, texts, first_weight, first_bias, second_weight, second_bias):
    """Relation network on the concatenation of every query's part with every text."""
    logits = np.zeros((len(related), len(texts)))
    for row, part in enumerate(related):
        for column, text in enumerate(texts):
            hidden = np.maximum(first_weight @ np.concatenate([part, text]) + first_bias, 0)
            logits[row, column] = float((second_weight @ hidden + second_bias).item())
    return logits
