"""Maximum mean discrepancy between pseudo and real queries, the loss of moment matching generators."""

from collections.abc import Sequence

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
            # one group
            pseudo_shares = pseudo.new_full((len(pseudo), 1), 1 / len(pseudo))
            real_shares = real.new_full((len(real), 1), 1 / len(real))
        else:
            labels = _find_common_labels(pseudo_label_ids, real_label_ids)
            pseudo_shares = _compute_shares(pseudo_label_ids, labels, dtype)
            real_shares = _compute_shares(real_label_ids, labels, dtype)
        squared = (
            _average_kernels(pseudo, pseudo, pseudo_shares, pseudo_shares, sigmas)
            - 2 * _average_kernels(pseudo, real, pseudo_shares, real_shares, sigmas)
            + _average_kernels(real, real, real_shares, real_shares, sigmas)
        )
        return squared.clamp(min=SMALLEST_SQUARED_DISCREPANCY).sqrt().mean()


def _average_kernels(
    rows: Tensor, columns: Tensor, row_shares: Tensor, column_shares: Tensor, sigmas: Tensor
) -> Tensor:
    """The summed kernels of rows (M, d) with columns (N, d), averaged over the pairs of each group: (C,)."""
    half_squares = (rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)) / 2
    # −‖x − y‖² / 2 = x·y − ‖x‖² / 2 − ‖y‖² / 2, where rounding may leave a little more than zero.
    exponents = (rows @ columns.T - half_squares).clamp(max=0)
    kernels = (exponents / sigmas[:, None, None]).exp().sum(dim=0)
    return (row_shares * (kernels @ column_shares)).sum(dim=0)


def _find_common_labels(first: Tensor, second: Tensor) -> Tensor:
    labels = torch.unique(first)
    common = labels[torch.isin(labels, second)]
    if not len(common):
        raise ValueError(
            f"expected pseudo and real queries with labels in common, got {labels.tolist()} and "
            f"{torch.unique(second).tolist()}: generate pseudo queries for the labels of the real ones"
        )
    return common


def _compute_shares(label_ids: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """(M,) labels → (M, C): the share that each row has of each group; columns add up to one."""
    is_member = (label_ids[:, None] == labels).to(dtype)
    return is_member / is_member.sum(dim=0)


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
