"""What the metrics have in common: their state is sums by label, so shards add up."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zsseg.vocabulary import Vocabulary


class LabelSumsMetric:
    """A metric whose whole state is named sums by label and a number of images.

    Attributes:
        vocabulary: K labels.
        num_images: how many images were added.
    """

    SUM_DTYPES: ClassVar[Mapping[str, DTypeLike]]

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.num_images = 0
        self._sums: dict[str, NDArray[Any]] = {
            name: np.zeros(shape, dtype=self.SUM_DTYPES[name]) for name, shape in self._sum_shapes().items()
        }

    def merge(self, other: Self) -> None:
        """Add the images of another metric, for instance of another shard.

        Raises:
            TypeError: if the other is another kind of metric.
            ValueError: if the vocabularies differ.
        """
        if type(other) is not type(self):
            raise TypeError(
                f"a {type(self).__name__} merges its own kind alone, got a {type(other).__name__}"
            )
        if self.vocabulary != other.vocabulary:
            raise ValueError(
                "only metrics of one vocabulary can be merged, got "
                f"{len(self.vocabulary)} labels {list(self.vocabulary.names[:5])}… and "
                f"{len(other.vocabulary)} labels {list(other.vocabulary.names[:5])}…"
            )
        self._add_image_sums(other._sums, other.num_images)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state as arrays: (K,) sums, and ``num_images`` of shape (). To be added up across processes."""
        return {
            **{name: values.copy() for name, values in self._sums.items()},
            "num_images": np.array(self.num_images),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace the state by one of :meth:`state_dict`, or by the sum of several.

        Raises:
            ValueError: if names or shapes are not those of this metric and vocabulary.
        """
        shapes: dict[str, tuple[int, ...]] = {**self._sum_shapes(), "num_images": ()}
        given = {name: np.shape(values) for name, values in state.items()}
        if given != shapes:
            raise ValueError(
                f"the state must hold the arrays {shapes}, got {given}; "
                "load it into the metric and vocabulary that it was saved from"
            )
        self._sums = {name: np.array(state[name], dtype=dtype) for name, dtype in self.SUM_DTYPES.items()}
        self.num_images = int(state["num_images"])

    def _sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """How many values each sum has: one a label, unless a metric says otherwise."""
        return {name: (len(self.vocabulary),) for name in self.SUM_DTYPES}

    def _add_image_sums(self, sums: Mapping[str, NDArray[Any]], num_images: int) -> None:
        for name, values in sums.items():
            self._sums[name] += values
        self.num_images += num_images

    def _check_has_images(self) -> None:
        if self.num_images == 0:
            raise ValueError(f"{type(self).__name__} has seen no image; call update first")
