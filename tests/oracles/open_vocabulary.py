"""Classification by text, pair by pair in float64."""

import math

import numpy as np


def cosine(first, second):
    dot = sum(float(a) * float(b) for a, b in zip(first, second, strict=True))
    norms = math.sqrt(sum(float(a) ** 2 for a in first)) * math.sqrt(sum(float(b) ** 2 for b in second))
    return dot / norms


def class_logits(semantic_embeds, text_embeds, text_label_ids, no_object_embedding, logit_scale):
    """(Q, D) and (T, D) → (Q, K + 1)."""
    num_labels = max(text_label_ids) + 1
    logits = np.full((len(semantic_embeds), num_labels + 1), -np.inf)
    for query, semantic in enumerate(semantic_embeds):
        for text, label in zip(text_embeds, text_label_ids, strict=True):
            logits[query, label] = max(logits[query, label], logit_scale * cosine(semantic, text))
        logits[query, num_labels] = logit_scale * cosine(semantic, no_object_embedding)
    return logits


def average_prompts(prompt_embeds):
    """(P, D) → (D,): each to unit norm, their mean to unit norm."""
    units = [vector / math.sqrt(sum(float(x) ** 2 for x in vector)) for vector in np.float64(prompt_embeds)]
    mean = sum(units) / len(units)
    return mean / math.sqrt(sum(float(x) ** 2 for x in mean))
