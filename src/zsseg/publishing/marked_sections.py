"""Parts of documents that commands write: what stands between two marks is theirs, the rest is not."""

from pathlib import Path

CONVERSION_MARK = "zsseg-conversion"
"""Around what a converter's card says of the origin of the weights."""


def replace_marked_section(document: Path, name: str, content: str) -> None:
    """Put ``content`` between the lines ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        OSError: if the document cannot be read or written.
        ValueError: if it does not hold both lines once, in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = document.read_text(encoding="utf-8")
    if find_marked_section(text, name) is None:
        raise ValueError(f"{document} must hold the line {begin} once and, below, {end} once: add them")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(before + build_marked_section(name, content) + after, encoding="utf-8")


def build_marked_section(name: str, content: str) -> str:
    """``content`` between its two lines."""
    return f"<!-- {name} -->\n{content}\n<!-- /{name} -->"


def find_marked_section(text: str, name: str) -> str | None:
    """What stands between the two lines, None if they do not stand there once and in this order."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        return None
    return text.partition(begin)[2].partition(end)[0].strip()
