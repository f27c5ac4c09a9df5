"""Data sets with ground truth as the command line names them."""

from dataclasses import dataclass
from pathlib import Path

from zsseg.cli.labels import parse_labels
from zsseg.cli.messages import UsageError
from zsseg.cli.options import LabelNames
from zsseg.cli.text_layout import format_count
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.semantic_maps import SemanticMapDataset
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
        images: None looks where data sets have them, see :func:`find_image_folder`.
        panoptic: None takes the folder beside the JSON that is named like it.
        labels: which are unseen, and their spelling.
    """
    if not annotation_json.is_file():
        raise FileNotFoundError(f"there is no panoptic JSON at {annotation_json}; check the path")
    dataset = CocoPanopticDataset(
        annotation_json,
        find_image_folder(annotation_json) if images is None else images,
        panoptic,
        vocabulary=labels.load_split(),
        clean_names=labels.clean_names,
    )
    dataset.vocabulary = labels.mark(dataset.vocabulary)
    return dataset


def open_dataset(
    path: Path, images: Path | None, labels: LabelSetup
) -> SemanticMapDataset | CocoPanopticDataset:
    """A folder is read as semantic maps, a file as COCO's panoptic JSON.

    Raises:
        UsageError: if the pictures' folder is given for semantic maps, which have it inside.
    """
    if not path.is_dir():
        return open_coco_panoptic(path, images, None, labels)
    if images is not None:
        raise UsageError(f"{path} is a folder of semantic maps with its own images/; leave the images out")
    return open_semantic(path, labels)


def find_image_folder(annotation_json: Path) -> Path:
    """Where the pictures of a panoptic JSON usually lie.

    COCO has ``annotations/panoptic_val2017.json`` and ``val2017/``; small data sets have ``images/``.

    Raises:
        UsageError: if none of these folders exists.
    """
    name = annotation_json.stem.removeprefix("panoptic_")
    folder = annotation_json.parent
    candidates = [base / each for base in (folder, folder.resolve().parent) for each in (name, "images")]
    for candidate in candidates:
        # The folder named exactly like the JSON holds its panoptic PNGs.
        if candidate.is_dir() and candidate != annotation_json.with_suffix(""):
            return candidate
    raise UsageError(
        f"no folder of pictures beside {annotation_json} (looked for {', '.join(map(str, candidates))}); "
        "name it with --images"
    )


def describe_labels(vocabulary: Vocabulary, labels: LabelSetup) -> str:
    """Such as ``"133 labels (119 seen, 14 unseen), clean names"``."""
    seen, unseen = len(vocabulary.seen_label_ids), len(vocabulary.unseen_label_ids)
    parts = f" ({seen} seen, {unseen} unseen)" if unseen else ""
    return f"{format_count(len(vocabulary), 'label')}{parts}, {labels.names.value} names"
