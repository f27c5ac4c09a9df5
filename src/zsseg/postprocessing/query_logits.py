"""What every post-processing step asks of the logits of a picture's queries."""

import math
from collections.abc import Collection
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Real = TypeVar("Real", np.float32, np.float64)
VALUES_PER_CHECK = 1 << 20


def check_query_logits(class_logits: Tensor, mask_logits: Tensor) -> None:
    """Check shapes and values.

    Args:
        class_logits: (Q, K + 1), last column is no-object.
        mask_logits: (Q, h, w).

    Raises:
        TypeError: if either is not a floating-point tensor.
        ValueError: if the shapes do not fit each other, or a value is NaN or infinite.
    """
    for name, logits in (("class_logits", class_logits), ("mask_logits", mask_logits)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            kind = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if class_logits.ndim != 2 or class_logits.shape[1] < 2:
        raise ValueError(
            "class_logits must be (Q, K + 1) with K of 1 or more and no-object last, "
            f"got shape {tuple(class_logits.shape)}; pass one picture at a time"
        )
    if mask_logits.ndim != 3 or 0 in mask_logits.shape[1:]:
        raise ValueError(
            f"mask_logits must be (Q, h, w) with h and w of 1 or more, got shape {tuple(mask_logits.shape)}; "
            "pass one picture at a time"
        )
    if class_logits.shape[0] != mask_logits.shape[0]:
        raise ValueError(
            "class_logits and mask_logits must hold the same queries, "
            f"got {class_logits.shape[0]} and {mask_logits.shape[0]}"
        )
    _check_finite("class_logits", class_logits)
    _check_finite("mask_logits", mask_logits)


def _check_finite(name: str, logits: Tensor) -> None:
    # A few queries at a time: no copy of float32 logits on the CPU, a small one of others.
    queries = max(1, VALUES_PER_CHECK // max(1, logits[:1].numel()))
    for first in range(0, len(logits), queries):
        values = logits[first : first + queries].detach().to("cpu", torch.float32).numpy()
        is_finite = np.isfinite(values)
        if not is_finite.all():
            query = first + int(np.flatnonzero(~is_finite.reshape(len(values), -1).all(1))[0])
            raise ValueError(
                f"{name} must be finite, but query {query} holds NaN or infinity: the model's weights or "
                "inputs are broken, or half precision overflowed"
            )


def penalise_seen_labels(class_logits: Tensor, seen_label_ids: Collection[int], penalty: float) -> Tensor:
    """Calibrated stacking: lower the logits of labels whose masks training showed.

    A model prefers what it was trained on; a penalty above 0 moves decisions towards unseen labels. Figures
    made with one say so, beside those without.

    Args:
        class_logits: (..., K + 1), last column no-object, which is left as it is.
        seen_label_ids: labels in [0, K) to lower.
        penalty: subtracted from their logits; 0 changes nothing.

    Returns:
        (..., K + 1), a new tensor.

    Raises:
        ValueError: if the penalty is not finite, or a label id is outside [0, K).

    Reference:
        Chao et al., An empirical study and analysis of generalized zero-shot learning (arXiv:1605.04253).
    """
    if not math.isfinite(penalty):
        raise ValueError(f"the penalty of seen labels must be finite, got {penalty}")
    seen = check_label_ids("seen_label_ids", seen_label_ids, class_logits.shape[-1] - 1)
    penalties = class_logits.new_zeros(class_logits.shape[-1])
    penalties[sorted(seen)] = penalty
    return class_logits - penalties


def compute_class_probabilities(class_logits: Tensor) -> NDArray[np.float64]:
    """Softmax over the labels and no-object: (Q, K + 1) → (Q, K + 1), in float64."""
    logits = class_logits.detach().to("cpu", torch.float64).numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def compute_sigmoid(logits: NDArray[Real], *, out: NDArray[Real]) -> NDArray[Real]:
    """1 / (1 + exp(−x)), 0 where exp overflows; ``out`` may be ``logits``."""
    np.negative(logits, out=out)
    with np.errstate(over="ignore"):
        np.exp(out, out=out)
    np.add(out, 1, out=out)
    return np.divide(1, out, out=out)


def check_target(
    target_size: tuple[int, int] | None, valid_fraction: tuple[float, float], mask_logits: Tensor
) -> tuple[int, int]:
    """Check where the masks are to be sampled.

    Returns:
        (H, W), the size of the masks where no target size is given.

    Raises:
        ValueError: if the size is not two positive integers or a fraction lies outside (0, 1].
    """
    if len(valid_fraction) != 2 or not all(0.0 < fraction <= 1.0 for fraction in valid_fraction):
        raise ValueError(
            "valid_fraction must be two numbers in (0, 1], the picture's share of the padded height and "
            f"width, got {valid_fraction!r}"
        )
    if target_size is None:
        return mask_logits.shape[1], mask_logits.shape[2]
    size = tuple(target_size)
    if len(size) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in size):
        raise ValueError(f"target_size must be (height, width), two positive integers, got {target_size!r}")
    return int(size[0]), int(size[1])


def check_unit_interval(**values: float) -> None:
    """Check that each named value lies in [0, 1].

    Raises:
        ValueError: if one does not.
    """
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_label_ids(name: str, label_ids: Collection[int], num_labels: int) -> frozenset[int]:
    """Check that label ids name labels.

    Raises:
        ValueError: if one lies outside [0, num_labels).
    """
    if outside := sorted(label_id for label_id in label_ids if not 0 <= label_id < num_labels):
        raise ValueError(
            f"{name} must lie in [0, {num_labels}), the labels of class_logits without no-object, "
            f"got {outside[:10]}"
        )
    return frozenset(int(label_id) for label_id in label_ids)
