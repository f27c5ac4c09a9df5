"""Options of the commands that train."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.options import DATA_PANEL

START_PANEL = "Start weights"
METHOD_PANEL = "Method"
RUN_PANEL = "Run"
ARGUMENTS_PANEL = "Training arguments (defaults: those of the papers)"


class RecipeChoice(StrEnum):
    """Recipes that bring data and start weights along."""

    PATCHWORK = "patchwork"


class StageChoice(StrEnum):
    """Which stages to run."""

    WARMUP = "warmup"
    SEGMENTOR = "segmentor"
    ALIGNMENT = "alignment"
    GENERATOR = "generator"
    UNION = "union"
    ALL = "all"


class ScanStageChoice(StrEnum):
    """Which of SCAN's stages to run."""

    PROPOSALS = "proposals"
    CONTEXTUAL_SHIFT = "contextual_shift"
    ALL = "all"


class Setting(StrEnum):
    """Whether training knows the unseen names."""

    INDUCTIVE = "inductive"
    TRANSDUCTIVE = "transductive"


class GeneratorChoice(StrEnum):
    """What makes pseudo queries of names."""

    MLP = "mlp"
    CVAE = "cvae"
    PRIMITIVES = "primitives"


class UnseenPolicy(StrEnum):
    """What happens to unseen segments in the training data."""

    DROP_IMAGES = "drop_images"
    IGNORE_PIXELS = "ignore_pixels"


class MixedPrecision(StrEnum):
    """Autocast dtype."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


RecipeOption = Annotated[
    RecipeChoice | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="patchwork: all stages from random weights on a world drawn by code; instead of --dataset.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "--data",
        metavar="DATASET",
        help="A folder (images/, labels/ and classes.json; a COCO JSON with its pictures; columns of the "
        "datasets library), a COCO JSON, panoptic or instances, or USER/NAME on the Hub.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
StreamingOption = Annotated[
    bool,
    typer.Option(
        "--streaming",
        help="Read the columns of a data set as they come in, without downloading it first; of CONCAT's "
        "stages warmup and segmentor only.",
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
RecipeOutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="A folder for each stage, and checkpoint/ at the end; a recipe's own is runs/RECIPE.",
        show_default=False,
        rich_help_panel=RUN_PANEL,
    ),
]
StageOption = Annotated[
    StageChoice,
    typer.Option(
        "--stage",
        metavar="STAGE",
        help="Run one stage: warmup (pixels are classified densely), segmentor (queries learn masks), "
        "alignment (the same with --teacher), generator, union. With --recipe: end after this one.",
        rich_help_panel=RUN_PANEL,
    ),
]
ScanStageOption = Annotated[
    ScanStageChoice,
    typer.Option(
        "--stage",
        metavar="STAGE",
        help="Run one stage: proposals (masks and the names of their embeddings), contextual_shift (a CLIP "
        "for the masks cut out).",
        rich_help_panel=RUN_PANEL,
    ),
]
CropsPerImageOption = Annotated[
    int,
    typer.Option(
        "--crops-per-image",
        metavar="N",
        help="contextual_shift: segments of a picture that a step sees.",
        rich_help_panel=METHOD_PANEL,
    ),
]
ShiftRatioOption = Annotated[
    float,
    typer.Option(
        "--shift-ratio",
        metavar="X",
        help="contextual_shift: share of a crop's background patches that become the whole picture's token.",
        rich_help_panel=METHOD_PANEL,
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="NAME",
        help="The CLIP or SigLIP whose text space the model uses; open_clip:MODEL/TAG is one of open_clip. "
        "With its tokens of pictures and segments the stage segmentor becomes alignment.",
        show_default=False,
        rich_help_panel=METHOD_PANEL,
    ),
]
SettingOption = Annotated[
    Setting,
    typer.Option(
        "--setting",
        metavar="SETTING",
        help="transductive: generator and union know the unseen names, never their pictures; inductive: no "
        "stage reads them, and there is no union.",
        rich_help_panel=METHOD_PANEL,
    ),
]
GeneratorOption = Annotated[
    GeneratorChoice | None,
    typer.Option(
        "--generator",
        metavar="TYPE",
        help="mlp, cvae, or PADing's primitives.",
        show_default="mlp",
        rich_help_panel=METHOD_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A checkpoint of the family.",
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
        help="and a CLIP or other text encoder. With --recipe: Patchwork's CLIP.",
        show_default="with --recipe: the packaged one",
        rich_help_panel=START_PANEL,
    ),
]
VisionClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        metavar="NAME",
        help="and a CLIP, both towers of which become part of the checkpoint.",
        show_default=False,
        rich_help_panel=START_PANEL,
    ),
]
ValOption = Annotated[
    str | None,
    typer.Option(
        "--val",
        metavar="DATASET",
        help="Evaluate on this during the stages that learn masks or crops, and after union; keep the best "
        "checkpoint. A data set in several parts gives its validation part.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
ValImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--val-images",
        metavar="FOLDER",
        help="Pictures of its COCO JSON.",
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
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="A published split into seen and unseen labels, such as coco_panoptic_119_14; with --recipe A "
        "or seed-N.",
        show_default="the data set's own, else all are seen; with --recipe A",
        rich_help_panel=DATA_PANEL,
    ),
]
SizeOption = Annotated[
    tuple[int, int],
    typer.Option("--size", metavar="H W", help="Pixels of a training crop.", rich_help_panel=ARGUMENTS_PANEL),
]
MinScaleOption = Annotated[
    float,
    typer.Option(
        "--min-scale",
        metavar="X",
        help="Smallest factor of the scale jitter.",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
MaxScaleOption = Annotated[
    float,
    typer.Option(
        "--max-scale",
        metavar="X",
        help="Largest factor of the scale jitter.",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        help="Optimizer steps of each stage on pictures, or of the only stage.",
        show_default=False,
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images in one forward pass of a device.",
        show_default="CONCAT 16; SCAN 32, then 8",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
GradientAccumulationStepsOption = Annotated[
    int | None,
    typer.Option(
        "--gradient-accumulation-steps",
        metavar="N",
        help="Forward passes for one step.",
        show_default="1",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        metavar="X",
        help="Peak of the learning rate.",
        show_default="CONCAT 1e-4; SCAN 6e-5, then 5e-6",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
MaxGradNormOption = Annotated[
    float | None,
    typer.Option(
        "--max-grad-norm",
        metavar="X",
        help="Longest gradient; longer ones are clipped.",
        show_default="0.01; none in SCAN's second stage",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
MixedPrecisionOption = Annotated[
    MixedPrecision | None,
    typer.Option(
        "--mixed-precision",
        metavar="DTYPE",
        help="Autocast: no, bf16 or fp16.",
        show_default="no; on Patchwork bf16",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Of data order, augmentation and sampling, and of new weights.",
        show_default="0",
        rich_help_panel=ARGUMENTS_PANEL,
    ),
]
ArgumentsOption = Annotated[
    Path | None,
    typer.Option(
        "--arguments",
        metavar="JSON",
        help="Any training argument by name, for the stages on pictures; under a stage's name those of it "
        "alone. Options given here win.",
        show_default=False,
        rich_help_panel=ARGUMENTS_PANEL,
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
TimeLimitOption = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="HOURS",
        help="Save a checkpoint and stop once the command has run this long; --resume goes on.",
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
