"""``zsseg segment``: pictures and words in, overlays and panoptic files out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zsseg.checkpoints import resolve_checkpoint
from zsseg.cli.checkpoint_loading import load_pipeline
from zsseg.cli.image_sources import find_images
from zsseg.cli.labels import LABELS_SYNTAX, parse_vocabulary
from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, print_note
from zsseg.cli.options import (
    CHECKPOINT_PANEL,
    RESULT_PANEL,
    BatchSizeOption,
    DeviceOption,
    MaskThresholdOption,
    OptionalModelOption,
    OverlapThresholdOption,
    OverwriteOption,
    Task,
    ThresholdOption,
)
from zsseg.cli.output_folder import check_output_folder

LABELS_PANEL = "Labels"
LONGEST_BY_SHORTEST_EDGE = 5 / 3


class Dtype(StrEnum):
    """Precision of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


ImagesArgument = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, patterns or URLs.")
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels",
        "-l",
        metavar="LABELS",
        help=f"What to find. {LABELS_SYNTAX}",
        rich_help_panel=LABELS_PANEL,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", rich_help_panel=RESULT_PANEL),
]
StuffOption = Annotated[
    str,
    typer.Option(
        "--stuff",
        metavar="LABELS",
        help="Those of the labels that are stuff: one segment each, not one an instance.",
        rich_help_panel=LABELS_PANEL,
    ),
]
UnseenOption = Annotated[
    str,
    typer.Option(
        "--unseen",
        metavar="LABELS",
        help="Those of the labels to mark as unseen in training (a star).",
        rich_help_panel=LABELS_PANEL,
    ),
]
TaskOption = Annotated[
    Task,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic: segments with scores, the rest void; semantic: every pixel gets a label.",
        rich_help_panel=RESULT_PANEL,
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Of the weights: float32, bfloat16 or float16.",
        show_default="the checkpoint's",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=32,
        metavar="PIXELS",
        help="Shortest edge that the model sees; the longest is at most 5/3 of it.",
        show_default="the checkpoint's",
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
FontOption = Annotated[
    Path | None,
    typer.Option(
        "--font",
        metavar="FILE",
        help="A TrueType font, for labels outside Latin script.",
        rich_help_panel=RESULT_PANEL,
    ),
]


def segment(
    images: ImagesArgument,
    labels: LabelsOption,
    output: OutputOption,
    model: OptionalModelOption = None,
    stuff: StuffOption = "",
    unseen: UnseenOption = "",
    task: TaskOption = Task.PANOPTIC,
    threshold: ThresholdOption = None,
    mask_threshold: MaskThresholdOption = None,
    overlap_mask_area_threshold: OverlapThresholdOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = 1,
    size: SizeOption = None,
    font: FontOption = None,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Segment pictures by words.

    Writes for each image a picture of the result, STEM_overlay.png; for all of
    them COCO's panoptic format, panoptic.json with the PNGs in panoptic/, and
    segments.json, the segments as plain records.

    Example: zsseg segment street.jpg --labels "road, car|automobile, tree"
    --stuff "road, tree" --model CHECKPOINT --output out
    """
    with errors_in_one_line(show_traceback=traceback):
        vocabulary = parse_vocabulary(labels, stuff, unseen)
        thresholds = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_mask_area_threshold,
        }
        chosen = {name: value for name, value in thresholds.items() if value is not None}
        if task is Task.SEMANTIC and chosen:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise UsageError(f"--task semantic has no thresholds, but {names} was given")
        if font is not None and not font.is_file():
            raise FileNotFoundError(f"there is no font file at {font}")
        sources = find_images(images)
        check_output_folder(output, overwrite=overwrite)
        checkpoint = resolve_checkpoint(model)
        if model is None:
            print_note(
                "no --model, so the packaged checkpoint, which knows Patchwork's words and no photograph"
            )
        segmenter = load_pipeline(
            task.value, checkpoint, device=device, dtype=None if dtype is None else dtype.value
        )
        if size is not None:
            segmenter.processor.image_processor.size = {
                "shortest_edge": size,
                "longest_edge": round(size * LONGEST_BY_SHORTEST_EDGE),
            }
        from zsseg.cli.segmentation_run import SegmentationRun

        run = SegmentationRun(sources, vocabulary, task, output, font)
        run.print_setup(checkpoint, segmenter)
        run.segment_all(segmenter, batch_size=batch_size, **chosen)
        run.write_records(checkpoint)
        run.print_end()
    if run.failures:
        raise typer.Exit(EXIT_FAILURE)
