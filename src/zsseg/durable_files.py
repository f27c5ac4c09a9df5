"""Files that outlive a crash of the machine."""

import os
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Return when a file's contents, or a folder's list of names, are on disk and not only on their way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
