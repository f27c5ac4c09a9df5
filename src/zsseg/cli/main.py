"""The entry point: the commands and what they share."""

from typing import Annotated

import typer

from zsseg import __version__
from zsseg.cli.commands.adapt import adapt
from zsseg.cli.commands.data import data
from zsseg.cli.commands.demo import demo
from zsseg.cli.commands.env import env
from zsseg.cli.commands.evaluate import evaluate
from zsseg.cli.commands.export import export
from zsseg.cli.commands.patchwork import patchwork
from zsseg.cli.commands.publish import publish
from zsseg.cli.commands.segment import segment
from zsseg.cli.commands.train import train
from zsseg.cli.commands.train_patchwork_clip import patchwork_clip as train_patchwork_clip
from zsseg.cli.commands.train_scan import scan as train_scan

app = typer.Typer(
    name="zsseg",
    help="Segment pictures into things and stuff named by words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command()(segment)
app.add_typer(evaluate)
train.command()(train_scan)
train.command("patchwork-clip")(train_patchwork_clip)
app.add_typer(train)
app.command()(adapt)
app.add_typer(data)
app.command()(export)
app.command()(publish)
app.add_typer(patchwork)
app.command()(demo)
app.command()(env)


def print_version(is_asked: bool) -> None:
    """Print the version and stop."""
    if is_asked:
        typer.echo(f"zsseg {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Segment pictures into things and stuff named by words."""


def main() -> None:
    """Run the command line."""
    app()
