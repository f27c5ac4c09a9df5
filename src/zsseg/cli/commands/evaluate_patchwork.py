"""``zsseg evaluate patchwork``: score a checkpoint on the benchmark that needs no data."""

from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import load_pipeline
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import (
    DATA_PANEL,
    RESULT_PANEL,
    DeviceOption,
    MaskThresholdOption,
    ModelOption,
    OverlapThresholdOption,
    OverlaysOption,
    OverwriteOption,
    ThresholdOption,
)
from zsseg.cli.output_folder import check_output_folder

PresetOption = Annotated[
    list[str],
    typer.Option(
        "--preset",
        metavar="NAME",
        help="easy, standard or hard; may be given several times.",
        rich_help_panel=DATA_PANEL,
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Which names are unseen: A, or seed-N.",
        rich_help_panel=DATA_PANEL,
    ),
]
ScenesOption = Annotated[
    int,
    typer.Option("--scenes", metavar="N", help="Held-out scenes of each preset.", rich_help_panel=DATA_PANEL),
]
SizeOption = Annotated[
    int,
    typer.Option("--size", metavar="PIXELS", help="Height and width of a scene.", rich_help_panel=DATA_PANEL),
]
ShuffledTextOption = Annotated[
    bool,
    typer.Option(
        "--shuffled-text",
        help="Once more with the unseen names exchanged among themselves: what is left of the unseen figures "
        "then was not won by reading names.",
        rich_help_panel=RESULT_PANEL,
    ),
]
SeenPenaltyOption = Annotated[
    float,
    typer.Option(
        "--seen-penalty",
        metavar="X",
        help="Once more with the class logits of seen labels lowered by X (calibrated stacking); such "
        "figures stand by themselves.",
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
        show_default=False,
        rich_help_panel=RESULT_PANEL,
    ),
]


def evaluate_patchwork(
    model: ModelOption,
    preset: PresetOption = ["standard"],  # noqa: B006 typer shows it and copies it
    split: SplitOption = "A",
    scenes: ScenesOption = 500,
    size: SizeOption = 128,
    device: DeviceOption = None,
    threshold: ThresholdOption = None,
    mask_threshold: MaskThresholdOption = None,
    overlap_mask_area_threshold: OverlapThresholdOption = None,
    shuffled_text: ShuffledTextOption = False,
    seen_penalty: SeenPenaltyOption = 0.0,
    output: OutputOption = None,
    overlays: OverlaysOption = 0,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Score a checkpoint on held-out Patchwork scenes, the same for every model.

    Predicts over all sixty labels, seen and unseen, one scene at a time, and
    prints panoptic quality and mean IoU by groups of labels.

    Example: zsseg evaluate patchwork --model CHECKPOINT --shuffled-text
    """
    with errors_in_one_line(show_traceback=traceback):
        if overlays and output is None:
            raise UsageError("--overlays needs --output, where the pictures go")
        if output is not None:
            check_output_folder(output, overwrite=overwrite)
        from zsseg.cli.patchwork_evaluation_run import PatchworkEvaluationRun

        run = PatchworkEvaluationRun(
            model,
            presets=preset,
            split=split,
            scenes=scenes,
            size=size,
            thresholds={
                "threshold": threshold,
                "mask_threshold": mask_threshold,
                "overlap_mask_area_threshold": overlap_mask_area_threshold,
            },
            shuffled_text=shuffled_text,
            seen_penalty=seen_penalty,
        )
        segmenter = load_pipeline("panoptic", model, device=device)
        run.print_setup(segmenter)
        run.evaluate(segmenter, output=output, overlays=overlays)
        if output is not None:
            run.write(segmenter, output)
