"""``zsseg train patchwork``: Patchwork's CLIP and a segmentor in its text space, from random weights."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import check_checkpoint_folder, quieten_transformers
from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, log_shown


class PatchworkPart(StrEnum):
    """Which model to train."""

    CLIP = "clip"
    SEGMENTOR = "segmentor"
    ALL = "all"


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Each stage gets a folder in it.", show_default=False
    ),
]
PartOption = Annotated[PatchworkPart, typer.Option("--part", help="Which model to train.")]
ClipOption = Annotated[
    Path | None,
    typer.Option(
        "--clip",
        metavar="FOLDER",
        help="Patchwork's CLIP, for the segmentor.",
        show_default="OUTPUT/patchwork-clip",
    ),
]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="NAME", help='Which names are unseen: "A" or "seed-N".')
]
ClipStepsOption = Annotated[
    int | None,
    typer.Option(
        "--clip-steps", metavar="N", help="Steps of both towers together.", show_default="as packaged"
    ),
]
VisionStepsOption = Annotated[
    int | None,
    typer.Option(
        "--vision-steps", metavar="N", help="Steps of the vision tower alone.", show_default="as packaged"
    ),
]
BackboneStepsOption = Annotated[
    int | None,
    typer.Option(
        "--backbone-steps",
        metavar="N",
        help="Steps of the segmentor's backbone alone.",
        show_default="as packaged",
    ),
]
DeepenedStepsOption = Annotated[
    int | None,
    typer.Option(
        "--deepened-steps",
        metavar="N",
        help="Steps of the same backbone with more blocks.",
        show_default="as packaged",
    ),
]
WarmupStepsOption = Annotated[
    int | None,
    typer.Option(
        "--warmup-steps",
        metavar="N",
        help="Steps of the segmentor's dense warm-up.",
        show_default="as packaged",
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Steps of the whole segmentor.", show_default="as packaged"),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", metavar="N", help="Scenes in one step.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Of weights and data order.")]
FloatOption = Annotated[
    bool, typer.Option("--float32", help="No bfloat16: twice as slow where the processor has it.")
]
NumWorkersOption = Annotated[
    int, typer.Option("--num-workers", metavar="N", help="Processes that render scenes.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where a run of the same options stopped.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start anew in a folder that holds a run.")
]


def patchwork(
    output: OutputOption,
    part: PartOption = PatchworkPart.ALL,
    clip: ClipOption = None,
    split: SplitOption = "A",
    clip_steps: ClipStepsOption = None,
    vision_steps: VisionStepsOption = None,
    backbone_steps: BackboneStepsOption = None,
    deepened_steps: DeepenedStepsOption = None,
    warmup_steps: WarmupStepsOption = None,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = 16,
    seed: SeedOption = 0,
    float32: FloatOption = False,
    num_workers: NumWorkersOption = 1,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train Patchwork's CLIP and CONCAT's segmentor from random weights.

    Every scene is rendered when it is needed; there is no data to get. The
    segmentor sees no unseen category, neither pixels nor names. OUTPUT gets
    patchwork-clip and checkpoint, which `zsseg evaluate patchwork` scores.
    Ctrl-C saves a checkpoint and stops; --resume goes on from it.

    Example: zsseg train patchwork --output runs/patchwork
    """
    with errors_in_one_line(show_traceback=traceback), log_shown():
        if resume and overwrite:
            raise UsageError("--resume goes on with a run, --overwrite starts anew; give one of them")
        if clip is not None and part is not PatchworkPart.SEGMENTOR:
            raise UsageError("--clip names a trained CLIP; it goes with --part segmentor")
        if clip is not None:
            check_checkpoint_folder(str(clip))
        from zsseg.training.recipes.patchwork import PatchworkSteps, train_patchwork

        quieten_transformers()
        given = {
            "clip": clip_steps,
            "vision": vision_steps,
            "backbone": backbone_steps,
            "deepened": deepened_steps,
            "warmup": warmup_steps,
            "segmentor": steps,
        }
        is_complete = train_patchwork(
            output,
            PatchworkSteps(**{name: number for name, number in given.items() if number is not None}),
            parts=("clip", "segmentor") if part is PatchworkPart.ALL else (part.value,),
            clip=clip,
            split=split,
            batch_size=batch_size,
            seed=seed,
            mixed_precision="no" if float32 else "bf16",
            num_workers=num_workers,
            resume=resume,
            overwrite=overwrite,
        )
    if not is_complete:
        raise typer.Exit(EXIT_FAILURE)
