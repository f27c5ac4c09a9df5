"""What a Patchwork benchmark found, as one JSON that tables and model cards are made of."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

Text = Literal["own", "shuffled"]

GROUPS: Mapping[str, str] = {
    "": "",
    "_things": "_th",
    "_stuff": "_st",
    "_seen": "_seen",
    "_seen_things": "_seen_th",
    "_seen_stuff": "_seen_st",
    "_unseen": "_unseen",
    "_unseen_things": "_unseen_th",
    "_unseen_stuff": "_unseen_st",
}
"""How a figure's name ends for a group of labels → how the metric's key does."""

METRIC_KEYS: Mapping[str, str] = {
    **{
        f"{figure}{ending}": f"{figure}{metric_ending}"
        for figure in ("PQ", "SQ", "RQ", "mIoU")
        for ending, metric_ending in GROUPS.items()
    },
    "hPQ": "hPQ",
    "hIoU": "hIoU",
    "pixel_accuracy": "pixel_accuracy",
}
"""Name of a figure → the key under which a metric computes it."""

FIGURES = (*METRIC_KEYS, "ms_per_image")


@dataclass(frozen=True, slots=True)
class BenchmarkedModel:
    """The model that was measured, and how its results were merged.

    Attributes:
        name: folder or Hub id, without the path to it.
        family: its model type, such as "zsseg-concat".
        parameters: numbers in the model, text tower included.
        parameters_text_tower: those of the text tower; 0 without one.
        threshold: score above which a query was kept.
        mask_threshold: probability from which a pixel belonged to a mask.
        overlap_mask_area_threshold: share of its own mask that a query had to win.
        parameters_generator: those of the query generator that adaptation uses; 0 without one.
        stored_queries: real queries that the checkpoint keeps for adaptation.
        known_labels: how many names the generator's training or an adaptation has read.
        weights_digest: of :func:`~zsseg.layers.model_identity.compute_weights_digest`; None in reports from
            before it was written, which nothing ties to one model for certain.
    """

    name: str
    family: str
    parameters: int
    parameters_text_tower: int
    threshold: float
    mask_threshold: float
    overlap_mask_area_threshold: float
    parameters_generator: int
    stored_queries: int
    known_labels: int
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True)
class PatchworkRow:
    """The figures of one model on the scenes of one preset.

    Attributes:
        preset: difficulty of the scenes.
        split: which names are unseen.
        scenes: how many.
        size: their height and width in pixels.
        seed: of their world.
        text: "own", or "shuffled" where the unseen names stand for one another.
        figures: every name of ``FIGURES`` → a share in [0, 1], or milliseconds; None where no label of the
            group occurs.
        seen_penalty: what the class logits of the seen labels were lowered by; 0 without calibration.

    Raises:
        ValueError: if a figure is missing, unknown or out of range.
    """

    preset: str
    split: str
    scenes: int
    size: int
    seed: int
    text: Text
    figures: Mapping[str, float | None]
    seen_penalty: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether these are figures of the model as it is: own names, no calibration."""
        return self.text == "own" and self.seen_penalty == 0.0

    @property
    def variant(self) -> str:
        """What sets the row apart from a plain one; the plain ones are "own names"."""
        names = "own names" if self.text == "own" else "unseen names exchanged"
        return names if not self.seen_penalty else f"{names}, seen labels lowered by {self.seen_penalty:g}"

    def __post_init__(self) -> None:
        if self.text not in get_args(Text):
            raise ValueError(f"text must be one of {list(get_args(Text))}, got {self.text!r}")
        if self.figures.keys() != set(FIGURES):
            raise ValueError(
                f"a row holds the {len(FIGURES)} figures of the benchmark and no other, but "
                f"{sorted(set(FIGURES) - self.figures.keys())} are missing and "
                f"{sorted(self.figures.keys() - set(FIGURES))} unknown: evaluate the model again"
            )
        for name, value in self.figures.items():
            largest = math.inf if name == "ms_per_image" else 1.0
            if value is not None and not 0.0 <= value <= largest:
                raise ValueError(f"{name} must lie in [0, {largest:g}], got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Setup and figures side by side, as JSON holds them."""
        setup = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "figures"}
        return {**setup, **{name: self.figures[name] for name in FIGURES}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave.

        Raises:
            ValueError: as for the class, or if a key of the setup is missing.
        """
        setup = {field.name for field in fields(cls)} - {"figures"}
        _check_keys(setup, content.keys(), "row")
        return cls(
            **{name: content[name] for name in setup},
            figures={name: value for name, value in content.items() if name not in setup},
        )


@dataclass(frozen=True, slots=True)
class PatchworkReport:
    """Everything a benchmark run says.

    Attributes:
        command: what makes these figures again.
        machine: on what the times were taken.
        model: what was measured.
        rows: in the order of measurement.

    Raises:
        ValueError: if there is no row.
    """

    command: str
    machine: str
    model: BenchmarkedModel
    rows: Sequence[PatchworkRow]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a report needs at least one row, got none")

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        content = {
            "command": self.command,
            "machine": self.machine,
            "model": asdict(self.model),
            "rows": [row.to_dict() for row in self.rows],
        }
        path.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no JSON of a report; the message names the file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _check_keys({"command", "machine", "model", "rows"}, content.keys(), "report")
            required = {field.name for field in fields(BenchmarkedModel) if field.default is MISSING}
            _check_keys(required, content["model"].keys(), "model")
            return cls(
                command=content["command"],
                machine=content["machine"],
                model=BenchmarkedModel(**content["model"]),
                rows=tuple(PatchworkRow.from_dict(row) for row in content["rows"]),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no report of `zsseg evaluate patchwork` ({error}): pass its results.json"
            ) from error


def _check_keys(expected: set[str], found: Any, what: str) -> None:
    if missing := expected - set(found):
        raise ValueError(f"the {what} lacks {sorted(missing)}")
