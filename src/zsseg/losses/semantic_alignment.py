"""What PADing asks of its primitive generator beside moment matching (arXiv:2306.11087).

A pseudo query is taken apart into a part related to the text and an unrelated one. Related parts must
resemble each other as the texts do, and tell which text they belong to; unrelated parts must look like noise;
both together must give the query back. Where the paper leaves a formula open, it follows the official code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_softmax_divergence(predictions: Tensor, targets: Tensor, *, temperature: float = 0.1) -> Tensor:
    """KL(softmax(targets / T) ‖ softmax(predictions / T)) over rows, divided by the number of elements.

    Gradients flow to both sides. Computed in float32 (float64 for float64 predictions), outside autocast.

    Args:
        predictions: (M, N).
        targets: (M, N).
        temperature: T.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: if the shapes differ or there is no row.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape or not predictions.numel():
        raise ValueError(
            "predictions and targets must both be (M, N), M and N at least 1, got "
            f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    with torch.autocast(predictions.device.type, enabled=False):
        predicted = torch.log_softmax(predictions.to(dtype) / temperature, dim=1)
        wanted = torch.log_softmax(targets.to(dtype) / temperature, dim=1)
        return F.kl_div(predicted, wanted, reduction="sum", log_target=True) / predictions.numel()


def compute_semantic_alignment_loss(
    first_queries: Tensor,
    second_queries: Tensor,
    first_embeds: Tensor,
    second_embeds: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Teach queries to resemble each other as their texts do.

    The softmax divergence of pairwise cosines: those of the queries as predictions, those of the texts as
    targets. Gradients flow to both.

    Args:
        first_queries: (M, d), any norm.
        second_queries: (N, d); the same as the first, or those of other labels.
        first_embeds: (M, e) text embeddings of the first queries.
        second_embeds: (N, e) text embeddings of the second queries.
        temperature: of the softmax over a row of cosines.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: if there is not one text per query.
    """
    return compute_softmax_divergence(
        _compute_cosines(first_queries, second_queries),
        _compute_cosines(first_embeds, second_embeds),
        temperature=temperature,
    )


def compute_relation_loss(relation_logits: Tensor, label_ids: Tensor) -> Tensor:
    """Cross-entropy of sigmoid relation scores: which text does a query belong to?

    Scores lie in (0, 1), so the loss of K texts stays above log(1 + (K − 1) / e).

    Args:
        relation_logits: (N, K) before the sigmoid.
        label_ids: (N,) int64 in [0, K).

    Returns:
        Scalar.
    """
    return F.cross_entropy(relation_logits.float().sigmoid(), label_ids)


def _compute_cosines(first: Tensor, second: Tensor) -> Tensor:
    """(M, d) and (N, d) → (M, N); in float32 at least, as T = 0.1 enlarges errors tenfold."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        return F.normalize(first.to(dtype), dim=1) @ F.normalize(second.to(dtype), dim=1).T
