"""The two ways of CONCAT's cycle transition beside moment matching (arXiv:2402.13697).

Semantic → vision: the query contrast pulls a pseudo query to a real one of its label and away from queries
that show nothing. Vision → semantic: by the cycle loss, the projector finds the text that a pseudo query was
drawn for. The formulas are choices of ours where the paper is silent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_query_contrast_loss(
    pseudo_queries: Tensor,
    target_queries: Tensor,
    negative_queries: Tensor,
    *,
    temperature: float = 0.07,
    label_ids: Tensor | None = None,
) -> Tensor:
    """InfoNCE of each pseudo query with its target against queries without segments, by cosine.

    −log(e^{cos(q̃_i, q_i) / τ} / (e^{cos(q̃_i, q_i) / τ} + Σ_n e^{cos(q̃_i, q_n) / τ})), averaged over i. With
    labels, n also runs over the targets of other labels; another target of the same label is neither positive
    nor negative.

    Computed in float32 (float64 for float64 queries), outside autocast. Gradients flow to all three: detach
    targets and negatives if they have any.

    Args:
        pseudo_queries: (N, d), any norm.
        target_queries: (N, d), a real query of each pseudo query's label, matched with a segment.
        negative_queries: (M, d) real queries matched with no segment; M may be 0.
        temperature: τ.
        label_ids: (N,) int64 label of each pair; None leaves the other targets out.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: if there is no pair or shapes do not fit.
    """
    _check_shapes(pseudo_queries, target_queries, negative_queries, label_ids)
    dtype = torch.promote_types(pseudo_queries.dtype, torch.float32)
    with torch.autocast(pseudo_queries.device.type, enabled=False):
        pseudo, targets, negatives = (
            F.normalize(queries.to(dtype), dim=1)
            for queries in (pseudo_queries, target_queries, negative_queries)
        )
        positive = (pseudo * targets).sum(dim=1, keepdim=True)
        cosines = [positive, pseudo @ negatives.T]
        if label_ids is not None:
            is_same_label = label_ids[:, None] == label_ids
            cosines.append((pseudo @ targets.T).masked_fill(is_same_label, -torch.inf))
        # (N, 1 + M) or (N, 1 + M + N), the positive in front
        logits = torch.cat(cosines, dim=1) / temperature
        return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def compute_cycle_loss(class_logits: Tensor, label_ids: Tensor) -> Tensor:
    """Cross-entropy of pseudo queries that the frozen projector names.

    Args:
        class_logits: (N, K) or (N, K + 1) cosine logits γ · cos(P(q̃), t), with or without a no-object column;
            P frozen, so that gradients pass through it to the generator alone.
        label_ids: (N,) int64 in [0, K), the label whose text each pseudo query was drawn for.

    Returns:
        Scalar, at least 0, in float32 (float64 for float64 logits).
    """
    dtype = torch.promote_types(class_logits.dtype, torch.float32)
    return F.cross_entropy(class_logits.to(dtype), label_ids)


def _check_shapes(
    pseudo_queries: Tensor, target_queries: Tensor, negative_queries: Tensor, label_ids: Tensor | None
) -> None:
    if pseudo_queries.ndim != 2 or not len(pseudo_queries) or target_queries.shape != pseudo_queries.shape:
        raise ValueError(
            "expected one target for each pseudo query, both (N, d) with N at least 1, got "
            f"{tuple(pseudo_queries.shape)} and {tuple(target_queries.shape)}"
        )
    width = pseudo_queries.shape[1]
    if negative_queries.ndim != 2 or negative_queries.shape[1] != width:
        raise ValueError(f"negative_queries must be (M, {width}), got {tuple(negative_queries.shape)}")
    if label_ids is not None and label_ids.shape != (len(pseudo_queries),):
        raise ValueError(
            f"expected one label for each of {len(pseudo_queries)} pairs, got {tuple(label_ids.shape)}"
        )
