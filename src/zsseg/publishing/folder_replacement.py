"""Folders that appear whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends without an error.

    Args:
        folder: its files are replaced as a whole; the new ones must hold all their names.

    Raises:
        FileExistsError: at the end, if it holds a name that the new folder does not; nothing is changed then.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    unfinished, replaced = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("part", "old"))
    unfinished.mkdir()
    try:
        yield unfinished
        if folder.exists():
            names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"(a file)"}
            if others := sorted(names - {path.name for path in unfinished.iterdir()}):
                raise FileExistsError(
                    f"{folder} holds what this would not write again: {others[:10]}; choose another folder, "
                    "or remove them"
                )
            folder.rename(replaced)
        try:
            unfinished.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
