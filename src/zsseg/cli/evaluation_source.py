"""The pictures that an evaluation is run on, as the command line names them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from zsseg.cli.command_text import shorten_path
from zsseg.cli.ground_truth import (
    LabelSetup,
    find_dataset,
    open_coco_panoptic,
    open_dataset,
    open_semantic,
)
from zsseg.cli.messages import UsageError
from zsseg.cli.options import Task
from zsseg.data.examples import PanopticDataset
from zsseg.data.label_maps import LabelMapDataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.training.protocols import Protocol, load_protocol


@dataclass(frozen=True, slots=True)
class EvaluationSource:
    """Pictures with ground truth and what they are for.

    Attributes:
        dataset: the pictures.
        name: what a report calls them.
        default_tasks: what is scored unless told otherwise.
        protocol: that of the literature which they belong to, if any.
    """

    dataset: PanopticDataset
    name: str
    default_tasks: tuple[Task, ...]
    protocol: Protocol | None = None

    def choose_tasks(self, asked: Collection[Task]) -> tuple[Task, ...]:
        """The tasks asked for, or the default ones; panoptic comes first.

        Raises:
            UsageError: if panoptic results are asked for and the ground truth does not tell things apart.
        """
        tasks = tuple(sorted(set(asked or self.default_tasks)))
        is_semantic = isinstance(self.dataset, SemanticMapDataset | LabelMapDataset)
        if Task.PANOPTIC in tasks and is_semantic and self.dataset.vocabulary.thing_label_ids:
            raise UsageError(
                f"{self.name} has semantic maps, which do not tell things apart; they can score "
                "--task semantic"
            )
        return tasks


def open_protocol(name: str, folder: Path, labels: LabelSetup) -> EvaluationSource:
    """The data set of a protocol."""
    protocol = load_protocol(name)
    dataset = protocol.open_dataset(folder, clean_names=labels.clean_names)
    return EvaluationSource(dataset, protocol.dataset, tuple(map(Task, protocol.tasks)), protocol)


def open_own(
    labels: LabelSetup,
    *,
    dataset: Path | None,
    part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    coco_panoptic: Path | None,
    semantic: Path | None,
    images: Path | None,
    panoptic: Path | None,
) -> EvaluationSource:
    """Any other data set, by the one of ``dataset``, ``coco_panoptic`` and ``semantic`` that is given."""
    if semantic is not None:
        return EvaluationSource(open_semantic(semantic, labels), name_data(semantic), (Task.SEMANTIC,))
    if coco_panoptic is not None:
        opened = open_coco_panoptic(coco_panoptic, images, panoptic, labels)
        return EvaluationSource(opened, name_data(coco_panoptic), (Task.PANOPTIC,))
    location = find_dataset(
        str(dataset), part=part, default_part="validation", config=config, revision=revision
    )
    own = open_dataset(location, images, labels)
    is_semantic = isinstance(own, SemanticMapDataset)
    tasks = (Task.SEMANTIC,) if is_semantic else (Task.PANOPTIC, Task.SEMANTIC)
    return EvaluationSource(own, name_data(Path(str(dataset))), tasks)


def name_data(path: Path) -> str:
    """What a report calls a data set: its path as given, or the last part of one that is not below here."""
    name = shorten_path(str(path))
    return path.resolve().name if name in {".", ""} or name.startswith("..") else name


def check_figures(
    tasks: Collection[Task], thresholds: Mapping[str, float | None], parents: str | None
) -> None:
    """Refuse options of a task that is not scored.

    Raises:
        UsageError: if thresholds are given without the panoptic task, or parents without the semantic one.
    """
    if Task.PANOPTIC not in tasks and any(value is not None for value in thresholds.values()):
        raise UsageError("the mean IoU uses no thresholds; leave them out, or add --task panoptic")
    if Task.SEMANTIC not in tasks and parents is not None:
        raise UsageError("--parents is for SG-IoU, a figure of the semantic task; add --task semantic")
