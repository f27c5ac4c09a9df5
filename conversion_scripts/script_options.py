"""Options that the conversion scripts share, and the words that a new checkpoint gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.messages import UsageError

SourceArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Its weights: .pth, .pt, .bin, .pkl or .safetensors.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the result is written.")
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        metavar="NAME",
        help="Folder or Hub id of the CLIP (or text encoder) whose text tower goes into the checkpoint.",
        show_default=False,
    ),
]
TextEmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        "--text-embeddings",
        metavar="FILE",
        help="Instead: vectors of a closed list of words, as PrecomputedTextEmbeddings saves them.",
        show_default=False,
    ),
]
PrefixOption = Annotated[
    str,
    typer.Option(
        "--prefix",
        metavar="TEXT",
        help='Convert the weights whose names begin so, such as "module."; the others are dropped.',
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the weights that are new.")]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Compare with an independent forward pass of the source; nothing is written if it differs.",
    ),
]


def check_text_options(clip: str | None, text_embeddings: Path | None) -> None:
    """Make sure that words come from exactly one place.

    Raises:
        UsageError: if they do not.
    """
    if (clip is None) == (text_embeddings is None):
        raise UsageError(
            "the checkpoint needs words from one place: give --clip NAME for a text tower, or "
            f"--text-embeddings FILE for a closed list; got {'neither' if clip is None else 'both'}"
        )


def run(convert: Callable[..., None]) -> None:
    """Run a script's function as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(convert)
    app()
