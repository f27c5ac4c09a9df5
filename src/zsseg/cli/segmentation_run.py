"""Segmenting many pictures: what is written for each, what is said, and what happens to unreadable ones."""

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image

from zsseg.cli.messages import print_error, print_note
from zsseg.cli.options import Task
from zsseg.cli.text_layout import format_count
from zsseg.data.semantic_maps import convert_semantic_to_panoptic
from zsseg.image_loading import ImageLoadError, load_image
from zsseg.image_sources import ImageSource
from zsseg.pipelines.records import build_segmentation
from zsseg.postprocessing.result_files import segments_to_json, write_coco_panoptic_results
from zsseg.structures import PanopticSegmentation
from zsseg.visualization import draw_panoptic, draw_semantic
from zsseg.vocabulary import Vocabulary

UNLABELLED = -1
MAX_NAME_WIDTH = 40


@dataclass
class SegmentationRun:
    """Segments pictures one after the other and writes what is found.

    Attributes:
        sources: the pictures.
        vocabulary: what to look for.
        task: which result.
        output: the folder to write into.
        font: TrueType file for labels outside Latin script.
        failures: picture that could not be read → why.
        records: what ``segments.json`` says of each picture done.
        notes: warnings of the drawing, each once.
    """

    sources: Sequence[ImageSource]
    vocabulary: Vocabulary
    task: Task
    output: Path
    font: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._queue: list[tuple[int, ImageSource, Image.Image]] = []

    def print_setup(self, model: str, segmenter: Any) -> None:
        """One line: the checkpoint, where it runs, what it looks for and in how many pictures."""
        kinds = [
            f"{len(label_ids)} {kind}"
            for kind, label_ids in (
                ("stuff", self.vocabulary.stuff_label_ids),
                ("unseen", self.vocabulary.unseen_label_ids),
            )
            if label_ids
        ]
        labels = format_count(len(self.vocabulary), "label") + (f" ({', '.join(kinds)})" if kinds else "")
        dtype = str(segmenter.model.dtype).removeprefix("torch.")
        parts = (model, f"{segmenter.device} {dtype}", labels, format_count(len(self.sources), "image"))
        typer.secho(" · ".join(parts), bold=True)

    def segment_all(self, segmenter: Any, **options: Any) -> None:
        """Segment every picture that can be read.

        Overlay and panoptic PNG of a picture appear as soon as it is done, ``panoptic.json`` at the end.

        Args:
            segmenter: the pipeline of the task.
            options: of its call: ``batch_size``, thresholds.

        Raises:
            ValueError: if the checkpoint cannot embed a label.
        """
        # The call encodes the labels, so one that the checkpoint does not know ends here, before any folder.
        found = segmenter(
            self._readable_images(),
            candidate_labels=[category.spelling for category in self.vocabulary],
            stuff_labels=[self.vocabulary[label_id].name for label_id in self.vocabulary.stuff_label_ids],
            **options,
        )
        write_coco_panoptic_results(self.output, self._write_each(found), self.vocabulary)

    def write_records(self, model: str) -> None:
        """Write ``segments.json``."""
        content = {
            "model": model,
            "task": self.task.value,
            "labels": [
                {
                    "name": category.name,
                    "synonyms": list(category.synonyms),
                    "isthing": category.is_thing,
                    "is_seen": category.is_seen,
                }
                for category in self.vocabulary
            ],
            "images": self.records,
            "failures": [{"image": image, "error": error} for image, error in self.failures.items()],
        }
        path = self.output / "segments.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def print_end(self) -> None:
        """Say what was written, what was odd, and which pictures could not be read."""
        seconds = time.monotonic() - self._started
        files = f"{format_count(len(self.records), 'overlay')}, panoptic.json with its PNGs, segments.json"
        typer.echo(
            f"{typer.style('done', fg='green', bold=True)} in {seconds:.1f} s · {self.output}: {files}"
        )
        for note in self.notes:
            print_note(note)
        if self.failures:
            print_error(
                f"{len(self.failures)} of {format_count(len(self.sources), 'image')} could not be read:"
            )
            for message in self.failures.values():
                typer.echo(f"  {message}", err=True)

    def _write_each(
        self, results: Iterable[Sequence[Mapping[str, Any]]]
    ) -> Iterator[tuple[int, str, PanopticSegmentation]]:
        for found in results:
            number, source, image = self._queue.pop(0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                segmentation, picture = self._build(found, image)
            self.notes.update(dict.fromkeys(str(warning.message) for warning in caught))
            overlay = f"{source.stem}_overlay.png"
            picture.save(self.output / overlay)
            self.records.append(
                {
                    "image": source.location,
                    "file_name": source.file_name,
                    "overlay": overlay,
                    "width": image.width,
                    "height": image.height,
                    "segments": segments_to_json(segmentation, self.vocabulary),
                }
            )
            self._print_image(number, source, f"{image.width}×{image.height}  {self._describe(segmentation)}")
            yield number, source.file_name, segmentation

    def _readable_images(self) -> Iterator[Image.Image]:
        """The pictures, each queued until its result is due: it is read once and drawn upon later."""
        for number, source in enumerate(self.sources, start=1):
            try:
                image = load_image(source.location)
            except ImageLoadError as error:
                self.failures[source.location] = str(error)
                self._print_image(number, source, typer.style("cannot be read", fg="red"))
                continue
            self._queue.append((number, source, image))
            yield image

    def _build(
        self, found: Sequence[Mapping[str, Any]], image: Image.Image
    ) -> tuple[PanopticSegmentation, Image.Image]:
        """The pipeline's records of one picture → its segmentation, and that drawn over the picture."""
        shape = (image.height, image.width)
        if self.task is Task.SEMANTIC:
            label_map = np.full(shape, UNLABELLED, dtype=np.int32)
            for record in found:
                label_map[np.asarray(record["mask"]) > 0] = self.vocabulary.label_id(record["label"])
            picture = draw_semantic(
                image, label_map, self.vocabulary, ignore_index=UNLABELLED, font=self._font_name
            )
            segmentation = convert_semantic_to_panoptic(label_map, self.vocabulary, ignore_index=UNLABELLED)
            return segmentation, picture
        segmentation = build_segmentation(found, self.vocabulary, shape)
        return segmentation, draw_panoptic(image, segmentation, self.vocabulary, font=self._font_name)

    @property
    def _font_name(self) -> str | None:
        return None if self.font is None else str(self.font)

    def _print_image(self, number: int, source: ImageSource, text: str) -> None:
        total = str(len(self.sources))
        width = min(MAX_NAME_WIDTH, max(len(each.file_name) for each in self.sources))
        typer.echo(f"{number:>{len(total)}}/{total}  {source.file_name:<{width}}  {text}")

    def _describe(self, segmentation: PanopticSegmentation) -> str:
        """Such as ``"4 segments: car ×3, road"``, things before stuff."""
        counts = Counter(segment.label_id for segment in segmentation.segments)
        if not counts:
            return typer.style("nothing found", fg="yellow")
        names = [
            self.vocabulary[label_id].name + (f" ×{number}" if number > 1 else "")
            for label_id, number in sorted(
                counts.items(), key=lambda item: (not self.vocabulary[item[0]].is_thing, item[0])
            )
        ]
        return f"{format_count(len(segmentation.segments), 'segment')}: {', '.join(names)}"
