"""SCAN's layers over a sequence of one query: what is left of attention is two linear maps."""

import numpy as np


def layer_norm(vector, weight, bias):
    return (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5) * weight + bias


def refine(query, layers):
    """(D,) → (D,); ``layers`` holds the weights of each by PyTorch's names, in float64.

    A query that attends to itself alone takes its own value, whatever its key says.
    """
    for weights in layers:
        width = len(query)
        value = weights["self_attn.in_proj_weight"][2 * width :] @ query
        value = value + weights["self_attn.in_proj_bias"][2 * width :]
        attended = weights["self_attn.out_proj.weight"] @ value + weights["self_attn.out_proj.bias"]
        query = layer_norm(query + attended, weights["norm1.weight"], weights["norm1.bias"])
        hidden = np.maximum(weights["linear1.weight"] @ query + weights["linear1.bias"], 0)
        mapped = weights["linear2.weight"] @ hidden + weights["linear2.bias"]
        query = layer_norm(query + mapped, weights["norm2.weight"], weights["norm2.bias"])
    return query


def cross_attend(queries, memory, weights, num_heads):
    """(Q, D) queries + attention to (N, D) memory, query by query and head by head."""
    width = queries.shape[1]
    size = width // num_heads
    asked, keys, values = (
        rows @ weights["in_proj_weight"][part * width : (part + 1) * width].T
        + weights["in_proj_bias"][part * width : (part + 1) * width]
        for part, rows in enumerate((queries, memory, memory))
    )
    result = np.empty_like(queries)
    for query in range(len(queries)):
        heads = []
        for head in range(num_heads):
            own = slice(head * size, (head + 1) * size)
            likeness = keys[:, own] @ asked[query, own] / np.sqrt(size)
            shares = np.exp(likeness - likeness.max())
            heads.append(shares / shares.sum() @ values[:, own])
        result[query] = weights["out_proj.weight"] @ np.concatenate(heads) + weights["out_proj.bias"]
    return queries + result
