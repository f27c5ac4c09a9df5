"""The folder that a command writes into."""

from pathlib import Path

from zsseg.cli.messages import UsageError


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a folder may be made or written into; nothing is made yet.

    Raises:
        UsageError: if it is a file, or not empty and ``overwrite`` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; name a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"--output {folder} is not empty; choose another folder, or pass --overwrite to replace the "
            "files of the same names in it"
        )
