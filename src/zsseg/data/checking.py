"""Reads all of a data set and says what is in it and what is wrong with it, before it is trained on."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from zsseg.data.annotation_files import CHECK_HINT, DataProblem
from zsseg.data.coco_instances import CocoInstanceDataset
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.examples import PanopticExample
from zsseg.data.opening import OpenedDataset
from zsseg.vocabulary import Vocabulary

SHOWN_PICTURES = 12
STORED_PROBLEMS = 1000
"""Problems in the JSON of a check; all are counted."""
GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples modulo 1 spread evenly, however many are taken."""


@dataclass(slots=True)
class LabelCount:
    """How often a label occurs.

    Attributes:
        name: the label.
        category_id: the data set's own id.
        isthing: whether it is countable.
        is_seen: whether training may show it.
        pictures: that hold it.
        segments: of it, crowds included.
        crowds: segments that stand for many things.
        pixels: of all its segments.
    """

    name: str
    category_id: int | None
    isthing: bool
    is_seen: bool
    pictures: int = 0
    segments: int = 0
    crowds: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some lengths in pixels; the lower middle of an even number."""

    min: int
    median: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Spread":
        """That of one length or more."""
        ordered = sorted(lengths)
        return cls(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])


@dataclass
class DatasetCheck:
    """What a data set holds and what is wrong with it.

    Attributes:
        labels: counts by label id.
        problems: of single files, pictures and labels.
        notes: what need not be wrong.
        pictures: that could be read with their ground truth.
        pixels: of these pictures.
        void_pixels: pixels of no label.
        heights: of the pictures that could be read; None if there is none.
        widths: likewise.
        shown: indices of pictures that together show as many labels as possible.
    """

    labels: tuple[LabelCount, ...]
    problems: list[DataProblem]
    notes: list[str] = field(default_factory=list)
    pictures: int = 0
    pixels: int = 0
    void_pixels: int = 0
    heights: Spread | None = None
    widths: Spread | None = None
    shown: tuple[int, ...] = ()

    @property
    def absent_labels(self) -> tuple[str, ...]:
        """Names of the labels that no readable picture shows."""
        return tuple(label.name for label in self.labels if not label.pictures)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "pictures": self.pictures,
            "pixels": self.pixels,
            "void_pixels": self.void_pixels,
            "heights": None if self.heights is None else asdict(self.heights),
            "widths": None if self.widths is None else asdict(self.widths),
            "labels": [asdict(label) for label in self.labels],
            "absent_labels": list(self.absent_labels),
            "notes": self.notes,
            "problem_count": len(self.problems),
            "problems": [asdict(problem) for problem in self.problems[:STORED_PROBLEMS]],
        }


def check_dataset(
    dataset: OpenedDataset, problems: Sequence[DataProblem] = (), *, progress: bool = True
) -> DatasetCheck:
    """Read every picture with its ground truth, count what is there and note what is wrong.

    Args:
        dataset: opened with ``problems``, so that what is wrong with single pictures did not stop it.
        problems: those of the opening.
        progress: show a bar on a terminal.
    """
    labels = tuple(
        LabelCount(category.name, category.category_id, category.is_thing, category.is_seen)
        for category in dataset.vocabulary
    )
    check = DatasetCheck(labels, list(problems))
    names = dataset.file_names
    heights: list[int] = []
    widths: list[int] = []
    label_sets: dict[int, frozenset[int]] = {}
    image_ids: dict[int | str, list[str]] = defaultdict(list)
    num_hidden = 0
    for index in tqdm(
        range(len(dataset)), desc="checking", unit="picture", leave=False, disable=None if progress else True
    ):
        try:
            example = dataset[index]
        except (ValueError, OSError) as error:
            check.problems.append(DataProblem(names[index], _describe(error, names[index])))
            continue
        _count(check, example)
        heights.append(example.image.height)
        widths.append(example.image.width)
        image_ids[example.image_id].append(example.file_name)
        label_sets[index] = frozenset(segment.label_id for segment in example.target.segments)
        if isinstance(dataset, CocoInstanceDataset):
            num_hidden += dataset.count_instances(index) - len(example.target.segments)
    if check.pictures:
        check.heights, check.widths = Spread.of(heights), Spread.of(widths)
    else:
        check.problems.append(DataProblem("", "no picture could be read with its ground truth"))
    check.problems += _find_repeated(names, image_ids)
    check.notes += _describe_emptiness(label_sets)
    if isinstance(dataset, CocoInstanceDataset):
        check.notes.append(
            "instances may overlap, a map may not: crowds are painted first, then instances from the largest "
            f"to the smallest; {num_hidden} of {num_hidden + sum(label.segments for label in labels)} are "
            "covered by others as a whole, or have no pixel, and are left out"
        )
    if isinstance(dataset, CocoPanopticDataset) and (unlisted := dataset.find_unlisted_maps()):
        check.notes.append(
            f"PNGs in {dataset.panoptic_folder} that belong to no annotation: {len(unlisted)}, such as "
            f"{unlisted[0]}"
        )
    check.shown = choose_shown(label_sets, dataset.vocabulary, SHOWN_PICTURES)
    return check


def choose_shown(
    label_sets: dict[int, frozenset[int]], vocabulary: Vocabulary, count: int
) -> tuple[int, ...]:
    """Choose pictures that show as many labels as possible, one after the other.

    A label that is shown already counts half as much with each time. Of equal pictures some are taken from
    all over the data set, as neighbours often look alike.

    Args:
        label_sets: index of a picture → label ids in it.
        vocabulary: the labels.
        count: how many pictures at most.

    Returns:
        Their indices, in ascending order.
    """
    times_shown = [0] * len(vocabulary)

    def weigh(index: int) -> float:
        return sum(0.5 ** times_shown[label_id] for label_id in label_sets[index])

    # Weights only fall, so a picture whose weight is still up to date at the top is the best one.
    queue = [(-weigh(index), index * GOLDEN_RATIO % 1, index) for index in label_sets]
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < count:
        weight, place, index = heapq.heappop(queue)
        if (current := -weigh(index)) != weight:
            heapq.heappush(queue, (current, place, index))
            continue
        chosen.append(index)
        for label_id in label_sets[index]:
            times_shown[label_id] += 1
    return tuple(sorted(chosen))


def _count(check: DatasetCheck, example: PanopticExample) -> None:
    segments = example.target.segments
    num_pixels = example.target.segment_ids.size
    check.pictures += 1
    check.pixels += num_pixels
    check.void_pixels += num_pixels - sum(segment.area for segment in segments)
    for segment in segments:
        label = check.labels[segment.label_id]
        label.segments += 1
        label.crowds += segment.iscrowd
        label.pixels += segment.area
    for label_id in {segment.label_id for segment in segments}:
        check.labels[label_id].pictures += 1


def _find_repeated(names: Sequence[str], image_ids: dict[int | str, list[str]]) -> Iterator[DataProblem]:
    """Pictures that results could not be told apart by."""
    for name, count in Counter(names).items():
        if count > 1:
            yield DataProblem(name, f"{count} pictures have this file name")
    for image_id, owners in image_ids.items():
        if len(set(owners)) > 1:
            yield DataProblem(owners[0], f"{len(owners)} pictures have its image_id {image_id}: {owners[:5]}")


def _describe_emptiness(label_sets: dict[int, frozenset[int]]) -> Iterator[str]:
    if num_empty := sum(not label_ids for label_ids in label_sets.values()):
        yield f"{num_empty} of {len(label_sets)} pictures show no label at all"


def _describe(error: Exception, name: str) -> str:
    """One line, without the name that it is noted under and the advice to run the check that is running."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{name}: ").removesuffix(f"; {CHECK_HINT}")
