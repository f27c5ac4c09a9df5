"""``zsseg export``: a checkpoint as one file for ONNX Runtime or ``torch.export``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import check_family, find_checkpoint, quieten_transformers
from zsseg.cli.labels import LABELS_SYNTAX, parse_vocabulary
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder, Hub id or packaged checkpoint.")
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="onnx: model.onnx for ONNX Runtime; torch: model.pt2 for torch.export.load.",
    ),
]
SizeOption = Annotated[
    tuple[int, int],
    typer.Option("--size", metavar="HEIGHT WIDTH", help="Of the pictures that it will take, in pixels."),
]
LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels",
        "-l",
        metavar="LABELS",
        help=f"Its labels, for good. {LABELS_SYNTAX}",
        show_default="none: text embeddings are a second input",
    ),
]
StuffOption = Annotated[
    str,
    typer.Option("--stuff", metavar="LABELS", help="Those of the labels that are stuff.", show_default=False),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")]
ToleranceOption = Annotated[
    float,
    typer.Option(
        "--tolerance",
        min=0.0,
        metavar="NUMBER",
        help="By how much a logit may differ from the checkpoint's, relative to max(1, |logit|).",
    ),
]


def export(
    checkpoint: CheckpointArgument,
    export_format: FormatOption,
    size: SizeOption,
    output: OutputOption,
    labels: LabelsOption = "",
    stuff: StuffOption = "",
    tolerance: ToleranceOption = 1e-4,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Write a checkpoint as one file that runs without zsseg.

    Pictures have one fixed size. With --labels the words are part of the file
    and a picture is its only input; without, embeddings of any number of texts
    are a second one. export.json beside it says how to prepare a picture and
    what the outputs mean. The file is run before it appears: its logits must
    be the checkpoint's.

    Example: zsseg export concat-patchwork --format onnx --size 128 160
    --labels "disc, ring|annulus, moss" --stuff "moss" --output exported
    """
    with errors_in_one_line(show_traceback=traceback):
        if stuff and not labels:
            raise UsageError("--stuff names some of --labels, which is missing")
        vocabulary = parse_vocabulary(labels, stuff, "") if labels else None
        check_output_folder(output, overwrite=overwrite)
        start = find_checkpoint(checkpoint)
        import torch
        from transformers import AutoModel, AutoProcessor

        from zsseg.publishing.exported_model import ExportFormat
        from zsseg.publishing.exporting import check_export_packages, export_model

        if export_format not in list(ExportFormat):
            raise UsageError(f"--format must be {' or '.join(ExportFormat)}, got {export_format!r}")
        chosen = ExportFormat(export_format)
        try:
            check_export_packages(chosen)
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from error
        quieten_transformers()
        check_family(start)
        model = AutoModel.from_pretrained(start, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(start)
        began = time.perf_counter()
        description = export_model(
            model,
            processor,
            output,
            export_format=chosen,
            size=size,
            vocabulary=vocabulary,
            tolerance=tolerance,
        )
    words = (
        f"text embeddings of width {description.text_width}"
        if vocabulary is None
        else f"{len(vocabulary)} labels of its own"
    )
    typer.echo(f"{checkpoint}: pictures of 1 × 3 × {description.height} × {description.width}, {words}")
    for name, difference in description.differences.items():
        typer.echo(f"{name} differ from the checkpoint's by at most {difference:.1e} of max(1, |logit|)")
    file = output / chosen.file_name
    typer.echo(
        f"{typer.style('wrote', fg='green', bold=True)} {file} ({file.stat().st_size / 1e6:.1f} MB) and "
        f"export.json in {time.perf_counter() - began:.0f} s"
    )
