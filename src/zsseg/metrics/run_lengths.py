"""Runs of a pair of maps: what lets a metric count a few thousand runs instead of all pixels."""

import numpy as np
from numpy.typing import NDArray


def find_runs(
    prediction: NDArray[np.integer], target: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split two maps, read row by row, into the longest runs over which neither changes its value.

    A run may go on in the next row. The cost beyond one pass over the pixels follows the boundaries.

    Args:
        prediction: (H, W) integers.
        target: (H, W) integers.

    Returns:
        Three arrays, one entry a run: the prediction's value, the target's value, the number of pixels.

    Raises:
        ValueError: if a map is not a two-dimensional array of integers, has no pixel, or the sizes differ.

    Example:
        >>> find_runs(np.array([[1, 1], [1, 2]]), np.array([[5, 6], [6, 6]]))
        (array([1, 1, 2]), array([5, 6, 6]), array([1, 2, 1]))
    """
    for role, values in (("prediction", prediction), ("target", target)):
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"the {role} must be an (H, W) array of integers, got shape {values.shape} "
                f"and dtype {values.dtype}"
            )
        if values.size == 0:
            raise ValueError(f"the {role} must have at least one pixel, got shape {values.shape}")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one size, got (H, W) = {prediction.shape} and {target.shape}; "
            "resize the prediction to the target's size before it is compared"
        )
    flat_prediction, flat_target = prediction.ravel(), target.ravel()
    is_last = flat_prediction[1:] != flat_prediction[:-1]
    is_last |= flat_target[1:] != flat_target[:-1]
    last = np.append(np.flatnonzero(is_last), prediction.size - 1)
    return (
        flat_prediction[last].astype(np.int64),
        flat_target[last].astype(np.int64),
        np.diff(last, prepend=-1),
    )
