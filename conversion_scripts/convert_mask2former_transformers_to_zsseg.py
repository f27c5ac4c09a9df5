"""Convert a Mask2Former of transformers, on the Hub or on disk, to CONCAT.

python conversion_scripts/convert_mask2former_transformers_to_zsseg.py \
    facebook/mask2former-swin-tiny-coco-panoptic --clip openai/clip-vit-base-patch16 \
    --output runs/mask2former --verify
"""

from pathlib import Path
from typing import Annotated

import typer
from script_options import OutputOption, SeedOption, VerifyOption, run

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.messages import TracebackOption, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder

SourceArgument = Annotated[str, typer.Argument(metavar="NAME", help="Folder or Hub id of the Mask2Former.")]
ClipOption = Annotated[
    str,
    typer.Option(
        "--clip",
        metavar="NAME",
        help="Folder or Hub id of the CLIP (or text encoder) whose text tower goes into the checkpoint.",
    ),
]


def convert(
    source: SourceArgument,
    output: OutputOption,
    clip: ClipOption,
    seed: SeedOption = 0,
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Convert a Mask2Former of transformers, on the Hub or on disk, to CONCAT."""
    with errors_in_one_line(show_traceback=traceback):
        check_output_folder(output, overwrite=overwrite)
        quieten_transformers()
        from zsseg.conversion import converted_checkpoint as checkpoint
        from zsseg.conversion import mask2former_transformers as mask2former
        from zsseg.conversion.verification import build_picture, compute_differences

        model, processor, books = mask2former.convert_mask2former(source, clip=clip, seed=seed)

        def compare(reread):
            picture = build_picture(reread)
            original = mask2former.load_original(source).double()
            return compute_differences(
                mask2former.compute_original_outputs(original, picture),
                mask2former.compute_converted_outputs(reread, original.class_predictor, picture),
            )

        origin = checkpoint.Origin(
            layout="Mask2Former (transformers)",
            script=Path(__file__).name,
            name=Path(source).name if Path(source).exists() else source,
            sha256=None,
            note=checkpoint.COCO_NOTE,
        )
        differences = checkpoint.write_checkpoint(
            output, model, processor, books, origin, compare if verify else None
        )
        typer.echo(checkpoint.describe_result(books, differences, origin, output))


if __name__ == "__main__":
    run(convert)
