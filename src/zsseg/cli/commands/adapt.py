"""``zsseg adapt``: new labels for a trained checkpoint, by their names alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import check_family, find_checkpoint, quieten_transformers
from zsseg.cli.labels import LABELS_SYNTAX, parse_labels
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder
from zsseg.cli.text_layout import format_percent

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder, Hub id or packaged checkpoint.")
]
LabelsOption = Annotated[
    str,
    typer.Option("--labels", "-l", metavar="LABELS", help=f"New things. {LABELS_SYNTAX}", show_default=False),
]
StuffOption = Annotated[
    str, typer.Option("--stuff", metavar="LABELS", help="New stuff, likewise.", show_default=False)
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the new checkpoint is written.")
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps of fine-tuning.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the pseudo queries.")]


def adapt(
    checkpoint: CheckpointArgument,
    output: OutputOption,
    labels: LabelsOption = "",
    stuff: StuffOption = "",
    steps: StepsOption = 1000,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Teach a checkpoint new labels by their names alone, without an image.

    Its generator imagines how the segmentor would see them; the projector to
    the text space learns them beside the labels that the checkpoint knows.
    Everything else stays as it is. CHECKPOINT itself is not changed.

    Examples: zsseg adapt runs/mine/checkpoint --labels "zebra, giraffe"
    --stuff "savanna" --output runs/mine/with-savanna

    zsseg adapt concat-patchwork-inductive --labels "striped star, dotted ring"
    --stuff "red weave" --output adapted
    """
    with errors_in_one_line(show_traceback=traceback):
        things, stuff_labels = parse_labels(labels), parse_labels(stuff)
        if not things and not stuff_labels:
            raise UsageError('name what is new: --labels "zebra, giraffe", --stuff "savanna", or both')
        check_output_folder(output, overwrite=overwrite)
        start = find_checkpoint(checkpoint)
        from transformers import AutoModel, AutoProcessor

        from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
        from zsseg.publishing.checkpoint_files import ADAPTATION_FILE
        from zsseg.publishing.folder_replacement import replacing_folder

        quieten_transformers()
        check_family(start)
        model = AutoModel.from_pretrained(start)
        if not isinstance(model, ConcatForPanopticSegmentation):
            raise ValueError(
                f"{checkpoint} is a {type(model).__name__}, which has no query generator: only checkpoints "
                "of CONCAT adapt by names"
            )
        processor = AutoProcessor.from_pretrained(start)
        result = model.adapt(
            processor, [*things, *stuff_labels], stuff_labels=stuff_labels, steps=steps, seed=seed
        )
        with replacing_folder(output) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            report = json.dumps({"checkpoint": checkpoint, **asdict(result)}, indent=2)
            (folder / ADAPTATION_FILE).write_text(report + "\n", encoding="utf-8")
    typer.echo(
        f"learnt {', '.join(result.new_labels)} in {result.seconds:.1f} s; the checkpoint knows "
        f"{len(result.known_labels)} labels"
    )
    for what, (before, after) in (
        ("stored queries of known labels", result.known_accuracy),
        ("pseudo queries of new labels", result.new_accuracy),
    ):
        typer.echo(f"{what} named right: {format_percent(before)} % → {format_percent(after)} %")
    typer.echo(f"{typer.style('wrote', fg='green', bold=True)} {output}")
