"""Numbers and tables as plain text: aligned on a terminal, whole when pasted."""

from collections.abc import Sequence

import typer

COLUMN_GAP = "  "


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left_columns: int = 1) -> None:
    """Print a table, indented, its header bold; arguments as :func:`format_table`."""
    title, *lines = format_table(header, rows, left_columns=left_columns).split("\n")
    for line in (typer.style(title, bold=True), *lines):
        typer.echo(f"  {line}")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left_columns: int = 1) -> str:
    """Align cells in columns, text to the left and numbers to the right.

    Args:
        header: one title a column.
        rows: as many cells each.
        left_columns: how many columns from the left hold text.

    Example:
        >>> print(format_table(["class", "IoU"], [["road", "91.0"], ["car", "7.5"]]))
        class   IoU
        road   91.0
        car     7.5
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        COLUMN_GAP.join(
            _pad(cell, width, to_right=column >= left_columns)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, *rows)
    )


def format_percent(share: float) -> str:
    """A share as a percentage with one decimal; NaN, where there is nothing to average, as a dash.

    Example:
        >>> format_percent(0.1234), format_percent(float("nan"))
        ('12.3', '–')
    """
    return "–" if share != share else f"{100 * share:.1f}"


def format_count(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> format_count(1, "image"), format_count(0, "image")
        ('1 image', '0 images')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _pad(cell: str, width: int, *, to_right: bool) -> str:
    from rich.cells import cell_len

    padding = " " * (width - cell_len(cell))
    return padding + cell if to_right else cell + padding
