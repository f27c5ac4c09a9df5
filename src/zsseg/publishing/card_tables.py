"""How figures and tables look in every card."""

from collections.abc import Iterable, Sequence


def build_table(header: Sequence[str], rows: Iterable[Sequence[str]], left_columns: int) -> str:
    """A Markdown table whose first ``left_columns`` columns are set left, the others right."""
    rule = ["---" if column < left_columns else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def spell(name: str) -> str:
    """The name of a figure or group in words, ``PQ_seen`` as ``PQ seen``."""
    return name.replace("_", " ").strip()


def format_percent(share: float | None) -> str:
    """A share in [0, 1] in percent with one decimal; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}"
