"""``zsseg evaluate``: score a checkpoint on a data set with ground truth, or on a benchmark by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zsseg.cli.checkpoint_loading import load_pipeline
from zsseg.cli.command_text import describe_command
from zsseg.cli.commands.evaluate_patchwork import evaluate_patchwork
from zsseg.cli.commands.evaluate_patchwork_clip import evaluate_patchwork_clip
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.options import (
    CHECKPOINT_PANEL,
    DATA_PANEL,
    RESULT_PANEL,
    BatchSizeOption,
    ConfigOption,
    DeviceOption,
    LabelNames,
    LabelNamesOption,
    MaskThresholdOption,
    OverlapThresholdOption,
    OverlaysOption,
    OverwriteOption,
    PartOption,
    RevisionOption,
    SplitOption,
    Task,
    ThresholdOption,
    UnseenOption,
    check_count,
)
from zsseg.cli.output_folder import check_output_folder

PATCHWORK_PARENTS = "patchwork"
REPORT_IS_THE_SAME = ("device", "output", "overlays", "worst", "per_class", "overwrite", "traceback")
"""Parameters that change where a run goes and what it tells, but no figure."""

ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="A protocol of the literature: coco-panoptic-119-14, coco-stuff-156-15, ade-150, pc-59, voc-20.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="What the protocol's data set was unpacked into.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
DatasetOption = Annotated[
    Path | None,
    typer.Option(
        "--dataset",
        metavar="DATA",
        help="Or data of your own: all tasks that its ground truth allows.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
TaskOption = Annotated[
    list[Task],
    typer.Option(
        "--task",
        metavar="NAME",
        help="panoptic or semantic; may be given twice, both come from one pass.",
        show_default="what the ground truth is for",
        rich_help_panel=RESULT_PANEL,
    ),
]
CocoPanopticOption = Annotated[
    Path | None,
    typer.Option(
        "--coco-panoptic",
        metavar="JSON",
        help="Or panoptic ground truth in COCO's format: PQ is computed.",
        rich_help_panel=DATA_PANEL,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER",
        help="Pictures of the JSON.",
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
ParentsOption = Annotated[
    str | None,
    typer.Option(
        "--parents",
        metavar="JSON",
        help='SG-IoU too, with {"armchair": ["chair"], …}; "patchwork" for that world.',
        show_default=False,
        rich_help_panel=RESULT_PANEL,
    ),
]
SeenPenaltyOption = Annotated[
    float,
    typer.Option(
        "--seen-penalty",
        metavar="X",
        help="Lower the class logits of seen labels by X (calibrated stacking); such figures stand by "
        "themselves.",
        rich_help_panel=RESULT_PANEL,
    ),
]
WorstOption = Annotated[
    int,
    typer.Option(
        "--worst",
        min=0,
        metavar="N",
        help="So many of the worst pictures beside prediction and ground truth; into --output.",
        rich_help_panel=RESULT_PANEL,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Write results.json and per_class.csv.",
        rich_help_panel=RESULT_PANEL,
    ),
]

evaluate = typer.Typer(name="evaluate", invoke_without_command=True, subcommand_metavar="[BENCHMARK]")


@evaluate.callback()
def evaluate_data_set(
    context: typer.Context,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    data: DataOption = None,
    dataset: DatasetOption = None,
    coco_panoptic: CocoPanopticOption = None,
    part: PartOption = None,
    config: ConfigOption = None,
    revision: RevisionOption = None,
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
    task: TaskOption = [],  # noqa: B006 typer copies it
    parents: ParentsOption = None,
    seen_penalty: SeenPenaltyOption = 0.0,
    per_class: PerClassOption = False,
    output: OutputOption = None,
    overlays: OverlaysOption = 0,
    worst: WorstOption = 0,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Score a checkpoint on pictures with ground truth.

    Predicts over all labels, seen and unseen, and prints the averages in both
    conventions of the literature: over the labels that occur, and over all of
    them with absent ones as 0.

    Example: zsseg evaluate --protocol coco-panoptic-119-14 --data coco --model CHECKPOINT
    Example: zsseg evaluate --semantic camvid/val --model CHECKPOINT --per-class
    """
    if context.invoked_subcommand is not None:
        with errors_in_one_line(show_traceback=traceback):
            _check_no_option(context)
        return
    if model is None:
        context.fail("Missing option '--model' / '-m'.")
    with errors_in_one_line(show_traceback=traceback), log_shown():
        _check_ground_truth(context.params)
        if output is None and (overlays or worst):
            raise UsageError(
                f"{'--overlays' if overlays else '--worst'} needs --output, where the pictures go"
            )
        thresholds = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_mask_area_threshold,
        }
        if output is not None:
            check_output_folder(output, overwrite=overwrite)
        from zsseg.cli.evaluation_run import EvaluationRun
        from zsseg.cli.evaluation_source import check_figures, open_own, open_protocol
        from zsseg.cli.ground_truth import LabelSetup

        labels = LabelSetup(split, unseen, label_names)
        if semantic is not None:
            check_figures(task or [Task.SEMANTIC], thresholds, parents)
        source = (
            open_protocol(protocol, data, labels)
            if protocol is not None and data is not None
            else open_own(
                labels,
                dataset=dataset,
                part=part,
                config=config,
                revision=revision,
                coco_panoptic=coco_panoptic,
                semantic=semantic,
                images=images,
                panoptic=panoptic,
            )
        )
        tasks = source.choose_tasks(task)
        check_figures(tasks, thresholds, parents)
        if seen_penalty and not source.dataset.vocabulary.unseen_label_ids:
            raise UsageError("--seen-penalty weighs seen against unseen labels, and no label is unseen here")
        run = EvaluationRun(
            source.dataset,
            source.name,
            [each.value for each in tasks],
            labels,
            protocol=source.protocol,
            parents=None if parents is None else _read_parents(parents),
            seen_penalty=seen_penalty,
            max_images=max_images,
        )
        segmenter = load_pipeline(tasks[0].value, model, device=device)
        run.print_setup(model, segmenter)
        run.evaluate(
            segmenter, output=output, overlays=overlays, worst=worst, batch_size=batch_size, **thresholds
        )
        run.print_averages()
        if per_class:
            run.print_per_class()
        if output is not None:
            command = describe_command(context, leave_out=REPORT_IS_THE_SAME)
            run.write(output, segmenter, model, command=command, thresholds=thresholds)


def _check_ground_truth(options: Mapping[str, Any]) -> None:
    """Refuse options that name no ground truth, or more than one, or do not belong to the one they name."""
    given = {name for name, value in options.items() if value is not None}
    if len(given & {"protocol", "dataset", "coco_panoptic", "semantic"}) != 1:
        raise UsageError(
            "name the ground truth: one of --protocol NAME with --data FOLDER, --dataset DATA, or either "
            "--coco-panoptic JSON or --semantic FOLDER"
        )
    if ("images" in given and not given & {"coco_panoptic", "dataset"}) or (
        "panoptic" in given and "coco_panoptic" not in given
    ):
        raise UsageError("--images and --panoptic belong to --coco-panoptic, --images also to --dataset")
    if given & {"part", "config", "revision"} and "dataset" not in given:
        raise UsageError("--part, --config and --revision belong to --dataset")
    if ("protocol" in given) != ("data" in given):
        raise UsageError("--protocol and --data belong together: a name, and the folder of its data set")
    if "protocol" in given and given & {"split", "unseen"}:
        raise UsageError("a protocol says which labels are unseen; leave --split and --unseen out")


def _read_parents(name: str) -> Mapping[str, Sequence[str]]:
    """The table of a file, or that of Patchwork."""
    from zsseg.data.patchwork.categories import list_patchwork_parents
    from zsseg.metrics import read_parents

    return list_patchwork_parents() if name == PATCHWORK_PARENTS else read_parents(name)


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
