"""``zsseg publish``: a checkpoint with its card and its evaluations to the Hub."""

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from zsseg.cli.checkpoint_loading import find_checkpoint, quieten_transformers
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line, log_shown, print_note

CARD_PANEL = "Card"
FILES_PANEL = "Files"
HUB_PANEL = "Hub"

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint, or the name of a packaged one.")
]
RepositoryArgument = Annotated[
    str, typer.Argument(metavar="USER/NAME", help="Repository on the Hub; it is made if there is none.")
]
EvaluationOption = Annotated[
    list[Path],
    typer.Option(
        "--evaluation",
        "-e",
        metavar="JSON",
        help="results.json of zsseg evaluate with this very checkpoint; may be given several times. The "
        "card's figures come from these alone.",
        rich_help_panel=CARD_PANEL,
    ),
]
LicenseOption = Annotated[
    str,
    typer.Option(
        "--license",
        metavar="ID",
        help="Of the weights, as the Hub spells it: apache-2.0, mit, cc-by-4.0, …, or other.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
LicenseNameOption = Annotated[
    str,
    typer.Option(
        "--license-name",
        metavar="NAME",
        help="What the licence is called, if it is other.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
LicenseLinkOption = Annotated[
    str,
    typer.Option(
        "--license-link",
        metavar="URL",
        help="Where its text is, if it is other.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
TrainingDataOption = Annotated[
    str,
    typer.Option(
        "--training-data",
        metavar="TEXT",
        help="What the model was trained on.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
TrainingDataLicenseOption = Annotated[
    str,
    typer.Option(
        "--training-data-license",
        metavar="TEXT",
        help="The licence of the data.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
DatasetOption = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        metavar="ID",
        help="Hub id of training data; may be given several times.",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
CardDataOption = Annotated[
    Path | None,
    typer.Option(
        "--card-data",
        metavar="YAML",
        help="All of these in a file: license, training_data, datasets, description, limits, tags, …",
        show_default=False,
        rich_help_panel=CARD_PANEL,
    ),
]
IncludeOption = Annotated[
    list[str],
    typer.Option(
        "--include",
        metavar="PATTERN",
        help='Publish these files of the folder too, such as "pictures/*".',
        show_default=False,
        rich_help_panel=FILES_PANEL,
    ),
]
DryRunOption = Annotated[
    Path | None,
    typer.Option(
        "--dry-run",
        metavar="FOLDER",
        help="Write what would be published into FOLDER and send nothing. Its card may be edited and the "
        "folder published then.",
        show_default=False,
        rich_help_panel=FILES_PANEL,
    ),
]
PrivateOption = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Who sees a repository that is made.",
        show_default="the account's default",
        rich_help_panel=HUB_PANEL,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="BRANCH",
        help="Branch to commit to; it is made if there is none.",
        show_default="main",
        rich_help_panel=HUB_PANEL,
    ),
]
CreatePrOption = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead.", rich_help_panel=HUB_PANEL)
]
MessageOption = Annotated[
    str, typer.Option("--message", metavar="TEXT", help="Of the commit.", rich_help_panel=HUB_PANEL)
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that are there with other contents, and delete those of another checkpoint.",
        rich_help_panel=HUB_PANEL,
    ),
]


def publish(
    checkpoint: CheckpointArgument,
    repository: RepositoryArgument,
    evaluation: EvaluationOption = [],  # noqa: B006 typer shows it and copies it
    license_id: LicenseOption = "",
    license_name: LicenseNameOption = "",
    license_link: LicenseLinkOption = "",
    training_data: TrainingDataOption = "",
    training_data_license: TrainingDataLicenseOption = "",
    dataset: DatasetOption = [],  # noqa: B006
    card_data: CardDataOption = None,
    include: IncludeOption = [],  # noqa: B006
    dry_run: DryRunOption = None,
    private: PrivateOption = None,
    revision: RevisionOption = None,
    create_pr: CreatePrOption = False,
    message: MessageOption = "Publish with zsseg",
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub, with its card and evaluations.

    Checks everything here first, sends one commit, downloads it again and
    compares: the model from the Hub gives the same bits.

    Example: zsseg publish runs/mine/best user/name -e scores/results.json --license mit --training-data "…"
    """
    with errors_in_one_line(show_traceback=traceback), log_shown():
        if create_pr and revision is not None:
            raise UsageError("--create-pr proposes a change of the main branch; leave out --revision")
        if dry_run is not None:
            _check_dry_run(dry_run, overwrite=overwrite)
        folder = Path(find_checkpoint(checkpoint))
        if not folder.is_dir():
            raise UsageError(f"there is no folder {checkpoint}; a checkpoint on the Hub is downloaded first")
        from zsseg.publishing.card_facts import CardFacts

        facts = CardFacts() if card_data is None else CardFacts.load(card_data)
        facts = facts.override(
            CardFacts(
                license=license_id,
                license_name=license_name,
                license_link=license_link,
                training_data=training_data,
                training_data_license=training_data_license,
                datasets=tuple(dataset),
            )
        )
        from zsseg.publishing.folder_replacement import replacing_folder
        from zsseg.publishing.hub_upload import check_download, upload_publication
        from zsseg.publishing.publication import build_publication

        quieten_transformers()
        with (
            TemporaryDirectory(prefix="zsseg-publish-")
            if dry_run is None
            else replacing_folder(dry_run) as made
        ):
            publication = build_publication(
                folder, repository, Path(made), facts=facts, evaluations=evaluation, include=include
            )
            _print_files(publication.folder, publication.files)
            if publication.left_out:
                print_note(f"not published: {', '.join(publication.left_out)}")
            if not publication.evaluations:
                print_note(
                    "the card has no figures: evaluate the checkpoint and pass --evaluation results.json"
                )
            if dry_run is None:
                published = upload_publication(
                    publication,
                    repository,
                    private=private,
                    revision=revision,
                    create_pr=create_pr,
                    overwrite=overwrite,
                    message=message,
                )
                state = "published" if published.is_new else "already there"
                typer.echo(f"\n{typer.style(state, fg='green', bold=True)} {published.url}")
                check_download(publication, published)
                typer.echo(
                    f"downloaded again: the same {len(publication.files)} files, the same bits from the model"
                )
        if dry_run is not None:
            _print_dry_run(dry_run, repository)


def _check_dry_run(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be replaced as a whole, before anything slow happens."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(f"--dry-run {folder} is the working folder, or holds it; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--dry-run {folder} is a file; name a new folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"--dry-run {folder} is not empty; choose another folder, or pass --overwrite to replace it"
        )


def _print_files(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        typer.echo(f"{(folder / name).stat().st_size:>14,}  {name}")


def _print_dry_run(folder: Path, repository: str) -> None:
    typer.echo(
        f"\n{typer.style('wrote', fg='green', bold=True)} {folder}; nothing was sent. Publish it as it is, "
        f"or with its README.md edited: {shlex.join(['zsseg', 'publish', str(folder), repository])}"
    )
