"""``zsseg demo``: one held-out scene of Patchwork segmented by words, with the packaged checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from zsseg.checkpoints import resolve_checkpoint
from zsseg.cli.checkpoint_loading import load_pipeline
from zsseg.cli.labels import LABELS_SYNTAX
from zsseg.cli.messages import TracebackOption, errors_in_one_line
from zsseg.cli.options import RESULT_PANEL, OptionalModelOption, OverwriteOption
from zsseg.cli.output_folder import check_output_folder

DEFAULT_SCENE = 8
"""A scene with two things of unseen names."""

OVERLAY_FILE = "overlay.png"
SEGMENTS_FILE = "segments.json"

SCENE_PANEL = "Scene"

SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        metavar="N",
        help="Which scene of the held-out world.",
        rich_help_panel=SCENE_PANEL,
    ),
]
PresetOption = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="How difficult: easy, standard or hard.",
        rich_help_panel=SCENE_PANEL,
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        "-l",
        metavar="LABELS",
        help=f"What to find. {LABELS_SYNTAX}",
        show_default="Patchwork's sixty names",
        rich_help_panel=SCENE_PANEL,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.", rich_help_panel=RESULT_PANEL),
]


def demo(
    seed: SeedOption = DEFAULT_SCENE,
    labels: LabelsOption = None,
    preset: PresetOption = "standard",
    model: OptionalModelOption = None,
    output: OutputOption = Path("demo"),
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Segment a scene by words, some of which training never showed.

    Renders a scene of Patchwork that no training has used, segments it with
    the packaged checkpoint, and writes overlay.png, the picture beside the
    result with a star at unseen labels, and segments.json. Works offline.

    Example: zsseg demo --seed 3 --labels "striped star, plain disc, red brick"
    """
    with errors_in_one_line(show_traceback=traceback):
        own_files = {OVERLAY_FILE, SEGMENTS_FILE}
        holds_only_a_demo = output.is_dir() and {path.name for path in output.iterdir()} <= own_files
        # A demo may replace an earlier one without being asked.
        check_output_folder(output, overwrite=overwrite or holds_only_a_demo)
        checkpoint = resolve_checkpoint(model)
        from zsseg.cli.demo_run import DemoRun

        run = DemoRun(preset, seed, labels)
        run.print_setup(checkpoint)
        found = run.segment(load_pipeline("panoptic", checkpoint))
        run.print_found(found)
        run.write(found, checkpoint, overlay=output / OVERLAY_FILE, records=output / SEGMENTS_FILE)
