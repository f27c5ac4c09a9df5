"""Maximum mean discrepancy between pseudo and real queries, the loss of moment matching generators."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
"""The σ of the summed kernels, as of PADing (arXiv:2306.11087)."""

SMALLEST_SQUARED_DISCREPANCY = 1e-12
"""Where the root is taken of no less: its slope is infinite at zero, and rounding may go below zero."""


def compute_moment_matching_loss(
    pseudo_queries: Tensor,
    real_queries: Tensor,
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    pseudo_label_ids: Tensor | None = None,
    real_label_ids: Tensor | None = None,
) -> Tensor:
    """How far the distribution of pseudo queries is from that of real ones.

    L = sqrt(Σ_σ Σ_ij s_i s_j k_σ(x_i, x_j)) over the M + N rows of both sides, with s = 1/M for pseudo and
    −1/N for real queries and k_σ(x, y) = exp(−‖x − y‖² / 2σ).

    Without labels the batch is one distribution: which pseudo query resembles which real one is left open.
    With labels each label is a distribution of its own, and L is the mean over the labels that both sides
    have; queries of other labels count for nothing.

    Computed in float32 (float64 for float64 queries), outside autocast. Gradients flow to both sides: detach
    the real queries if they have any.

    Args:
        pseudo_queries: (M, d).
        real_queries: (N, d).
        bandwidths: the σ, positive.
        pseudo_label_ids: (M,) int64, together with ``real_label_ids``.
        real_label_ids: (N,) int64.

    Returns:
        Scalar, at least 1e-6; there, where both sides hold the same queries, it has no gradient.

    Raises:
        ValueError: if a side is empty, shapes do not fit, only one side has labels, or no label is on both.

    Reference:
        Generative moment matching networks, Sec. 2 (arXiv:1502.02761). The loss per label is our choice.
    """
    _check_shapes(pseudo_queries, real_queries, pseudo_label_ids, real_label_ids)
    dtype = torch.promote_types(pseudo_queries.dtype, torch.float32)
    with torch.autocast(pseudo_queries.device.type, enabled=False):
        pseudo, real = pseudo_queries.to(dtype), real_queries.to(dtype)
        sigmas = pseudo.new_tensor(bandwidths)
        if pseudo_label_ids is None or real_label_ids is None:
            sides = [
                _Groups(each[None], each.new_full((1, len(each)), 1 / len(each))) for each in (pseudo, real)
            ]
        else:
            labels = _find_common_labels(pseudo_label_ids, real_label_ids)
            sides = [
                _group_by_label(each, label_ids, labels)
                for each, label_ids in ((pseudo, pseudo_label_ids), (real, real_label_ids))
            ]
        # (C, m + n, d) and s, (C, m + n)
        queries = torch.cat([side.queries for side in sides], dim=1)
        signed_shares = torch.cat([sides[0].shares, -sides[1].shares], dim=1)
        squared = torch.einsum("cm,cmn,cn->c", signed_shares, _sum_kernels(queries, sigmas), signed_shares)
        return squared.clamp(min=SMALLEST_SQUARED_DISCREPANCY).sqrt().mean()


class _Groups(NamedTuple):
    """Queries label by label, padded to the largest group: labels have nothing to do with each other.

    Attributes:
        queries: (C, n, d).
        shares: (C, n), what each query counts in its group; 0 where padded.
    """

    queries: Tensor
    shares: Tensor


def _group_by_label(queries: Tensor, label_ids: Tensor, labels: Tensor) -> _Groups:
    """(M, d) queries of (M,) labels → the groups of the C rising ``labels``; other queries are left out."""
    groups = torch.searchsorted(labels, label_ids).clamp(max=len(labels) - 1)
    is_member = labels[groups] == label_ids
    groups, order = groups[is_member].sort(stable=True)
    members = queries[is_member][order]
    counts = torch.bincount(groups, minlength=len(labels))
    places = torch.arange(len(groups), device=groups.device) - (counts.cumsum(0) - counts)[groups]
    size = (len(labels), int(counts.max()))
    shares = members.new_zeros(size).index_put((groups, places), 1 / counts[groups].to(members.dtype))
    return _Groups(members.new_zeros(*size, members.shape[1]).index_put((groups, places), members), shares)


def _sum_kernels(queries: Tensor, sigmas: Tensor) -> Tensor:
    """(C, n, d) queries → (C, n, n): Σ_σ k_σ of every pair of a group."""
    half_squares = queries.square().sum(dim=2) / 2
    # −‖x − y‖² / 2 = x·y − ‖x‖² / 2 − ‖y‖² / 2, where rounding may leave a little more than zero.
    products = queries @ queries.transpose(1, 2)
    exponents = (products - half_squares[:, :, None] - half_squares[:, None]).clamp(max=0)
    return (exponents / sigmas[:, None, None, None]).exp().sum(dim=0)


def _find_common_labels(first: Tensor, second: Tensor) -> Tensor:
    labels = torch.unique(first)
    common = labels[torch.isin(labels, second)]
    if not len(common):
        raise ValueError(
            f"expected pseudo and real queries with labels in common, got {labels.tolist()} and "
            f"{torch.unique(second).tolist()}: generate pseudo queries for the labels of the real ones"
        )
    return common


def _check_shapes(
    pseudo_queries: Tensor,
    real_queries: Tensor,
    pseudo_label_ids: Tensor | None,
    real_label_ids: Tensor | None,
) -> None:
    if pseudo_queries.ndim != 2 or real_queries.ndim != 2 or pseudo_queries.shape[1] != real_queries.shape[1]:
        raise ValueError(
            "pseudo and real queries must be (M, d) and (N, d) of one width d, got "
            f"{tuple(pseudo_queries.shape)} and {tuple(real_queries.shape)}"
        )
    if not len(pseudo_queries) or not len(real_queries):
        raise ValueError(
            f"expected at least one pseudo and one real query, got {len(pseudo_queries)} and "
            f"{len(real_queries)}: leave out batches without segments"
        )
    if (pseudo_label_ids is None) != (real_label_ids is None):
        missing = "pseudo_label_ids" if pseudo_label_ids is None else "real_label_ids"
        raise ValueError(f"the loss per label needs labels of both sides, but {missing} is missing")
    if pseudo_label_ids is not None and real_label_ids is not None:
        counts = (len(pseudo_queries),), (len(real_queries),)
        if (pseudo_label_ids.shape, real_label_ids.shape) != counts:
            raise ValueError(
                f"expected one label per query, {counts[0]} and {counts[1]}, got "
                f"{tuple(pseudo_label_ids.shape)} and {tuple(real_label_ids.shape)}"
            )
