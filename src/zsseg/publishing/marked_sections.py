"""Parts of documents that commands write: what stands between two marks is theirs, the rest is not."""

from pathlib import Path


def replace_marked_section(document: Path, name: str, content: str) -> None:
    """Put ``content`` between the lines ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        OSError: if the document cannot be read or written.
        ValueError: if it does not hold both lines once, in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = document.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{document} must hold the line {begin} once and, below, {end} once: add them")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")
