"""``zsseg patchwork``: the world as files and as pictures to look at."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import DATA_PANEL, RESULT_PANEL
from zsseg.cli.text_layout import format_count

SHEET_SCENES = 24
SCENE_COLUMNS = 6
CATEGORY_COLUMNS = 10

patchwork = typer.Typer(name="patchwork", no_args_is_help=True)


class ExportFormat(StrEnum):
    """What is written."""

    COCO_PANOPTIC = "coco-panoptic"
    IMAGE_CAPTIONS = "image-captions"
    BOTH = "both"


class WorldCategories(StrEnum):
    """What scenes may hold."""

    ALL = "all"
    SEEN = "seen"


@patchwork.callback()
def the_patchwork_world() -> None:
    """Write or look at Patchwork, a world drawn by code."""


SeedOption = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="Of the world; figures are reported on 1000000.",
        rich_help_panel=DATA_PANEL,
    ),
]
WorldSplitOption = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Which names are unseen: A, or seed-N.",
        rich_help_panel=DATA_PANEL,
    ),
]
SizeOption = Annotated[
    int,
    typer.Option("--size", metavar="PIXELS", help="Height and width.", rich_help_panel=DATA_PANEL),
]


@patchwork.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    scenes: Annotated[
        int, typer.Option("--scenes", metavar="N", help="How many.", rich_help_panel=DATA_PANEL)
    ],
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="easy, standard or hard.", rich_help_panel=DATA_PANEL),
    ] = "standard",
    seed: SeedOption = 0,
    split: WorldSplitOption = "A",
    categories: Annotated[
        WorldCategories,
        typer.Option(
            "--categories",
            metavar="KIND",
            help="all, or seen: scenes without an unseen pixel, for training.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = WorldCategories.ALL,
    size: SizeOption = 128,
    export_format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="coco-panoptic, image-captions, or both: a folder of each in DIR.",
            rich_help_panel=RESULT_PANEL,
        ),
    ] = ExportFormat.COCO_PANOPTIC,
    traceback: TracebackOption = False,
) -> None:
    """Write scenes into a folder that other tools read.

    coco-panoptic is images/, panoptic.json, panoptic/ and unseen.txt;
    image-captions is images/ and metadata.jsonl. Pictures are PNG.

    Example: zsseg patchwork export world --scenes 500 --seed 1000000
    """
    with errors_in_one_line(show_traceback=traceback):
        from zsseg.data.patchwork.dataset import PatchworkDataset
        from zsseg.data.patchwork.export import (
            export_coco_panoptic,
            export_image_captions,
            require_empty_folder,
        )

        dataset = PatchworkDataset(
            preset, seed=seed, num_scenes=scenes, split=split, categories=categories.value, size=size
        )
        try:
            require_empty_folder(folder)
        except FileExistsError as error:
            raise UsageError(str(error)) from error
        writers = {
            ExportFormat.COCO_PANOPTIC: export_coco_panoptic,
            ExportFormat.IMAGE_CAPTIONS: export_image_captions,
        }
        started = time.monotonic()
        if export_format is ExportFormat.BOTH:
            for each, write in writers.items():
                write(dataset, folder / each.value)
        else:
            writers[export_format](dataset, folder)
        what = f"{format_count(scenes, 'scene')} of {preset}, seed {seed}, split {split}"
        typer.echo(
            f"{typer.style('done', fg='green', bold=True)} in {time.monotonic() - started:.1f} s · "
            f"{folder}: {what}, {export_format.value}"
        )


@patchwork.command()
def sheet(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as sheet.png.", show_default=False)],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help=f"Instead: {SHEET_SCENES} scenes of easy, standard or hard.",
            show_default="every category by itself",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    seed: SeedOption = 0,
    split: WorldSplitOption = "A",
    size: SizeOption = 128,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE.", rich_help_panel=RESULT_PANEL)
    ] = False,
    traceback: TracebackOption = False,
) -> None:
    """Draw the sixty categories, or scenes, on one page.

    A star marks unseen categories, and scenes that hold one.

    Example: zsseg patchwork sheet categories.png
    """
    with errors_in_one_line(show_traceback=traceback):
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists already; name another file, or pass --overwrite")
        from zsseg.data.patchwork.dataset import PatchworkDataset
        from zsseg.data.patchwork.rendering import render_category
        from zsseg.visualization.contact_sheet import Tile, draw_contact_sheet

        dataset = PatchworkDataset(
            "standard" if preset is None else preset,
            seed=seed,
            num_scenes=SHEET_SCENES,
            split=split,
            size=size,
        )
        if preset is None:
            tiles = [
                Tile(render_category(label_id, seed=seed, size=size), category.name, not category.is_seen)
                for label_id, category in enumerate(dataset.vocabulary)
            ]
        else:
            unseen = set(dataset.vocabulary.unseen_label_ids)
            tiles = [
                Tile(dataset[index].image, f"scene {index}", bool(unseen & dataset.label_ids(index)))
                for index in range(SHEET_SCENES)
            ]
        columns = CATEGORY_COLUMNS if preset is None else SCENE_COLUMNS
        picture = draw_contact_sheet(tiles, columns=columns)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        typer.echo(f"{typer.style('done', fg='green', bold=True)} · {file}: {picture.width}×{picture.height}")
