"""Data sets with ground truth as the command line names them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zsseg.cli.labels import parse_labels
from zsseg.cli.messages import UsageError
from zsseg.cli.options import LabelNames
from zsseg.cli.text_layout import format_count
from zsseg.data import opening
from zsseg.data.annotation_files import DataProblem
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.opening import (
    DataLocation,
    Layout,
    OpenedDataset,
    SourceError,
    find_image_folder,
    find_panoptic_folder,
)
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.vocabularies import load_split, mark_unseen
from zsseg.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class LabelSetup:
    """Which labels count as seen, and how labels are spelled.

    Attributes:
        split: a packaged split.
        unseen: the unseen labels as typed; instead of a split.
        names: clean names or those of the data set.

    Raises:
        UsageError: if both ``split`` and ``unseen`` are given.
    """

    split: str | None = None
    unseen: str | None = None
    names: LabelNames = LabelNames.CLEAN

    def __post_init__(self) -> None:
        if self.split is not None and self.unseen is not None:
            raise UsageError("--split and --unseen both say what is unseen; give one of them")

    def load_split(self) -> Vocabulary | None:
        """The split's vocabulary, or None for the data set's own.

        Raises:
            ValueError: if there is no such split; lists those there are.
        """
        return None if self.split is None else load_split(self.split, clean_names=self.clean_names)

    def mark(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with the labels of ``unseen`` marked, if they were given.

        Raises:
            ValueError: if a name is not in the vocabulary.
        """
        return vocabulary if self.unseen is None else mark_unseen(vocabulary, parse_labels(self.unseen))

    @property
    def clean_names(self) -> bool:
        """Whether names are cleaned."""
        return self.names is LabelNames.CLEAN


@contextmanager
def source_errors_as_usage() -> Iterator[None]:
    """A name that does not lead to one data set is a matter of the command line.

    Raises:
        UsageError: for a :class:`~zsseg.data.opening.SourceError`, with its message.
    """
    try:
        yield
    except SourceError as error:
        raise UsageError(str(error)) from error


def open_semantic(folder: Path, labels: LabelSetup) -> SemanticMapDataset:
    """A folder of ``images``, ``labels`` and, in it or above, ``classes.json``."""
    dataset = SemanticMapDataset(folder, vocabulary=labels.load_split(), clean_names=labels.clean_names)
    dataset.vocabulary = labels.mark(dataset.vocabulary)
    return dataset


def open_coco_panoptic(
    annotation_json: Path, images: Path | None, panoptic: Path | None, labels: LabelSetup
) -> CocoPanopticDataset:
    """A JSON in COCO's panoptic format with its pictures and PNGs.

    Args:
        annotation_json: the JSON.
        images: None looks where data sets have them, see :func:`~zsseg.data.opening.find_image_folder`.
        panoptic: None looks where data sets have them, see :func:`~zsseg.data.opening.find_panoptic_folder`.
        labels: which are unseen, and their spelling.
    """
    if not annotation_json.is_file():
        raise FileNotFoundError(f"there is no panoptic JSON at {annotation_json}; check the path")
    with source_errors_as_usage():
        pictures = find_image_folder(annotation_json, Layout.COCO_PANOPTIC) if images is None else images
    dataset = CocoPanopticDataset(
        annotation_json,
        pictures,
        find_panoptic_folder(annotation_json) if panoptic is None else panoptic,
        vocabulary=labels.load_split(),
        clean_names=labels.clean_names,
    )
    dataset.vocabulary = labels.mark(dataset.vocabulary)
    return dataset


def find_dataset(
    source: str,
    *,
    part: str | None = None,
    default_part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> DataLocation:
    """The one data set that a name leads to; see :func:`zsseg.data.opening.find_dataset`."""
    with source_errors_as_usage():
        return opening.find_dataset(
            source, part=part, default_part=default_part, config=config, revision=revision
        )


def open_dataset(
    source: str | Path | DataLocation,
    images: Path | None,
    labels: LabelSetup,
    *,
    part: str | None = None,
    default_part: str | None = None,
    problems: list[DataProblem] | None = None,
) -> OpenedDataset:
    """Whatever data set a name leads to; see :func:`zsseg.data.opening.open_dataset`.

    Args:
        source: folder, file or name on the Hub, or what was found there.
        images: pictures of a COCO JSON; None looks where data sets have them.
        labels: which are unseen, and their spelling.
        part: "train", "validation" or "test" of a data set that has several.
        default_part: what to take if there are several and ``part`` is None.
        problems: takes what is wrong with single pictures or labels, which are then left out; None raises.
    """
    with source_errors_as_usage():
        dataset = opening.open_dataset(
            source,
            images=images,
            part=part,
            default_part=default_part,
            vocabulary=labels.load_split(),
            clean_names=labels.clean_names,
            problems=problems,
        )
    dataset.vocabulary = labels.mark(dataset.vocabulary)
    return dataset


def open_stream(source: str | Path | DataLocation, labels: LabelSetup) -> StreamedPanopticDataset:
    """Columns of the ``datasets`` library as a stream; arguments as of :func:`open_dataset`."""
    with source_errors_as_usage():
        stream = opening.open_stream(source, vocabulary=labels.load_split(), clean_names=labels.clean_names)
    stream.vocabulary = labels.mark(stream.vocabulary)
    return stream


def describe_labels(vocabulary: Vocabulary, labels: LabelSetup) -> str:
    """Such as ``"133 labels (119 seen, 14 unseen), clean names"``."""
    seen, unseen = len(vocabulary.seen_label_ids), len(vocabulary.unseen_label_ids)
    parts = f" ({seen} seen, {unseen} unseen)" if unseen else ""
    return f"{format_count(len(vocabulary), 'label')}{parts}, {labels.names.value} names"
