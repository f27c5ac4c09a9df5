"""A command as a reader can run it again, without this machine's paths."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from zsseg.cli.labels import FILE_MARK


def describe_command(context: typer.Context, *, leave_out: Collection[str]) -> str:
    """The command of a context with the options that were given.

    Args:
        context: of the running command.
        leave_out: parameters that do not change the result, such as where it is written.
    """
    words = ["zsseg", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in leave_out or source is None or source.name != "COMMANDLINE":
            continue
        option = max(parameter.opts, key=len)
        value = context.params[name]
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option, shorten_path(_spell(each))]
    return shlex.join(words)


def shorten_path(text: str) -> str:
    """A path relative to the working folder, or its last part where it lies elsewhere; all else as it is.

    Example:
        >>> shorten_path("/home/ada/data/coco"), shorten_path("data/coco"), shorten_path("@/home/ada/new.txt")
        ('coco', 'data/coco', '@new.txt')
    """
    if text.startswith(FILE_MARK):
        return FILE_MARK + shorten_path(text.removeprefix(FILE_MARK))
    path = Path(text)
    if not path.is_absolute():
        return text
    here = Path.cwd()
    # Everything lies below the root, which is no place to run a command again from.
    if here != Path(here.anchor) and here in path.parents:
        return str(path.relative_to(here))
    return path.name


def _spell(value: Any) -> str:
    return str(getattr(value, "value", value))
