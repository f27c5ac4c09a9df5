"""What a worker does: hold a model, and make rows of results out of pictures."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from zsseg.batch_inference.picture_sources import PictureReader, open_picture
from zsseg.batch_inference.results_folder import RESULT_SCHEMA, ResultsFolder
from zsseg.image_loading import ImageLoadError
from zsseg.layers.model_identity import compute_weights_digest, describe_config
from zsseg.models.inference import encode_vocabulary
from zsseg.panoptic_format import encode_panoptic_png
from zsseg.postprocessing.result_files import segments_to_json
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

Task = Literal["panoptic", "semantic"]
READING_THREADS = 2
THRESHOLDS = ("threshold", "mask_threshold", "overlap_mask_area_threshold")

MAX_ATTEMPTS = 3
"""Workers that may die on one part: Ray starts them anew without end, also for a part that kills them all."""

PictureOpener = Callable[[], Image.Image]


class PartKillsWorkersError(RuntimeError):
    """A part that no worker survives."""


@dataclass(frozen=True)
class SegmenterSettings:
    """What to segment and how, as it is sent to every worker.

    Attributes:
        model: a folder, under this path on every machine, or a Hub id.
        vocabulary: what to look for.
        task: "panoptic" or "semantic".
        thresholds: of panoptic results, instead of the checkpoint's own.
        device: "cpu" or "cuda".
        dtype: of the weights; None keeps the checkpoint's.
        size: of the image processor, instead of the checkpoint's own.
        batch_size: pictures in one forward pass, of those of equal size.
        text_inputs: the labels' embeddings, encoded once for all workers; empty until then.
    """

    model: str
    vocabulary: Vocabulary
    task: Task = "panoptic"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str | None = None
    size: Mapping[str, int] | None = None
    batch_size: int = 1
    text_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.thresholds) - set(THRESHOLDS)):
            raise TypeError(f"thresholds are {', '.join(THRESHOLDS)}; got also {unknown}")
        if self.task == "semantic" and self.thresholds:
            raise ValueError(f"a semantic result has no thresholds, got {sorted(self.thresholds)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def load_pipeline(self) -> Any:
        """The checkpoint as the pipeline of the task, in evaluation mode."""
        from transformers import pipeline

        segmenter: Any = pipeline(
            f"zero-shot-{self.task}-segmentation", model=self.model, device=self.device, dtype=self.dtype
        )
        if self.size is not None:
            segmenter.processor.image_processor.size = dict(self.size)
        return segmenter


class EncodedVocabulary(NamedTuple):
    """What one process finds out for all workers.

    Attributes:
        text_inputs: the labels' embeddings, on the CPU.
        setup: JSON values that say which results the model and the settings give.
    """

    text_inputs: dict[str, Tensor]
    setup: dict[str, Any]


def encode_settings(settings: SegmenterSettings) -> EncodedVocabulary:
    """Load the model once, embed the labels and note what the results depend on.

    Raises:
        ValueError: if the checkpoint cannot embed a label.
        OSError: if there is no such checkpoint.
    """
    segmenter = settings.load_pipeline()
    text_inputs = encode_vocabulary(segmenter.model, segmenter.processor, settings.vocabulary)
    processor = segmenter.processor.to_dict()
    thresholds = {name: settings.thresholds.get(name, processor.pop(name)) for name in THRESHOLDS}
    setup = {
        "task": settings.task,
        "labels": [category.spelling for category in settings.vocabulary],
        "stuff": [settings.vocabulary[label_id].name for label_id in settings.vocabulary.stuff_label_ids],
        "thresholds": thresholds if settings.task == "panoptic" else {},
        "weights": compute_weights_digest(segmenter.model),
        "config": json.loads(describe_config(segmenter.model.config)),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "processor": processor,
    }
    return EncodedVocabulary({name: tensor.cpu() for name, tensor in text_inputs.items()}, setup)


class PictureSegmenter:
    """Holds a model; pictures in, rows out.

    Pictures are read and prepared in threads ahead of the model: at most twice a batch of them are in memory.

    Args:
        settings: with ``text_inputs``.
        num_threads: of PyTorch; None leaves it alone.
    """

    def __init__(self, settings: SegmenterSettings, *, num_threads: int | None = None) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.settings = settings
        self._segmenter = settings.load_pipeline()
        self._text_inputs = {
            name: tensor.to(self._segmenter.device) for name, tensor in settings.text_inputs.items()
        }
        self._readers = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="reader")

    def segment(self, openers: Iterable[PictureOpener]) -> Iterator[dict[str, Any]]:
        """Segment pictures.

        Args:
            openers: each gives its picture, or raises an :class:`~zsseg.image_loading.ImageLoadError`.

        Yields:
            For each picture, in order: ``width``, ``height``, ``segments``, ``panoptic_png`` (COCO's panoptic
            PNG), ``error``, and ``seconds``, the time from opening it to its row, less that of waiting. One
            that cannot be read has an ``error``, and None for the first four.
        """
        remaining = iter(openers)
        batch_size = self.settings.batch_size
        ahead: deque[Future[_Prepared]] = deque()
        while True:
            room = 2 * batch_size - len(ahead)
            ahead.extend(self._readers.submit(self._prepare, opener) for opener in islice(remaining, room))
            if not ahead:
                return
            batch = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
            yield from self._segment_batch(batch)

    def _prepare(self, opener: PictureOpener) -> "_Prepared":
        started = time.perf_counter()
        try:
            inputs = self._segmenter.preprocess(opener())
        except ImageLoadError as error:
            return _Prepared(None, str(error), time.perf_counter() - started)
        return _Prepared(inputs, None, time.perf_counter() - started)

    def _segment_batch(self, batch: Sequence["_Prepared"]) -> Iterator[dict[str, Any]]:
        readable = [prepared.inputs for prepared in batch if prepared.inputs is not None]
        started = time.perf_counter()
        outputs = iter(self._segmenter.forward(readable, **self._text_inputs) if readable else ())
        forward_seconds = (time.perf_counter() - started) / max(1, len(readable))
        for prepared in batch:
            if prepared.inputs is None:
                yield _build_failure(prepared)
                continue
            started = time.perf_counter()
            segmentation = self._segmenter.merge(
                next(outputs), self.settings.vocabulary, **self.settings.thresholds
            )
            row = _build_row(segmentation, self.settings.vocabulary)
            row["seconds"] = prepared.seconds + forward_seconds + time.perf_counter() - started
            yield row


class PartSegmenter:
    """Segments whole parts of a results folder.

    Args:
        settings: with ``text_inputs``.
        folder: of the results.
        image_column: of Parquet files.
        num_threads: of PyTorch.
        retry_failed: in a part that is done, read again what could not be read.
    """

    def __init__(
        self,
        settings: SegmenterSettings,
        folder: ResultsFolder,
        *,
        image_column: str,
        num_threads: int | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._segmenter = PictureSegmenter(settings, num_threads=num_threads)
        self._folder = folder
        self._reader = PictureReader(image_column)
        self._retry_failed = retry_failed

    def segment_part(self, part: int) -> int:
        """Write the table of a part; what its file holds already stays.

        Returns:
            How many pictures were done in this call.

        Raises:
            PartKillsWorkersError: if this part was begun too often since the run began.
        """
        sources = self._folder.read_sources(part)
        # The file is there if a worker died just after it wrote it, and the part was given to this one.
        rows = {
            row["image_id"]: row
            for row in self._folder.read_part(part) or ()
            if not (self._retry_failed and row["error"] is not None)
        }
        missing = [(image_id, source) for image_id, source in sources if image_id not in rows]
        if not missing:
            return 0
        if self._folder.begin_attempt(part) > MAX_ATTEMPTS:
            raise PartKillsWorkersError(
                f"part {part}, from {missing[0][1].name} to {missing[-1][1].name}, killed its worker "
                f"{MAX_ATTEMPTS} times. Is a picture too large for the memory? Take fewer workers, a smaller "
                "batch or part, or leave that picture out"
            )
        found = self._segmenter.segment(self._reader.opener(source) for _, source in missing)
        for (image_id, source), row in zip(missing, found, strict=True):
            rows[image_id] = {
                "image_id": image_id,
                "image": source.name,
                "file_name": source.file_name,
                **row,
            }
        self._folder.write_part(part, [rows[image_id] for image_id, _ in sources])
        return len(missing)


class TableSegmenter:
    """Segments the pictures of a table's column, and puts what is found in columns beside the others.

    Args:
        settings: with ``text_inputs``.
        image_column: of bytes, paths, URLs or arrays; it is left out of the result.
        num_threads: of PyTorch.
    """

    def __init__(
        self, settings: SegmenterSettings, *, image_column: str, num_threads: int | None = None
    ) -> None:
        self._segmenter = PictureSegmenter(settings, num_threads=num_threads)
        self._image_column = image_column

    def segment_table(self, table: pa.Table) -> pa.Table:
        """The table with the columns of ``RESULT_SCHEMA`` instead of the pictures.

        Raises:
            ValueError: if it has no such column, or has one of the new ones.
        """
        names = table.column_names
        if self._image_column not in names:
            raise ValueError(f"there is no column {self._image_column!r} among {names}; pass image_column")
        table, values = table.drop_columns(self._image_column), table[self._image_column].to_pylist()
        if taken := sorted(set(table.column_names) & set(RESULT_SCHEMA.names)):
            raise ValueError(f"the columns {taken} would stand for two things; rename or drop them first")
        openers = [partial(open_picture, value, name=_describe(value)) for value in values]
        found = pa.Table.from_pylist(list(self._segmenter.segment(openers)), schema=RESULT_SCHEMA)
        for field_found in found.schema:
            table = table.append_column(field_found, found[field_found.name])
        return table


class _Prepared(NamedTuple):
    """One picture ahead of the model: its tensors, or why there are none."""

    inputs: dict[str, Any] | None
    error: str | None
    seconds: float


def _build_failure(prepared: _Prepared) -> dict[str, Any]:
    return {
        "width": None,
        "height": None,
        "segments": None,
        "panoptic_png": None,
        "error": prepared.error,
        "seconds": prepared.seconds,
    }


def _build_row(segmentation: PanopticSegmentation, vocabulary: Vocabulary) -> dict[str, Any]:
    height, width = segmentation.size
    return {
        "width": width,
        "height": height,
        "segments": segments_to_json(segmentation, vocabulary),
        "panoptic_png": encode_panoptic_png(segmentation.segment_ids),
        "error": None,
    }


def _describe(value: Any) -> str:
    """What an error calls a picture of a table."""
    if isinstance(value, dict):
        return str(value.get("path") or _describe(value.get("bytes")))
    if isinstance(value, str):
        return value
    return f"({len(value)} bytes)" if isinstance(value, bytes) else f"({type(value).__name__})"
