"""Batch inference on Ray: actors hold the model, parts of the pictures travel to them.

What travels is the number of a part. An actor reads the part's pictures and writes its table itself, so the
object store stays small however many pictures there are. When an actor dies, Ray starts it anew and gives it
the same parts.
"""

import logging
import os
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from tqdm import tqdm

from zsseg._version import __version__
from zsseg.batch_inference.picture_segmenter import (
    PartSegmenter,
    SegmenterSettings,
    TableSegmenter,
    Task,
    encode_settings,
)
from zsseg.batch_inference.picture_sources import IMAGE_COLUMN, list_pictures
from zsseg.batch_inference.results_folder import ResultsFolder
from zsseg.checkpoints import resolve_checkpoint
from zsseg.vocabulary import Vocabulary

PART_SIZE = 128
MAX_BLOCKS = 1024
"""Of Ray Data, each of one part or more: it keeps count of every block."""

OBJECT_STORE_BYTES = 128 * 1024**2


class WorkerError(RuntimeError):
    """Ray gave up: a worker failed, or died again and again. What was done is kept."""


@dataclass(frozen=True)
class BatchReport:
    """How a batch run ended.

    Attributes:
        results: its folder.
        num_pictures: all of it.
        num_segmented: in this run; the others were done before.
        failures: picture and error of each that could not be read, earlier ones too.
        seconds: from the start of the workers to the end.
    """

    results: ResultsFolder
    num_pictures: int
    num_segmented: int
    failures: list[tuple[str, str]]
    seconds: float


def segment_pictures(
    pictures: Sequence[str],
    *,
    candidate_labels: Sequence[str] | Vocabulary,
    output: str | os.PathLike[str],
    model: str | None = None,
    stuff_labels: Collection[str] = (),
    task: Task = "panoptic",
    thresholds: Mapping[str, float] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    size: Mapping[str, int] | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    cpus_per_worker: int = 1,
    part_size: int = PART_SIZE,
    image_column: str = IMAGE_COLUMN,
    retry_failed: bool = False,
    overwrite: bool = False,
) -> BatchReport:
    """Segment pictures with several workers and write a Parquet table for each part of them.

    Called again with the same output, it goes on where it was: parts that are done are skipped, and pictures
    new to it come behind. Ray runs where ``ray.init`` was called for before, else where ``RAY_ADDRESS`` says,
    else on this machine until this function ends.

    Args:
        pictures: files, folders, patterns, URLs, buckets and Parquet files; see
            :func:`~zsseg.batch_inference.picture_sources.list_pictures`.
        candidate_labels: as for the pipelines, or a vocabulary.
        output: folder of the results; on several machines, one that all of them see under this path.
        model: folder, Hub id or packaged checkpoint; None takes the packaged one.
        stuff_labels: those of the labels that are stuff; not with a vocabulary, which says it itself.
        task: "panoptic", or "semantic": every pixel gets a label.
        thresholds: ``threshold``, ``mask_threshold``, ``overlap_mask_area_threshold``, where they are not to
            be the checkpoint's own.
        device: "cuda", a GPU for each worker, or "cpu"; None takes GPUs if Ray has any.
        dtype: of the weights, such as "bfloat16"; None keeps the checkpoint's.
        size: of the image processor, instead of the checkpoint's own.
        batch_size: pictures in one forward pass, of those of equal size.
        num_workers: actors; None takes one a GPU, or as many as the CPU cores suffice for.
        cpus_per_worker: cores, and so threads, of each.
        part_size: pictures in a part: so many are lost, for each worker, when all are killed.
        image_column: of Parquet files.
        retry_failed: read again the pictures that could not be read in an earlier run.
        overwrite: begin anew.

    Returns:
        How it ended. ``report.results.iterate_rows()`` reads the results.

    Raises:
        FileNotFoundError: if a folder holds no picture or a pattern matches no file.
        ResultsFolderError: if the output holds something else, or results of another setup.
        ValueError: if the checkpoint cannot embed a label, or an option does not fit.
        WorkerError: if a worker fails, or a part kills every worker that tries it.
    """
    if part_size < 1:
        raise ValueError(f"part_size must be at least 1, got {part_size}")
    results = ResultsFolder(Path(output).absolute())
    results.check(overwrite=overwrite)
    sources = list_pictures(pictures, image_column=image_column)
    settings = SegmenterSettings(
        model=resolve_checkpoint(model),
        vocabulary=_build_vocabulary(candidate_labels, stuff_labels),
        task=task,
        thresholds=dict(thresholds or {}),
        dtype=dtype,
        size=size,
        batch_size=batch_size,
    )
    settings, setup = _encode(settings, device)
    results.claim(
        {**setup, "image_column": image_column},
        sources,
        part_size=part_size,
        about={"zsseg": __version__, "model": settings.model},
        overwrite=overwrite,
    )
    results.forget_attempts()
    started = time.monotonic()
    pending = results.find_pending(with_failed=retry_failed)
    num_segmented = sum(pending.values())
    if pending:
        with (
            _running_ray(),
            tqdm(
                total=results.num_pictures,
                initial=results.num_pictures - num_segmented,
                unit="picture",
                disable=None,
            ) as progress,
        ):
            pool = ActorPool.plan(device, num_workers, cpus_per_worker).at_most(len(pending))
            worker = partial(
                PartSegmenter,
                replace(settings, device=pool.device),
                results,
                image_column=image_column,
                num_threads=cpus_per_worker,
                retry_failed=retry_failed,
            )
            for part in run_parts(worker, sorted(pending), pool):
                progress.update(pending[part])
    results.remove_unfinished()
    return BatchReport(
        results, results.num_pictures, num_segmented, results.read_failures(), time.monotonic() - started
    )


def segment_dataset(
    dataset: ray.data.Dataset,
    *,
    candidate_labels: Sequence[str] | Vocabulary,
    model: str | None = None,
    stuff_labels: Collection[str] = (),
    image_column: str = IMAGE_COLUMN,
    task: Task = "panoptic",
    thresholds: Mapping[str, float] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    size: Mapping[str, int] | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    cpus_per_worker: int = 1,
    rows_per_call: int = 32,
) -> ray.data.Dataset:
    """Segment the pictures of a Ray data set, as one step of a pipeline of your own.

    Nothing is written and nothing is run until the result is used; what is lost when the program is killed is
    the program's own. :func:`segment_pictures` is the one that goes on where it was.

    Args:
        dataset: its pictures are bytes, paths, URLs or arrays.
        candidate_labels: as for the pipelines, or a vocabulary.
        model: folder, Hub id or packaged checkpoint; None takes the packaged one.
        stuff_labels: those of the labels that are stuff.
        image_column: the pictures.
        task: as are the other options, of :func:`segment_pictures`.
        thresholds: of panoptic results.
        device: "cuda" or "cpu".
        dtype: of the weights.
        size: of the image processor.
        batch_size: pictures in one forward pass, of those of equal size.
        num_workers: actors.
        cpus_per_worker: cores of each.
        rows_per_call: rows that a worker is given at once.

    Returns:
        The data set without its pictures, and with the columns ``width``, ``height``, ``segments``,
        ``panoptic_png``, ``error`` and ``seconds``.

    Raises:
        ValueError: if the checkpoint cannot embed a label, or an option does not fit.
    """
    pool = ActorPool.plan(device, num_workers, cpus_per_worker)
    settings = SegmenterSettings(
        model=resolve_checkpoint(model),
        vocabulary=_build_vocabulary(candidate_labels, stuff_labels),
        task=task,
        thresholds=dict(thresholds or {}),
        device=pool.device,
        dtype=dtype,
        size=size,
        batch_size=batch_size,
    )
    settings, _ = _encode(settings, device)
    return dataset.map_batches(
        _TableActor,
        batch_format="pyarrow",
        batch_size=rows_per_call,
        fn_constructor_args=(settings, image_column, cpus_per_worker),
        **pool.options(),
    )


@dataclass(frozen=True)
class ActorPool:
    """How many actors there are and what each of them holds."""

    device: str
    num_workers: int
    cpus_per_worker: int

    @classmethod
    def plan(cls, device: str | None, num_workers: int | None, cpus_per_worker: int) -> "ActorPool":
        """Fit the workers to what Ray has.

        Raises:
            ValueError: if there is too little of it, or the device is none that Ray hands out.
        """
        for name, value in (("num_workers", num_workers), ("cpus_per_worker", cpus_per_worker)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"the device of a worker is 'cpu' or 'cuda', and Ray says which; got {device!r}")
        largest = min(cpus // cpus_per_worker, gpus if device == "cuda" else cpus)
        if num_workers is None:
            num_workers = largest
        if not 1 <= num_workers <= largest:
            raise ValueError(
                f"{num_workers} workers of {cpus_per_worker} CPU cores on {device!r} do not fit: Ray has "
                f"{cpus} cores and {gpus} GPUs; take fewer workers or fewer cores for each"
            )
        return cls(device, num_workers, cpus_per_worker)

    def at_most(self, num_workers: int) -> "ActorPool":
        """The same, without workers that would have nothing to do."""
        return replace(self, num_workers=min(self.num_workers, num_workers))

    def options(self) -> dict[str, Any]:
        """Arguments of Ray Data's map functions."""
        return {
            "compute": ray.data.ActorPoolStrategy(size=self.num_workers),
            "num_cpus": self.cpus_per_worker,
            "num_gpus": 1 if self.device == "cuda" else 0,
        }


class _PartActor:
    """One worker on parts: a row with the number of a part in, a row with what was done out."""

    def __init__(self, build_segmenter: "partial[PartSegmenter]") -> None:
        self._build_segmenter = build_segmenter
        self._segmenter: PartSegmenter | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._segmenter is None:
                self._segmenter = self._build_segmenter()
            self._segmenter.segment_part(int(row["part"]))
            return {"part": row["part"], "problem": "", "traceback": ""}
        except Exception as error:
            # As a row, since Ray would wrap it in errors of its own; the driver ends the run with it.
            return {
                "part": row["part"],
                "problem": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }


class _TableActor:
    """One worker on tables with a column of pictures."""

    def __init__(self, settings: SegmenterSettings, image_column: str, num_threads: int) -> None:
        self._segmenter = TableSegmenter(settings, image_column=image_column, num_threads=num_threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._segmenter.segment_table(table)


def run_parts(worker: "partial[PartSegmenter]", pending: Sequence[int], pool: ActorPool) -> Iterator[int]:
    """Segment parts, each by whichever worker is free.

    Args:
        worker: builds what a worker needs, in its process.
        pending: the parts.
        pool: the workers.

    Yields:
        Each part when it is done, in no order.

    Raises:
        WorkerError: if a worker cannot be built or fails.
    """
    dataset = ray.data.from_items(
        [{"part": part} for part in pending], override_num_blocks=min(len(pending), MAX_BLOCKS)
    )
    dataset.context.enable_progress_bars = False
    actor: Any = _PartActor  # Ray's annotation knows functions alone
    try:
        for done in dataset.map(actor, fn_constructor_args=(worker,), **pool.options()).iter_rows():
            if done["problem"]:
                error = WorkerError(
                    f"a worker failed ({done['problem']}); what was done is kept: mend the cause and run "
                    "again to go on"
                )
                error.add_note(done["traceback"])
                raise error
            yield int(done["part"])
    except ray.exceptions.RayError as error:
        raise WorkerError(f"Ray failed ({error}); what was done is kept: run again to go on") from error


@contextmanager
def _running_ray() -> Iterator[None]:
    """Ray as somebody set it up before, or for this block alone."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        for handler in logging.getLogger("ray.data").handlers:
            if handler.get_name() == "console":
                handler.setLevel(logging.CRITICAL)  # what matters is raised
    try:
        yield
    finally:
        ray.shutdown()


def _encode(settings: SegmenterSettings, device: str | None) -> tuple[SegmenterSettings, dict[str, Any]]:
    # This machine need not be like those of the workers.
    here = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    encoded = encode_settings(replace(settings, device=here))
    return replace(settings, text_inputs=encoded.text_inputs), encoded.setup


def _build_vocabulary(labels: Sequence[str] | Vocabulary, stuff_labels: Collection[str]) -> Vocabulary:
    if not isinstance(labels, Vocabulary):
        return Vocabulary.from_labels(labels, stuff_labels=stuff_labels)
    if stuff_labels:
        raise ValueError("a vocabulary says itself which labels are stuff; leave out stuff_labels")
    return labels
