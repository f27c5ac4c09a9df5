"""``zsseg train``: train a family's model on a data set with ground truth."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import check_checkpoint_folder
from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.options import (
    DATA_PANEL,
    LabelNames,
    LabelNamesOption,
    SplitOption,
    UnseenOption,
)

START_PANEL = "Start weights"
RUN_PANEL = "Run"
RECIPE_PANEL = "Recipe (defaults: PADing's, which CONCAT follows)"

train = typer.Typer(name="train", no_args_is_help=True)


class StageChoice(StrEnum):
    """Which part of the recipe to run."""

    WARMUP = "warmup"
    SEGMENTOR = "segmentor"
    ALL = "all"


class UnseenPolicy(StrEnum):
    """What happens to unseen segments in the training data."""

    DROP_IMAGES = "drop_images"
    IGNORE_PIXELS = "ignore_pixels"


class MixedPrecision(StrEnum):
    """Autocast dtype."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


@train.callback()
def train_a_family() -> None:
    """Train a family's model; needs the extra "train"."""


DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A folder of images/, labels/ and classes.json, or a JSON in COCO's panoptic format.",
        rich_help_panel=DATA_PANEL,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="A folder for each stage, and checkpoint/ at the end.",
        rich_help_panel=RUN_PANEL,
    ),
]
StageOption = Annotated[
    StageChoice,
    typer.Option(
        "--stage",
        metavar="STAGE",
        help="warmup: pixels are classified densely; segmentor: queries learn masks; all: both.",
        rich_help_panel=RUN_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A CONCAT checkpoint.",
        show_default=False,
        rich_help_panel=START_PANEL,
    ),
]
Mask2formerOption = Annotated[
    str | None,
    typer.Option(
        "--mask2former",
        metavar="NAME",
        help="Or its parts: a Mask2Former checkpoint,",
        show_default=False,
        rich_help_panel=START_PANEL,
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        metavar="NAME",
        help="and a CLIP or other text encoder.",
        show_default=False,
        rich_help_panel=START_PANEL,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER",
        help="Pictures of a panoptic JSON.",
        show_default="images/ or COCO's place",
        rich_help_panel=DATA_PANEL,
    ),
]
ValOption = Annotated[
    Path | None,
    typer.Option(
        "--val",
        metavar="PATH",
        help="Evaluate on this during the segmentor stage and keep the best checkpoint.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
ValImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--val-images",
        metavar="FOLDER",
        help="Pictures of its panoptic JSON.",
        show_default="images/ or COCO's place",
        rich_help_panel=DATA_PANEL,
    ),
]
UnseenPolicyOption = Annotated[
    UnseenPolicy,
    typer.Option(
        "--unseen-policy",
        metavar="POLICY",
        help="drop_images: leave out pictures with an unseen segment, as zero-shot panoptic segmentation "
        "asks; ignore_pixels: keep them, hide those pixels: an easier protocol to be named beside any "
        "figure.",
        rich_help_panel=DATA_PANEL,
    ),
]
SizeOption = Annotated[
    tuple[int, int],
    typer.Option("--size", metavar="H W", help="Pixels of a training crop.", rich_help_panel=RECIPE_PANEL),
]
MinScaleOption = Annotated[
    float,
    typer.Option(
        "--min-scale",
        metavar="X",
        help="Smallest factor of the scale jitter.",
        rich_help_panel=RECIPE_PANEL,
    ),
]
MaxScaleOption = Annotated[
    float,
    typer.Option(
        "--max-scale",
        metavar="X",
        help="Largest factor of the scale jitter.",
        rich_help_panel=RECIPE_PANEL,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        help="Optimizer steps of each stage.",
        show_default=False,
        rich_help_panel=RECIPE_PANEL,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images in one forward pass of a device.",
        show_default="16",
        rich_help_panel=RECIPE_PANEL,
    ),
]
GradientAccumulationStepsOption = Annotated[
    int | None,
    typer.Option(
        "--gradient-accumulation-steps",
        metavar="N",
        help="Forward passes for one step.",
        show_default="1",
        rich_help_panel=RECIPE_PANEL,
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        metavar="X",
        help="Peak of AdamW.",
        show_default="1e-4",
        rich_help_panel=RECIPE_PANEL,
    ),
]
MaxGradNormOption = Annotated[
    float | None,
    typer.Option(
        "--max-grad-norm",
        metavar="X",
        help="Longest gradient; longer ones are clipped.",
        show_default="0.01",
        rich_help_panel=RECIPE_PANEL,
    ),
]
MixedPrecisionOption = Annotated[
    MixedPrecision | None,
    typer.Option(
        "--mixed-precision",
        metavar="DTYPE",
        help="Autocast: no, bf16 or fp16.",
        show_default="no",
        rich_help_panel=RECIPE_PANEL,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Of data order, augmentation and sampling, and of new weights.",
        show_default="0",
        rich_help_panel=RECIPE_PANEL,
    ),
]
ArgumentsOption = Annotated[
    Path | None,
    typer.Option(
        "--arguments",
        metavar="JSON",
        help="Any training argument by name; those under a stage's name are for it alone. Options given "
        "here win.",
        show_default=False,
        rich_help_panel=RECIPE_PANEL,
    ),
]
EvaluateEveryOption = Annotated[
    int | None,
    typer.Option(
        "--evaluate-every",
        metavar="N",
        help="Steps between evaluations on --val.",
        show_default="the end only",
        rich_help_panel=RUN_PANEL,
    ),
]
SaveEveryOption = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        metavar="N",
        help="Steps between checkpoints.",
        show_default="500",
        rich_help_panel=RUN_PANEL,
    ),
]
NumWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        metavar="N",
        help="Processes that load data.",
        show_default="1",
        rich_help_panel=RUN_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where a run of the same options stopped.",
        rich_help_panel=RUN_PANEL,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Start anew in a folder that holds a run.", rich_help_panel=RUN_PANEL),
]


@train.command()
def concat(
    data: DataOption,
    output: OutputOption,
    stage: StageOption = StageChoice.ALL,
    model: ModelOption = None,
    mask2former: Mask2formerOption = None,
    clip: ClipOption = None,
    images: ImagesOption = None,
    val: ValOption = None,
    val_images: ValImagesOption = None,
    split: SplitOption = None,
    unseen: UnseenOption = None,
    label_names: LabelNamesOption = LabelNames.CLEAN,
    unseen_policy: UnseenPolicyOption = UnseenPolicy.DROP_IMAGES,
    size: SizeOption = (928, 928),
    min_scale: MinScaleOption = 0.1,
    max_scale: MaxScaleOption = 2.0,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: GradientAccumulationStepsOption = None,
    learning_rate: LearningRateOption = None,
    max_grad_norm: MaxGradNormOption = None,
    mixed_precision: MixedPrecisionOption = None,
    seed: SeedOption = None,
    arguments: ArgumentsOption = None,
    evaluate_every: EvaluateEveryOption = None,
    save_every: SaveEveryOption = None,
    num_workers: NumWorkersOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Train CONCAT's segmentor on the seen labels of a data set.

    OUTPUT/checkpoint holds model and processor at the end; `zsseg segment` and
    `transformers.pipeline` load it. Ctrl-C saves a checkpoint and stops;
    --resume goes on from it.

    Example: zsseg train concat --data camvid/train --val camvid/val --model
    START --steps 900 --batch-size 8 --size 288 384 --output runs/camvid
    """
    with errors_in_one_line(show_traceback=traceback), log_shown():
        if (model is None) == (mask2former is None) or (mask2former is None) != (clip is None):
            raise UsageError("name the start weights: either --model, or --mask2former with --clip")
        if resume and overwrite:
            raise UsageError("--resume goes on with a run, --overwrite starts anew; give one of them")
        if val is None and (val_images is not None or evaluate_every is not None):
            raise UsageError("--val-images and --evaluate-every need --val, the data to evaluate on")
        for checkpoint in (model, mask2former, clip):
            if checkpoint is not None:
                check_checkpoint_folder(checkpoint)
        from zsseg.cli.ground_truth import LabelSetup, open_dataset
        from zsseg.cli.training_run import (
            TrainingRun,
            build_stage_arguments,
            check_stage_folders,
            read_arguments,
        )

        given = {
            "steps": steps,
            "batch_size": batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "learning_rate": learning_rate,
            "max_grad_norm": max_grad_norm,
            "mixed_precision": None if mixed_precision is None else mixed_precision.value,
            "seed": seed,
            "evaluate_every": evaluate_every,
            "save_every": save_every,
            "num_workers": num_workers,
        }
        labels = LabelSetup(split, unseen, label_names)
        dataset = open_dataset(data, images, labels)
        validation = None if val is None else open_dataset(val, val_images, labels)
        stages = build_stage_arguments(
            output,
            None if stage is StageChoice.ALL else stage.value,
            validation,
            from_file={} if arguments is None else read_arguments(arguments),
            from_options={name: value for name, value in given.items() if value is not None},
        )
        if not resume and not overwrite:
            check_stage_folders(output, stages)
        run = TrainingRun(stages=stages, dataset=dataset, validation=validation, labels=labels, output=output)
        run.load(model=model, mask2former=mask2former, clip=clip)
        run.print_setup(unseen_policy.value)
        is_complete = run.train(
            size=size,
            min_scale=min_scale,
            max_scale=max_scale,
            unseen_policy=unseen_policy.value,
            resume=resume,
            overwrite=overwrite,
        )
    if not is_complete:
        raise typer.Exit(EXIT_FAILURE)
