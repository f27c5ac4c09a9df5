"""A sample of real queries that a checkpoint carries, so that it adapts to new labels without an image."""

import torch
from torch import Tensor, nn

NO_OBJECT = -1
"""Marks a query that contains no segment."""


class QueryMemory(nn.Module):
    """Real queries of the training pictures and what they show; buffers, so that they are saved.

    Args:
        size: N, number of queries.
        query_dim: d.

    Attributes:
        queries: (N, d) float.
        label_ids: (N,) int64 into the checkpoint's known labels; ``NO_OBJECT`` for unmatched queries.
    """

    queries: Tensor
    label_ids: Tensor

    def __init__(self, size: int, query_dim: int) -> None:
        super().__init__()
        self.register_buffer("queries", torch.zeros(size, query_dim))
        self.register_buffer("label_ids", torch.full((size,), NO_OBJECT))


def sample_queries(
    queries: Tensor, label_ids: Tensor, size: int, *, matched_fraction: float = 0.6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw a sample in which every label has about as many queries.

    Args:
        queries: (M, d).
        label_ids: (M,) int64, ``NO_OBJECT`` where unmatched.
        size: N ≤ M, queries to keep.
        matched_fraction: share of matched queries, as far as there are so many.
        seed: of the draw.

    Returns:
        (N, d) queries and (N,) label ids.

    Raises:
        ValueError: if there are fewer than N queries.
    """
    if len(queries) < size:
        raise ValueError(f"a memory of {size} queries needs as many, got {len(queries)}: use more pictures")
    order = torch.randperm(len(label_ids), generator=torch.Generator().manual_seed(seed))
    shuffled = label_ids.cpu()[order]
    # The rank of each query among those of its label: taking low ranks first takes labels in turn.
    ranks = torch.empty_like(shuffled)
    for label_id in shuffled.unique():
        (places,) = torch.nonzero(shuffled == label_id, as_tuple=True)
        ranks[places] = torch.arange(len(places))
    is_matched = shuffled != NO_OBJECT
    by_rank = torch.argsort(ranks, stable=True)
    matched, unmatched = by_rank[is_matched[by_rank]], by_rank[~is_matched[by_rank]]
    num_matched = min(len(matched), max(round(size * matched_fraction), size - len(unmatched)))
    chosen = order[torch.cat([matched[:num_matched], unmatched[: size - num_matched]])].to(queries.device)
    return queries[chosen], label_ids[chosen]
