"""``zsseg data``: look at a data set before it is trained on."""

from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.messages import EXIT_FAILURE, TracebackOption, UsageError, errors_in_one_line, log_shown
from zsseg.cli.options import (
    RESULT_PANEL,
    ConfigOption,
    ImagesOption,
    LabelNames,
    LabelNamesOption,
    PartOption,
    RevisionOption,
    SplitOption,
    UnseenOption,
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A folder, a COCO JSON, or USER/NAME of a data set on the Hub.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Gets check.json and sheet.png; those of an earlier check are replaced.",
        rich_help_panel=RESULT_PANEL,
    ),
]

data = typer.Typer(name="data", no_args_is_help=True)


@data.callback()
def look_at_data() -> None:
    """Look at a data set before it is trained on."""


@data.command()
def check(
    source: SourceArgument,
    images: ImagesOption = None,
    part: PartOption = None,
    config: ConfigOption = None,
    revision: RevisionOption = None,
    split: SplitOption = None,
    unseen: UnseenOption = None,
    label_names: LabelNamesOption = LabelNames.CLEAN,
    output: OutputOption = Path("data-check"),
    traceback: TracebackOption = False,
) -> None:
    """Read all of a data set, count what is there and list what is wrong.

    Every picture is read with its ground truth. What is wrong with single
    pictures is listed and the rest goes on; the exit code is 1 then.
    OUTPUT/sheet.png shows twelve pictures with their labels.

    Example: zsseg data check camvid/train
    """
    with errors_in_one_line(show_traceback=traceback), log_shown():
        from zsseg.cli.data_check_run import check_check_folder, list_fatal, print_check, write_check
        from zsseg.cli.ground_truth import LabelSetup, describe_labels, find_dataset, open_dataset
        from zsseg.data.annotation_files import DataProblem
        from zsseg.data.checking import check_dataset

        check_check_folder(output)
        labels = LabelSetup(split, unseen, label_names)
        location = find_dataset(source, part=part, config=config, revision=revision)
        problems: list[DataProblem] = []
        try:
            dataset = open_dataset(location, images, labels, problems=problems)
        except UsageError:
            raise
        except (ValueError, OSError) as error:
            if traceback:
                raise
            found, opened = list_fatal(error, problems), None
        else:
            typer.secho(f"{location.path} · {location.layout}", bold=True)
            typer.echo(describe_labels(dataset.vocabulary, labels))
            found, opened = check_dataset(dataset, problems), dataset
        print_check(found)
        write_check(output, found, opened, location.path)
    if found.problems:
        raise typer.Exit(EXIT_FAILURE)
