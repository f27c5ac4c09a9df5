"""What one evaluation of a checkpoint found: the one JSON that tables, cards and Hub entries come from."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from zsseg.durable_files import flush_to_disk

Figures = Mapping[str, float | None]
"""Name of a figure → its value; None where no label of its group occurs."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The model that was measured.

    Attributes:
        name: folder or Hub id, without the path to it.
        family: its model type, such as "zsseg-concat".
        parameters: numbers in the model, text tower included.
        weights_digest: of :func:`~zsseg.layers.model_identity.compute_weights_digest`: a report speaks for
            these weights and for no other.
    """

    name: str
    family: str
    parameters: int
    weights_digest: str


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Figures of one model on one data set, and all that is needed to make them again.

    Attributes:
        command: what makes these figures again.
        machine: on what the times were taken.
        zsseg: version of the package.
        model: what was measured.
        protocol: one of ``zsseg evaluate``'s, such as "coco-panoptic-119-14"; "own" for any other data set.
        dataset: what the data set calls itself, without a path.
        tasks: "panoptic", "semantic" or both.
        num_images: how many pictures were predicted.
        labels: all names that were asked for, in order.
        unseen_labels: those of them that count as unseen.
        label_names: "clean" or "raw" names.
        thresholds: score, mask and overlap threshold, by name; empty without a panoptic task.
        averages: figures of groups of labels, shares in [0, 1], as the metrics name them, with
            ``seconds_per_image``.
        per_class: label → its figures: shares in [0, 1], and the counts TP, FP and FN.
        seen_penalty: what was taken from the class logits of seen labels; figures of another value than 0 are
            calibrated and stand by themselves.

    Raises:
        ValueError: if there is no image, label or task, or an unseen label is none of the labels.
    """

    command: str
    machine: str
    zsseg: str
    model: EvaluatedModel
    protocol: str
    dataset: str
    tasks: Sequence[str]
    num_images: int
    labels: Sequence[str]
    unseen_labels: Sequence[str]
    label_names: str
    thresholds: Mapping[str, float]
    averages: Figures
    per_class: Mapping[str, Figures] = field(default_factory=dict)
    seen_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.num_images < 1 or not self.labels or not self.tasks:
            raise ValueError(
                f"a report is of at least one image, label and task, got {self.num_images} images, "
                f"{len(self.labels)} labels and {len(self.tasks)} tasks"
            )
        if strangers := sorted(set(self.unseen_labels) - set(self.labels)):
            raise ValueError(f"unseen labels must be among the labels, but {strangers[:10]} are not")

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all; NaN, which JSON does not know, becomes null."""
        content = json.dumps(_without_nan(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(content + "\n", encoding="utf-8")
            flush_to_disk(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no JSON of a report; the message names the file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _check_keys(cls, content, "report")
            _check_keys(EvaluatedModel, content["model"], "model")
            return cls(**{**content, "model": EvaluatedModel(**content["model"])})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no report of `zsseg evaluate` ({error}): pass the results.json that it wrote"
            ) from error


def _check_keys(kind: type[Any], content: Mapping[str, Any], what: str) -> None:
    known = {each.name for each in fields(kind)}
    if content.keys() != known:
        missing, unknown = sorted(known - content.keys()), sorted(content.keys() - known)
        raise ValueError(f"the {what} lacks {missing}, and {unknown} are unknown")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
