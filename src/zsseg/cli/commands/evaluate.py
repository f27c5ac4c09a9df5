"""``zsseg evaluate``: score a checkpoint on a data set with ground truth, or on a benchmark by name."""

from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import load_pipeline
from zsseg.cli.commands.evaluate_patchwork import evaluate_patchwork
from zsseg.cli.commands.evaluate_patchwork_clip import evaluate_patchwork_clip
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.options import (
    CHECKPOINT_PANEL,
    DATA_PANEL,
    RESULT_PANEL,
    BatchSizeOption,
    DeviceOption,
    LabelNames,
    LabelNamesOption,
    MaskThresholdOption,
    OverlapThresholdOption,
    OverlaysOption,
    OverwriteOption,
    SplitOption,
    Task,
    ThresholdOption,
    UnseenOption,
    check_count,
)
from zsseg.cli.output_folder import check_output_folder

CocoPanopticOption = Annotated[
    Path | None,
    typer.Option(
        "--coco-panoptic",
        metavar="JSON",
        help="Panoptic ground truth in COCO's format: PQ is computed.",
        rich_help_panel=DATA_PANEL,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER",
        help="Pictures of the panoptic JSON.",
        show_default="images/ or COCO's place",
        rich_help_panel=DATA_PANEL,
    ),
]
PanopticOption = Annotated[
    Path | None,
    typer.Option(
        "--panoptic",
        metavar="FOLDER",
        help="Panoptic PNGs of the JSON.",
        show_default="named like the JSON",
        rich_help_panel=DATA_PANEL,
    ),
]
SemanticOption = Annotated[
    Path | None,
    typer.Option(
        "--semantic",
        metavar="FOLDER",
        help="Or semantic ground truth: images/, labels/ and classes.json. The mean IoU is computed.",
        rich_help_panel=DATA_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        # Required, but a benchmark behind this command's name brings its own.
        help="Folder of a checkpoint, its name on the Hub, or that of a packaged one.",
        show_default=False,
        rich_help_panel=CHECKPOINT_PANEL,
    ),
]
MaxImagesOption = Annotated[
    int | None,
    typer.Option(
        "--max-images",
        metavar="N",
        callback=check_count,
        help="Only the first so many.",
        rich_help_panel=DATA_PANEL,
    ),
]
PerClassOption = Annotated[
    bool,
    typer.Option("--per-class", help="Print every label's figures too.", rich_help_panel=RESULT_PANEL),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Write results.json, every label's figures included.",
        rich_help_panel=RESULT_PANEL,
    ),
]

evaluate = typer.Typer(name="evaluate", invoke_without_command=True, subcommand_metavar="[BENCHMARK]")


@evaluate.callback()
def evaluate_data_set(
    context: typer.Context,
    model: ModelOption = None,
    coco_panoptic: CocoPanopticOption = None,
    images: ImagesOption = None,
    panoptic: PanopticOption = None,
    semantic: SemanticOption = None,
    split: SplitOption = None,
    unseen: UnseenOption = None,
    label_names: LabelNamesOption = LabelNames.CLEAN,
    max_images: MaxImagesOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = 1,
    threshold: ThresholdOption = None,
    mask_threshold: MaskThresholdOption = None,
    overlap_mask_area_threshold: OverlapThresholdOption = None,
    per_class: PerClassOption = False,
    output: OutputOption = None,
    overlays: OverlaysOption = 0,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Score a checkpoint on pictures with ground truth.

    Predicts over all labels, seen and unseen, and prints the averages in both
    conventions of the literature: over the labels that occur, and over all of
    them with absent ones as 0.

    Example: zsseg evaluate --semantic camvid/val --model CHECKPOINT --per-class
    """
    if context.invoked_subcommand is not None:
        with errors_in_one_line(show_traceback=traceback):
            _check_no_option(context)
        return
    if model is None:
        context.fail("Missing option '--model' / '-m'.")
    with errors_in_one_line(show_traceback=traceback), log_shown():
        if (coco_panoptic is None) == (semantic is None):
            raise UsageError("name the ground truth: either --coco-panoptic JSON or --semantic FOLDER")
        if semantic is not None and (images is not None or panoptic is not None):
            raise UsageError("--images and --panoptic belong to --coco-panoptic")
        thresholds = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_mask_area_threshold,
        }
        if semantic is not None and any(value is not None for value in thresholds.values()):
            raise UsageError("the mean IoU of --semantic uses no thresholds; leave them out")
        if overlays and output is None:
            raise UsageError("--overlays needs --output, where the pictures go")
        if output is not None:
            check_output_folder(output, overwrite=overwrite)
        from zsseg.cli.evaluation_run import EvaluationRun
        from zsseg.cli.ground_truth import LabelSetup, open_coco_panoptic, open_semantic

        labels = LabelSetup(split, unseen, label_names)
        dataset = (
            open_semantic(semantic, labels)
            if semantic is not None
            else open_coco_panoptic(Path(str(coco_panoptic)), images, panoptic, labels)
        )
        task = Task.PANOPTIC if semantic is None else Task.SEMANTIC
        segmenter = load_pipeline(task.value, model, device=device)
        run = EvaluationRun(dataset, task, labels, max_images)
        run.print_setup(model, segmenter)
        run.evaluate(segmenter, output=output, overlays=overlays, batch_size=batch_size, **thresholds)
        run.print_averages()
        if per_class:
            run.print_per_class()
        if output is not None:
            run.write(output, model, thresholds)


def _check_no_option(context: typer.Context) -> None:
    """Refuse options that stand before a benchmark's name, where they would do nothing."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name.replace('_', '-')} stands before {context.invoked_subcommand!r}; a benchmark's "
                f"options go behind its name: zsseg evaluate {context.invoked_subcommand} --model NAME …"
            )


evaluate.command("patchwork")(evaluate_patchwork)
evaluate.command("patchwork-clip")(evaluate_patchwork_clip)
