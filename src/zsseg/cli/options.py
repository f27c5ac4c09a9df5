"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class LabelNames(StrEnum):
    """How a data set's label names reach the text encoder."""

    CLEAN = "clean"
    RAW = "raw"


class Task(StrEnum):
    """Which result is asked for."""

    PANOPTIC = "panoptic"
    SEMANTIC = "semantic"


CHECKPOINT_PANEL = "Checkpoint"
RESULT_PANEL = "Result"
THRESHOLDS_PANEL = "Thresholds of panoptic results"
DATA_PANEL = "Data"


def check_share(value: float | None) -> float | None:
    """Refuse what is no share of one.

    Raises:
        typer.BadParameter: outside [0, 1].
    """
    if value is not None and not 0.0 <= value <= 1.0:
        raise typer.BadParameter(f"{value} does not lie in [0, 1]")
    return value


def check_count(value: int | None) -> int | None:
    """Refuse what is no number of things.

    Raises:
        typer.BadParameter: below 1.
    """
    if value is not None and value < 1:
        raise typer.BadParameter(f"it must be at least 1, got {value}")
    return value


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Folder of a checkpoint, its name on the Hub, or that of a packaged one.",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
OptionalModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Folder of a checkpoint, its name on the Hub, or that of a packaged one.",
        show_default="the packaged one, of Patchwork",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help='Such as "cpu", "cuda:1" or "mps".',
        show_default="the first accelerator, else the CPU",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        callback=check_count,
        help="Images in one forward pass.",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="0..1",
        callback=check_share,
        help="Score above which a query is kept.",
        show_default="the checkpoint's",
        rich_help_panel=THRESHOLDS_PANEL,
    ),
]
MaskThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--mask-threshold",
        metavar="0..1",
        callback=check_share,
        help="Probability from which a pixel belongs to a mask.",
        show_default="the checkpoint's",
        rich_help_panel=THRESHOLDS_PANEL,
    ),
]
OverlapThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--overlap-mask-area-threshold",
        metavar="0..1",
        callback=check_share,
        help="Share of its own mask that a query must win.",
        show_default="the checkpoint's",
        rich_help_panel=THRESHOLDS_PANEL,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write into an output folder that is not empty.",
        rich_help_panel=RESULT_PANEL,
    ),
]
OverlaysOption = Annotated[
    int,
    typer.Option(
        "--overlays",
        min=0,
        metavar="N",
        help="So many pictures beside prediction and ground truth, evenly spread; into --output.",
        rich_help_panel=RESULT_PANEL,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="A published split into seen and unseen labels, such as coco_panoptic_119_14.",
        show_default="the data set's own, else all are seen",
        rich_help_panel=DATA_PANEL,
    ),
]
UnseenOption = Annotated[
    str | None,
    typer.Option(
        "--unseen",
        metavar="LABELS",
        help='Instead: the unseen labels, as "a, b" or @FILE.',
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
LabelNamesOption = Annotated[
    LabelNames,
    typer.Option(
        "--label-names",
        metavar="KIND",
        help='clean: "tree" for "tree-merged"; raw: as the data set spells them.',
        rich_help_panel=DATA_PANEL,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER",
        help="Pictures of a COCO JSON.",
        show_default="images/ or COCO's place",
        rich_help_panel=DATA_PANEL,
    ),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="NAME",
        help="train, validation or test, of a data set that has several.",
        show_default="the only one; train in training, validation in evaluation",
        rich_help_panel=DATA_PANEL,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="NAME",
        help="Configuration of a data set on the Hub.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="NAME",
        help="Branch, tag or commit of a data set on the Hub.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
