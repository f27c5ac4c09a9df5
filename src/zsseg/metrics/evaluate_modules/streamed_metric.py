"""What the modules for ``evaluate`` share: they keep sums of what is added, not the maps.

``evaluate`` itself writes every input to disk and reads all of it back at once to compute; segmentation maps
would fill the memory. Here each picture is counted when it is added, and ``evaluate`` carries one row of sums
from each process to the first.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from numpy.typing import NDArray

from zsseg.metrics.label_sums import LabelSumsMetric
from zsseg.vocabulary import Vocabulary

Sums = dict[tuple[int, ...], NDArray[np.float64]]
"""Labels, or pairs of labels → what was counted of them; float64 is exact for counts below 2**53."""

# evaluate gathers columns of the inputs' names: what the predictions add up to, and the number of references.
_GATHERED = Features(
    {
        "predictions": {"labels": List(List(Value("int64"))), "sums": List(List(Value("float64")))},
        "references": Value("int64"),
    }
)


class StreamedMetric(evaluate.Metric, ABC):
    """A metric of ``evaluate`` whose state is sums by label, in memory that does not grow with the pictures.

    Subclasses say how one picture is counted and which metric of zsseg the sums are for; they add the
    arguments of :meth:`compute` that build it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: Sums = {}
        self._num_images = 0

    def __len__(self) -> int:
        """How many pictures this process has added."""
        return self._num_images

    @abstractmethod
    def _count(self, prediction: Any, reference: Any) -> Sums:
        """What one picture adds."""

    @abstractmethod
    def _build(self, vocabulary: Vocabulary, **options: Any) -> LabelSumsMetric:
        """The metric, empty."""

    @abstractmethod
    def _fill(self, metric: Any, labels: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Give the metric the sums of S keys: (S, L) labels and (S, N) sums."""

    @abstractmethod
    def _describe_labels(self, metric: Any) -> dict[str, Any]:
        """Every label's figures."""

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one picture.

        Args:
            prediction: what was found.
            reference: the truth, of the same size.
            kwargs: the same as ``predictions`` and ``references``; ``evaluate.combine`` gives them so.
        """
        self.add_batch(
            predictions=[kwargs.pop("predictions", prediction)],
            references=[kwargs.pop("references", reference)],
            **kwargs,
        )

    def add_batch(
        self,
        *,
        predictions: Sequence[Any] | None = None,
        references: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count pictures; their sizes may differ.

        Args:
            predictions: what was found.
            references: the truth, in the same order.
            kwargs: none; for the signature of ``evaluate``.
        """
        if kwargs:
            raise ValueError(f"pictures are predictions and references, got also {sorted(kwargs)}")
        if predictions is None or references is None or len(predictions) != len(references):
            counts = ["none" if each is None else len(each) for each in (predictions, references)]
            raise ValueError(
                f"predictions and references must be as many, got {counts[0]} predictions and {counts[1]} "
                "references"
            )
        # Counted first: of a batch with a wrong picture nothing is added.
        added = []
        for place, pair in enumerate(zip(predictions, references, strict=True)):
            try:
                added.append(self._count(*pair))
            except ValueError as error:
                raise ValueError(f"picture {place} of the batch: {error}") from error
        self._open()
        for sums in added:
            for labels, values in sums.items():
                self._sums[labels] = self._sums.get(labels, 0.0) + values
        self._num_images += len(added)

    def compute(
        self,
        *,
        predictions: Sequence[Any] | None = None,
        references: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Compute the figures of all pictures added, and of these; then start anew.

        Args:
            predictions: further pictures, if any.
            references: their truth.
            kwargs: ``labels``, ``stuff_labels``, ``unseen_labels``, ``per_class`` and those of the metric.

        Returns:
            The averages by name; None in any process but the first.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        # Mistakes come out here, before this process has given its sums away.
        self._fill_from_row(self._build_from(kwargs), self._as_row(), self._num_images)
        if self.num_process == 1 and not self._num_images:
            raise ValueError(f"{self.name} has seen no picture; call add or add_batch first")
        self._open()
        self.writer.write({"predictions": self._as_row(), "references": self._num_images})
        self._sums, self._num_images = {}, 0
        return super().compute(**kwargs)

    def _compute(
        self, *, predictions: Iterable[Mapping[str, Any]], references: Iterable[int], **kwargs: Any
    ) -> dict[str, Any]:
        """The figures from one row of sums a process."""
        metric = self._build_from(kwargs)
        for row, num_images in zip(predictions, references, strict=True):
            self._fill_from_row(metric, row, num_images)
        per_class = {"per_class": self._describe_labels(metric)} if kwargs.get("per_class") else {}
        return {**metric.compute(), **per_class}

    def _open(self) -> None:
        """Let ``evaluate`` open its file, where its processes wait for each other, at the first picture."""
        if self.writer is None:
            self.selected_feature_format = _GATHERED
            self._init_writer()

    def _build_from(self, arguments: Mapping[str, Any]) -> Any:
        options = {name: value for name, value in arguments.items() if name != "per_class"}
        labels = options.pop("labels", None)
        if labels is None:
            raise ValueError('name the labels in the order of their ids: compute(labels=["road", "car"])')
        if isinstance(labels, Vocabulary):
            return self._build(labels, **options)
        groups = {name: options.pop(name, ()) for name in ("stuff_labels", "unseen_labels")}
        return self._build(Vocabulary.from_labels(labels, **groups), **options)

    def _as_row(self) -> dict[str, list[list[Any]]]:
        labels, sums = self._sums.keys(), self._sums.values()
        return {"labels": [list(key) for key in labels], "sums": [values.tolist() for values in sums]}

    def _fill_from_row(self, metric: LabelSumsMetric, row: Mapping[str, Any], num_images: int) -> None:
        if num_images:
            labels = np.asarray(row["labels"], dtype=np.int64)
            self._fill(metric, labels, np.asarray(row["sums"], dtype=np.float64))
