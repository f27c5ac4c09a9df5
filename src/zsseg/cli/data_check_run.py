"""What ``zsseg data check`` prints and writes."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from zsseg.cli.messages import UsageError, print_error, print_note
from zsseg.cli.text_layout import echo_table, format_count, format_percent
from zsseg.data.annotation_files import DataProblem
from zsseg.data.checking import DatasetCheck, LabelCount, Spread
from zsseg.data.examples import PanopticDataset, PanopticExample, recount_target
from zsseg.durable_files import flush_to_disk
from zsseg.structures import PanopticSegmentation
from zsseg.visualization import draw_panoptic
from zsseg.visualization.contact_sheet import Tile, draw_contact_sheet
from zsseg.visualization.legend import BACKGROUND
from zsseg.vocabulary import Vocabulary

CHECK_FILE = "check.json"
SHEET_FILE = "sheet.png"
SHEET_COLUMNS = 4
TILE_SIZE = (480, 360)
"""Width and height that a picture of the sheet fits into."""
SHOWN_PROBLEMS = 20
SHOWN_LABELS = 20


def check_check_folder(folder: Path) -> None:
    """Make sure that a check may be written into a folder; an earlier check there is replaced.

    Raises:
        UsageError: if it is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; name a folder")
    others = {path.name for path in folder.iterdir()} - {CHECK_FILE, SHEET_FILE} if folder.is_dir() else set()
    if others:
        raise UsageError(f"--output {folder} holds other files: {sorted(others)[:5]}; choose another folder")


def print_check(check: DatasetCheck) -> None:
    """The counts as a table, the notes, and the first problems on stderr."""
    if check.heights is not None and check.widths is not None:
        typer.echo(
            f"{format_count(check.pictures, 'picture')} · height {_format_spread(check.heights)}, "
            f"width {_format_spread(check.widths)} pixels (min–median–max) · "
            f"{format_percent(check.void_pixels / check.pixels)} % of the pixels void"
        )
        present = [label for label in check.labels if label.pictures]
        _print_labels(sorted(present, key=lambda label: -label.pixels), check.pixels)
    if absent := check.absent_labels:
        shown = ", ".join(absent[:SHOWN_LABELS]) + (", …" if len(absent) > SHOWN_LABELS else "")
        print_note(f"labels that never occur: {len(absent)} of {len(check.labels)} ({shown})")
    for note in check.notes:
        print_note(note)
    for problem in check.problems[:SHOWN_PROBLEMS]:
        print_error(f"{problem.file_name}: {problem.reason}" if problem.file_name else problem.reason)
    if check.problems:
        left_out = len(check.problems) - SHOWN_PROBLEMS
        more = f", {left_out} of them not shown here" if left_out > 0 else ""
        print_error(f"{format_count(len(check.problems), 'problem')}{more}")


def write_check(folder: Path, check: DatasetCheck, dataset: PanopticDataset | None, source: str) -> None:
    """Write ``check.json`` and, if any picture could be read, ``sheet.png``; each file whole or not at all.

    Args:
        folder: made with its parents.
        check: what was found.
        dataset: what was checked; None if it could not be opened.
        source: what it is called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"source": source, **check.to_dict()}, indent=1, ensure_ascii=False) + "\n"
    _replace(folder / CHECK_FILE, text.encode())
    typer.echo(f"{typer.style('wrote', fg='green', bold=True)} {folder / CHECK_FILE}")
    if dataset is None or not check.shown:
        (folder / SHEET_FILE).unlink(missing_ok=True)
        return
    sheet = draw_sheet([dataset[index] for index in check.shown], dataset.vocabulary)
    encoded = io.BytesIO()
    sheet.save(encoded, format="PNG")
    _replace(folder / SHEET_FILE, encoded.getvalue())
    typer.echo(
        f"{typer.style('wrote', fg='green', bold=True)} {folder / SHEET_FILE}: look at it before you train"
    )


def draw_sheet(examples: Sequence[PanopticExample], vocabulary: Vocabulary) -> Image.Image:
    """Pictures with their ground truth over them, each with its legend, on one page."""
    drawings = [draw_panoptic(*_fit(example), vocabulary) for example in examples]
    width = max(drawing.width for drawing in drawings)
    height = max(drawing.height for drawing in drawings)
    unseen = set(vocabulary.unseen_label_ids)
    tiles = []
    for example, drawing in zip(examples, drawings, strict=True):
        picture = Image.new("RGB", (width, height), BACKGROUND)
        picture.paste(drawing, ((width - drawing.width) // 2, 0))
        has_unseen = any(segment.label_id in unseen for segment in example.target.segments)
        tiles.append(Tile(picture, example.file_name, has_unseen))
    return draw_contact_sheet(tiles, columns=SHEET_COLUMNS)


def list_fatal(error: Exception, problems: Sequence[DataProblem]) -> DatasetCheck:
    """The check of a data set that could not be opened: what was found until then, and what stopped it."""
    return DatasetCheck((), [*problems, DataProblem("", " ".join(str(error).split()))])


def _format_spread(spread: Spread) -> str:
    return f"{spread.min}–{spread.median}–{spread.max}"


def _print_labels(labels: Sequence[LabelCount], num_pixels: int) -> None:
    has_unseen = any(not label.is_seen for label in labels)
    header = ["label", "kind", "pictures", "segments", "crowds", "pixels %"]
    rows = [
        [
            label.name + ("" if label.is_seen else " *"),
            "thing" if label.isthing else "stuff",
            f"{label.pictures:,}",
            f"{label.segments:,}",
            f"{label.crowds:,}",
            format_percent(label.pixels / num_pixels),
        ]
        for label in labels[:SHOWN_LABELS]
    ]
    echo_table(header, rows, left_columns=2)
    if len(labels) > SHOWN_LABELS:
        typer.echo(f"  … and {format_count(len(labels) - SHOWN_LABELS, 'label')} more in {CHECK_FILE}")
    if has_unseen:
        typer.echo("  * unseen")


def _fit(example: PanopticExample) -> tuple[Image.Image, PanopticSegmentation]:
    """Picture and target scaled to fit into a tile, in their own proportions."""
    image, target = example.image, example.target
    scale = min(edge / length for edge, length in zip(TILE_SIZE, image.size, strict=True))
    width, height = (max(1, round(length * scale)) for length in image.size)
    rows = np.minimum(((np.arange(height) + 0.5) / scale).astype(np.int64), image.height - 1)
    columns = np.minimum(((np.arange(width) + 0.5) / scale).astype(np.int64), image.width - 1)
    segment_ids = np.ascontiguousarray(target.segment_ids[rows[:, None], columns])
    return image.resize((width, height), Image.Resampling.LANCZOS), recount_target(target, segment_ids)


def _replace(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        flush_to_disk(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
