"""What naming Patchwork's segments by a CLIP found: one JSON that its tables and model card are made of."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from zsseg.data.patchwork.categories import (
    PATCHWORK_CATEGORIES,
    PatchworkCategory,
    build_patchwork_vocabulary,
)
from zsseg.data.patchwork.presets import load_preset
from zsseg.data.patchwork.splits import load_patchwork_split
from zsseg.metrics.class_averages import group_label_ids
from zsseg.training.patchwork_report import GROUPS
from zsseg.vocabulary import Vocabulary

NAMES = tuple(category.name for category in PATCHWORK_CATEGORIES)
WORDS = ("surface", "shape", "tone", "material")
CLIP_FIGURES = (
    *(f"{figure}{ending}" for figure in ("top1", "top1_segments") for ending in GROUPS),
    *(f"top1_{word}" for word in WORDS),
)


class Confusion(NamedTuple):
    """A label that is taken for another.

    Attributes:
        name: what it is.
        taken_for: what the CLIP says.
        times: how often.
        share: in (0, 1], of the label's segments.
    """

    name: str
    taken_for: str
    times: int
    share: float


@dataclass(frozen=True, slots=True)
class EvaluatedClip:
    """The CLIP that was measured.

    Attributes:
        name: folder or Hub id, without the path to it.
        parameters: numbers in the model.
        parameters_text_tower: those of the text tower, its projection included.
        embed_dim: D of the space that pictures and texts share.
        image_size: height and width of its pictures in pixels.
    """

    name: str
    parameters: int
    parameters_text_tower: int
    embed_dim: int
    image_size: int


@dataclass(frozen=True, slots=True)
class PatchworkClipReport:
    """Every ground-truth segment of some scenes, cut out and named among Patchwork's sixty labels.

    Attributes:
        command: what makes these figures again.
        model: what was measured.
        preset: difficulty of the scenes.
        split: which names count as unseen.
        scenes: how many.
        size: their height and width in pixels.
        seed: of their world.
        confusion: true label → what its segments were taken for → how often; what never happened is left out.

    Raises:
        ValueError: if preset, split or a label is none of Patchwork's, a count is no positive integer, or
            there is no segment.
    """

    command: str
    model: EvaluatedClip
    preset: str
    split: str
    scenes: int
    size: int
    seed: int
    confusion: Mapping[str, Mapping[str, int]]

    def __post_init__(self) -> None:
        load_preset(self.preset)
        load_patchwork_split(self.split)
        if not self.confusion:
            raise ValueError("a report needs at least one segment, got none")
        for true, row in self.confusion.items():
            if unknown := sorted({true, *row} - set(NAMES)):
                raise ValueError(f"labels must be Patchwork's sixty names, got also {unknown}")
            if not row or not all(type(count) is int and count > 0 for count in row.values()):
                raise ValueError(f"{true!r} must be taken for something, positive times, got {dict(row)}")

    @property
    def vocabulary(self) -> Vocabulary:
        """The sixty labels, seen and unseen as the split says."""
        return build_patchwork_vocabulary(load_patchwork_split(self.split))

    def build_counts(self) -> NDArray[np.int64]:
        """(60, 60) counts by true and predicted label id."""
        counts = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
        for true, row in self.confusion.items():
            for predicted, count in row.items():
                counts[NAMES.index(true), NAMES.index(predicted)] = count
        return counts

    def compute_figures(self) -> dict[str, float | None]:
        """Every name of ``CLIP_FIGURES`` → a share in [0, 1], None where no label of the group occurs.

        ``top1{group}`` is the mean over the group's labels that occur, ``top1_segments{group}`` the share of
        its segments. ``top1_surface``, ``top1_shape``, ``top1_tone`` and ``top1_material`` ask for one word
        of the name alone; the first two are means over the things that occur, the others over stuff.
        """
        right = {name: row.get(name, 0) for name, row in self.confusion.items()}
        totals = {name: sum(row.values()) for name, row in self.confusion.items()}
        members = group_label_ids(self.vocabulary)
        figures: dict[str, float | None] = {}
        for ending, metric_ending in GROUPS.items():
            names = [NAMES[i] for i in members[metric_ending] if NAMES[i] in self.confusion]
            segments = sum(totals[name] for name in names)
            figures[f"top1{ending}"] = _mean(right[name] / totals[name] for name in names)
            figures[f"top1_segments{ending}"] = (
                sum(right[name] for name in names) / segments if segments else None
            )
        for word in WORDS:
            figures[f"top1_{word}"] = _mean(
                sum(n for taken_for, n in row.items() if _get_word(taken_for, word) == _get_word(name, word))
                / totals[name]
                for name, row in self.confusion.items()
                if _get_word(name, word)
            )
        return {name: figures[name] for name in CLIP_FIGURES}

    def list_confusions(self, limit: int) -> list[Confusion]:
        """The most frequent confusions, ties in the order of labels."""
        confusions = [
            Confusion(name, taken_for, count, count / sum(row.values()))
            for name, row in self.confusion.items()
            for taken_for, count in row.items()
            if taken_for != name
        ]
        confusions.sort(key=lambda each: (-each.times, NAMES.index(each.name), NAMES.index(each.taken_for)))
        return confusions[:limit]

    def save(self, path: Path) -> None:
        """Write the report and its figures as JSON."""
        content = asdict(self)
        confusion = content.pop("confusion")
        content |= {"figures": self.compute_figures(), "confusion": confusion}
        path.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no JSON of a report, or its figures do not follow from its counts; the
                message names the file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figures = content.pop("figures")
            report = cls(model=EvaluatedClip(**content.pop("model")), **content)
            if figures != report.compute_figures():
                raise ValueError("its figures are not those of its counts")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no report of `zsseg evaluate patchwork-clip` ({error}): pass its results.json"
            ) from error
        return report


def build_confusion(counts: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """(60, 60) counts by true and predicted label id → the mapping that a report holds."""
    return {
        NAMES[true]: {NAMES[predicted]: int(row[predicted]) for predicted in np.flatnonzero(row)}
        for true, row in enumerate(counts)
        if row.any()
    }


def _mean(shares: Iterable[float]) -> float | None:
    listed = list(shares)
    # fmean rounds once, so that figures are equal on every machine.
    return fmean(listed) if listed else None


def _get_word(name: str, word: str) -> str | None:
    category: PatchworkCategory = PATCHWORK_CATEGORIES[NAMES.index(name)]
    if category.is_thing != (word in ("surface", "shape")):
        return None
    return category.attribute if word in ("surface", "tone") else category.base
