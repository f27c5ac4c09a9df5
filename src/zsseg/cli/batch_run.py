"""Segmenting very many pictures with several workers: what is said, and which environment Ray is given."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zsseg.cli.checkpoint_loading import check_family, quieten_transformers
from zsseg.cli.messages import UsageError, print_error
from zsseg.cli.options import Task
from zsseg.cli.text_layout import format_count
from zsseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    from zsseg.batch_inference.ray_engine import BatchReport

SHOWN_FAILURES = 20


def run_batch(
    pictures: Sequence[str],
    vocabulary: Vocabulary,
    task: Task,
    output: Path,
    *,
    model: str,
    thresholds: Mapping[str, float],
    with_coco_files: bool,
    **options: Any,
) -> bool:
    """Segment on Ray, write tables of results and say how it went.

    Args:
        pictures: what to segment.
        vocabulary: what to look for.
        task: which result.
        output: the folder to write into.
        model: a checkpoint.
        thresholds: those that were given.
        with_coco_files: write COCO's panoptic files beside the tables.
        options: of :func:`~zsseg.batch_inference.segment_pictures`.

    Returns:
        Whether every picture could be read.

    Raises:
        ModuleNotFoundError: without the extra ``scale``.
        UsageError: if the output is in the way.
        ValueError: for pictures, labels or options that do not fit, and if a worker fails.
    """
    _keep_ray_on_this_machine()
    from zsseg.batch_inference.coco_files import write_coco_files
    from zsseg.batch_inference.ray_engine import WorkerError, segment_pictures
    from zsseg.batch_inference.results_folder import ResultsFolderError

    quieten_transformers()
    check_family(model)
    typer.secho(f"{model} · ray · {format_count(len(vocabulary), 'label')}", bold=True)
    try:
        report = segment_pictures(
            pictures,
            candidate_labels=vocabulary,
            output=output,
            model=model,
            task=task.value,
            thresholds=thresholds,
            **options,
        )
    except ResultsFolderError as error:
        raise UsageError(str(error)) from error
    except WorkerError as error:
        raise ValueError(str(error)) from error
    if with_coco_files:
        write_coco_files(report.results, vocabulary)
    _print_end(report, with_coco_files=with_coco_files)
    return not report.failures


def _keep_ray_on_this_machine() -> None:
    """Let a Ray that is started here listen on the loopback interface alone, and send no statistics.

    Ray reads both when it is imported. A cluster that RAY_ADDRESS names has its own settings.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _print_end(report: "BatchReport", *, with_coco_files: bool) -> None:
    results = report.results
    files = format_count(results.num_parts, "table") + " in parts/"
    if with_coco_files:
        files += ", panoptic.json with its PNGs"
    before = report.num_pictures - report.num_segmented
    typer.echo(
        f"{typer.style('done', fg='green', bold=True)} in {report.seconds:.1f} s · "
        f"{format_count(report.num_segmented, 'image')} now, {before} before · {results.folder}: {files}"
    )
    if not report.failures:
        return
    print_error(
        f"{len(report.failures)} of {format_count(report.num_pictures, 'image')} could not be read, which "
        "their rows say (--retry-failed reads them again):"
    )
    for _, error in report.failures[:SHOWN_FAILURES]:
        typer.echo(f"  {error}", err=True)
    if len(report.failures) > SHOWN_FAILURES:
        typer.echo(f"  … and {len(report.failures) - SHOWN_FAILURES} more", err=True)
