"""Convert a CLIP of open_clip to transformers, where it is text tower and teacher of zsseg; or back.

python conversion_scripts/convert_open_clip_to_zsseg.py FOLDER --tokenizer open_clip \
    --output runs/clip --verify
python conversion_scripts/convert_open_clip_to_zsseg.py runs/clip --to-open-clip \
    --output runs/open_clip --verify
"""

from pathlib import Path
from typing import Annotated

import typer
from script_options import OutputOption, VerifyOption, run

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="File of weights, or folder with open_clip_config.json; with --to-open-clip a folder or Hub id "
        "of transformers.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="open_clip's JSON of the model.",
        show_default="open_clip_config.json beside the weights",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="NAME",
        help='Folder or Hub id of its tokenizer, such as openai/clip-vit-base-patch16; or "open_clip".',
        show_default=False,
    ),
]
ToOpenClipOption = Annotated[
    bool, typer.Option("--to-open-clip", help="Convert from transformers to open_clip.")
]


def convert(
    source: SourceArgument,
    output: OutputOption,
    config: ConfigOption = None,
    tokenizer: TokenizerOption = None,
    to_open_clip: ToOpenClipOption = False,
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Convert a CLIP of open_clip to transformers, where it is text tower and teacher of zsseg; or back."""
    with errors_in_one_line(show_traceback=traceback):
        check_output_folder(output, overwrite=overwrite)
        if to_open_clip and (config is not None or tokenizer is not None):
            raise UsageError("--to-open-clip takes neither --config nor --tokenizer: open_clip has its own")
        if not to_open_clip and tokenizer is None:
            raise UsageError(
                "name the tokenizer: --tokenizer open_clip for the one in that package, or a folder or Hub "
                "id such as openai/clip-vit-base-patch16"
            )
        quieten_transformers()
        from zsseg.conversion import open_clip_layout
        from zsseg.conversion.converted_clip import (
            OPEN_CLIP_TOKENIZER,
            load_tokenizer,
            write_clip,
            write_open_clip,
        )
        from zsseg.conversion.verification import format_differences
        from zsseg.layers.vision_language import import_open_clip

        if verify or tokenizer == OPEN_CLIP_TOKENIZER:
            try:
                import_open_clip()
            except ImportError as error:
                raise UsageError(str(error)) from error
        if to_open_clip:
            differences = write_open_clip(output, source, verify=verify)
        else:
            weights_file, config_file = open_clip_layout.find_open_clip_files(Path(source), config)
            settings = open_clip_layout.read_open_clip_settings(config_file)
            weights = open_clip_layout.read_open_clip_weights(weights_file)
            model = open_clip_layout.convert_from_open_clip(weights, settings)
            words = load_tokenizer(tokenizer, model.config.text_config.vocab_size)
            typer.echo(weights.books.format_table())
            differences = write_clip(output, model, words, settings, weights.tensors if verify else None)
        typer.echo(format_differences(differences))
        typer.echo(f"wrote {output}")


if __name__ == "__main__":
    run(convert)
