"""``zsseg segment``: pictures and words in, overlays and panoptic files out."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zsseg.checkpoints import resolve_checkpoint
from zsseg.cli.checkpoint_loading import find_checkpoint, load_pipeline
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
    check_count,
)
from zsseg.cli.output_folder import check_output_folder
from zsseg.image_sources import find_images, is_bucket_url, is_table

LABELS_PANEL = "Labels"
RAY_PANEL = "Very many pictures (--engine ray)"
LONGEST_BY_SHORTEST_EDGE = 5 / 3


class Dtype(StrEnum):
    """Precision of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Engine(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


class ResultFormat(StrEnum):
    """Files of a batch run."""

    PARQUET = "parquet"
    COCO = "coco"


ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...",
        help="Files, folders, patterns or URLs; with --engine ray also s3:// and Parquet files.",
    ),
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
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="local: this process; ray: workers that write tables, and go on where a run was stopped.",
        rich_help_panel=RAY_PANEL,
    ),
]
FormatOption = Annotated[
    ResultFormat | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="parquet: a table for each part; coco: beside them panoptic.json and its PNGs.",
        show_default="parquet",
        rich_help_panel=RAY_PANEL,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        callback=check_count,
        help="Processes that hold the model.",
        show_default="one a GPU, else one a CPU core",
        rich_help_panel=RAY_PANEL,
    ),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker",
        metavar="N",
        callback=check_count,
        help="CPU cores of each.",
        show_default="1",
        rich_help_panel=RAY_PANEL,
    ),
]
PartSizeOption = Annotated[
    int | None,
    typer.Option(
        "--part-size",
        metavar="N",
        callback=check_count,
        help="Pictures in one table; what a worker was at is lost when it is killed.",
        show_default="128",
        rich_help_panel=RAY_PANEL,
    ),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        metavar="NAME",
        help="Of Parquet files: the column of bytes or paths.",
        show_default="image",
        rich_help_panel=RAY_PANEL,
    ),
]
RetryFailedOption = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Read again what could not be read in an earlier run.",
        rich_help_panel=RAY_PANEL,
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
    engine: EngineOption = Engine.LOCAL,
    result_format: FormatOption = None,
    workers: WorkersOption = None,
    cpus_per_worker: CpusOption = None,
    part_size: PartSizeOption = None,
    image_column: ImageColumnOption = None,
    retry_failed: RetryFailedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Segment pictures by words.

    Writes for each image a picture of the result, STEM_overlay.png; for all of
    them COCO's panoptic format, panoptic.json with the PNGs in panoptic/, and
    segments.json, the segments as plain records. With --engine ray it writes
    tables instead; the same command again goes on where it was stopped.

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
        ray_options = {
            "format": result_format,
            "workers": workers,
            "cpus_per_worker": cpus_per_worker,
            "part_size": part_size,
            "image_column": image_column,
            "retry_failed": retry_failed or None,
        }
        if engine is Engine.LOCAL:
            _refuse(ray_options, "belongs to --engine ray")
            _check_local(images)
            sources = find_images(images)
            check_output_folder(output, overwrite=overwrite)
        else:
            _refuse(
                {"unseen": unseen or None, "font": font}, "is for overlays, which --engine ray does not draw"
            )
            if device not in (None, "cpu", "cuda"):
                raise UsageError(
                    f"--device is cpu or cuda with --engine ray, which hands out GPUs; got {device}"
                )
        checkpoint = resolve_checkpoint(model)
        if model is None:
            print_note(
                "no --model, so the packaged checkpoint, which knows Patchwork's words and no photograph"
            )
        edges = (
            None
            if size is None
            else {"shortest_edge": size, "longest_edge": round(size * LONGEST_BY_SHORTEST_EDGE)}
        )
        if engine is Engine.RAY:
            from zsseg.cli.batch_run import run_batch

            is_complete = run_batch(
                images,
                vocabulary,
                task,
                output,
                model=find_checkpoint(checkpoint),
                thresholds=chosen,
                with_coco_files=result_format is ResultFormat.COCO,
                device=device,
                dtype=None if dtype is None else dtype.value,
                size=edges,
                batch_size=batch_size,
                num_workers=workers,
                cpus_per_worker=cpus_per_worker or 1,
                retry_failed=retry_failed,
                overwrite=overwrite,
                **({} if part_size is None else {"part_size": part_size}),
                **({} if image_column is None else {"image_column": image_column}),
            )
            raise typer.Exit(0 if is_complete else EXIT_FAILURE)
        segmenter = load_pipeline(
            task.value, checkpoint, device=device, dtype=None if dtype is None else dtype.value
        )
        if edges is not None:
            segmenter.processor.image_processor.size = edges
        from zsseg.cli.segmentation_run import SegmentationRun

        run = SegmentationRun(sources, vocabulary, task, output, font)
        run.print_setup(checkpoint, segmenter)
        run.segment_all(segmenter, batch_size=batch_size, **chosen)
        run.write_records(checkpoint)
        run.print_end()
    if run.failures:
        raise typer.Exit(EXIT_FAILURE)


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        UsageError: if one of them was given.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} {reason}")


def _check_local(images: Sequence[str]) -> None:
    for image in images:
        if is_bucket_url(image) or is_table(image):
            raise UsageError(f"{image} is read by --engine ray alone; add it, or pass picture files")
