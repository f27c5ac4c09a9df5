"""What a command says beside its result: notes, and a mistake of the user in one line without a traceback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

EXIT_FAILURE = 1
EXIT_USAGE = 2

EXTRA_BY_PACKAGE = {
    **dict.fromkeys(("accelerate", "datasets", "scipy", "tensorboard"), "train"),
    "evaluate": "evaluate",
    **dict.fromkeys(("pyarrow", "ray"), "scale"),
}
"""Package that only an extra brings → the extra."""

TracebackOption = Annotated[
    bool,
    typer.Option("--traceback", help="Show the whole traceback of an error.", rich_help_panel="Messages"),
]


class UsageError(ValueError):
    """Options that do not fit together or an output in the way: nothing was done, exit code 2."""


@contextmanager
def errors_in_one_line(*, show_traceback: bool) -> Iterator[None]:
    """Print a user's mistake as one line on stderr and exit; errors of ours pass.

    Args:
        show_traceback: let every error pass.

    Raises:
        typer.Exit: with code 2 for a :class:`UsageError`, 1 for any other ``ValueError`` or ``OSError`` and
            for a package of an extra that is not installed.
    """
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        is_ours = isinstance(error, ModuleNotFoundError) and error.name not in EXTRA_BY_PACKAGE
        if show_traceback or is_ours:
            raise
        print_error(_describe(error))
        raise typer.Exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE) from None


@contextmanager
def log_shown() -> Iterator[None]:
    """Print what zsseg logs about the data (pictures left out, labels that become void) as notes."""
    logger = logging.getLogger("zsseg")
    handler = _NoteHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage())


def print_error(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {' '.join(message.split())}", err=True)


def print_note(message: str) -> None:
    """One line on stderr about something that need not be wrong."""
    typer.echo(f"{typer.style('note:', fg='yellow', bold=True)} {' '.join(message.split())}", err=True)


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRA_BY_PACKAGE[str(error.name)]
        return f"this needs the package {error.name!r}, which is not installed: pip install 'zsseg[{extra}]'"
    notes: list[str] = getattr(error, "__notes__", [])
    return ". ".join([str(error) or type(error).__name__, *notes])
