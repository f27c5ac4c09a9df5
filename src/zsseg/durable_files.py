"""Files that outlive a crash of the machine."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Return when a file's contents, or a folder's list of names, are on disk and not only on their way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file there takes the place of ``path`` when the block ends without an error.

    Readers see the old file or the whole new one, also if several processes, or machines that share the
    folder, write the same file at once: the last one to end wins. What a killed process leaves begins with a
    dot and ends in ".part".
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield unfinished
        flush_to_disk(unfinished)
        unfinished.replace(path)
        flush_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
