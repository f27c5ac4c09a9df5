"""Scoring a checkpoint: the averages and every label's figures as tables, as files and as pictures."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from zsseg import __version__
from zsseg.cli.ground_truth import LabelSetup, describe_labels
from zsseg.cli.messages import print_note
from zsseg.cli.overlays import OverlayWriter
from zsseg.cli.text_layout import echo_table, format_count, format_percent
from zsseg.cli.worst_pictures import WorstPictures
from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.durable_files import flush_to_disk
from zsseg.metrics import PanopticQuality, SemanticGuidedIoU
from zsseg.metrics.class_averages import group_label_ids
from zsseg.metrics.label_parents import Parents
from zsseg.training.evaluation import (
    IGNORED,
    Metric,
    Prediction,
    Task,
    build_metric,
    describe_evaluated_model,
    score_predictions,
)
from zsseg.training.evaluation_report import EvaluationReport
from zsseg.training.patchwork_benchmark import describe_machine
from zsseg.training.protocols import Protocol

GROUPS = {"all": "", "things": "_th", "stuff": "_st", "seen": "_seen", "unseen": "_unseen"}
"""Rows of the table and how the metrics' keys end for them."""
COUNTS = ("TP", "FP", "FN")
CSV_COLUMNS = ("label", "kind", "training", "PQ", "SQ", "RQ", *COUNTS, "IoU", "SG-IoU")
OWN = "own"
"""The protocol of a data set that is none of the literature's."""


class EvaluationRun:
    """One evaluation and what is told of it.

    Args:
        dataset: pictures with ground truth.
        dataset_name: for the record.
        tasks: what is scored from each output; times and pictures are of the first.
        labels: how labels are spelled, for the record.
        protocol: the literature's, if it is one of these.
        parents: label → its parents or synonyms, for SG-IoU.
        seen_penalty: what is taken from the class logits of seen labels.
        max_images: only the first so many.
    """

    def __init__(
        self,
        dataset: PanopticDataset,
        dataset_name: str,
        tasks: Sequence[Task],
        labels: LabelSetup,
        *,
        protocol: Protocol | None = None,
        parents: Parents | None = None,
        seen_penalty: float = 0.0,
        max_images: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.dataset_name = dataset_name
        self.vocabulary = dataset.vocabulary
        self.tasks = tuple(tasks)
        self.labels = labels
        self.protocol = protocol
        self.seen_penalty = seen_penalty
        self.num_images = len(dataset) if max_images is None else min(max_images, len(dataset))
        self.averages: dict[str, float] = {}
        self._metrics = {task: build_metric(task, self.vocabulary, parents=parents) for task in tasks}
        self.figures = [figure for metric in self._metrics.values() for figure in _list_figures(metric)]
        self._worst = WorstPictures(self.vocabulary, tasks[0], 0)

    def print_setup(self, model: str, segmenter: Any) -> None:
        """The checkpoint and where it runs; the protocol; pictures and labels, and how these are spelled."""
        typer.secho(f"{model} · {segmenter.device}", bold=True)
        if self.protocol is not None:
            typer.echo(f"{self.protocol.name}: {self.protocol.title} · {self.protocol.dataset}")
        calibration = f" · calibrated by {self.seen_penalty:g}" if self.seen_penalty else ""
        typer.echo(
            f"{' and '.join(self.tasks)}, {format_count(self.num_images, 'image')} · "
            f"{describe_labels(self.vocabulary, self.labels)}{calibration}"
        )
        if self.protocol is not None and self.num_images not in self.protocol.num_images:
            official = " or ".join(f"{number:,}" for number in self.protocol.num_images)
            print_note(
                f"{self.protocol.dataset} has {official} images and {self.num_images:,} are scored: the "
                "figures cannot be compared with published ones"
            )

    def evaluate(
        self, segmenter: Any, *, output: Path | None, overlays: int, worst: int, **options: Any
    ) -> None:
        """Predict and score.

        Args:
            segmenter: pipeline with the model and its processor.
            output: folder for the pictures.
            overlays: how many pictures to draw, evenly spread over the data set.
            worst: how many of the worst pictures to keep for :meth:`write`.
            options: of :func:`~zsseg.training.evaluation.score_predictions`.
        """
        self._worst = WorstPictures(self.vocabulary, self.tasks[0], worst)
        writer = (
            None
            if output is None
            else OverlayWriter(
                output / "overlays", self.vocabulary, num_images=self.num_images, num_overlays=overlays
            )
        )

        def take(example: PanopticExample, predictions: Mapping[Task, Prediction]) -> None:
            prediction, target = predictions[self.tasks[0]], self._target(example)
            self._worst.take(example, prediction, target)
            if writer is not None:
                writer.take(example, prediction, target)

        seconds = score_predictions(
            segmenter.model,
            segmenter.processor,
            self.dataset,
            metrics=self._metrics,
            max_images=self.num_images,
            seen_penalty=self.seen_penalty,
            on_result=take,
            **options,
        )
        for metric in self._metrics.values():
            self.averages |= metric.compute()
        self.averages["seconds_per_image"] = sum(seconds) / len(seconds)

    def print_averages(self) -> None:
        """The averages in both conventions, in percent, a row a group; then what the protocol compares."""
        names = [name for name, ending in GROUPS.items() if self.figures[0] + ending in self.averages]
        groups = group_label_ids(self.vocabulary)
        rows = [
            [
                name,
                str(len(groups[GROUPS[name]])),
                *self._cells([f"{figure}{GROUPS[name]}" for figure in self.figures]),
            ]
            for name in names
        ]
        if "unseen" in names:
            harmonic = [f"h{figure.removeprefix('m')}" for figure in self.figures]
            rows.append(
                [
                    "harmonic",
                    "",
                    *(format_percent(self.averages[f"{key}_present_classes"]) for key in harmonic),
                    *(format_percent(self.averages[key]) for key in harmonic),
                ]
            )
        header = ["%", "labels", *self.figures, *(f"{figure}*" for figure in self.figures)]
        typer.echo()
        echo_table(header, rows)
        typer.echo(f"\n  {' '.join(self.figures)}: over the labels that occur in ground truth or prediction")
        typer.echo(f"  {'* '.join(self.figures)}*: over all labels of the group, absent ones as 0")
        if self.protocol is not None:
            compared = ", ".join(
                f"{key.removesuffix('_all_classes')} {format_percent(self.averages[key])}"
                for key in self.protocol.headline
            )
            typer.echo(f"  the protocol's figures, {self.protocol.averages}: {compared}")
        if "semantic" in self.tasks:
            typer.echo(f"  pixel accuracy {format_percent(self.averages['pixel_accuracy'])} %")
        typer.echo(f"  {self.averages['seconds_per_image']:.2f} s an image")

    def print_per_class(self) -> None:
        """Every label's figures in percent, with what kind of label it is."""
        typer.echo()
        per_class = self._per_class()
        figures = [column for column in CSV_COLUMNS if column in next(iter(per_class.values()))]
        rows = [
            [
                category.name,
                *_describe_kind(category),
                *(
                    f"{value:,}" if figure in COUNTS else format_percent(value)
                    for figure, value in ((figure, per_class[category.name][figure]) for figure in figures)
                ),
            ]
            for category in self.vocabulary
        ]
        echo_table(["label", "kind", "training", *figures], rows, left_columns=3)

    def write(
        self,
        output: Path,
        segmenter: Any,
        model: str,
        *,
        command: str,
        thresholds: Mapping[str, float | None],
    ) -> None:
        """Write ``results.json``, ``per_class.csv`` and the worst pictures.

        Args:
            output: the folder; made if need be.
            segmenter: the pipeline that predicted.
            model: the checkpoint, as named on the command line.
            command: what makes these figures again.
            thresholds: by name; None for the checkpoint's own.
        """
        output.mkdir(parents=True, exist_ok=True)
        used = {
            name: float(getattr(segmenter.processor, name) if value is None else value)
            for name, value in thresholds.items()
        }
        EvaluationReport(
            command=command,
            machine=describe_machine(segmenter.device),
            zsseg=__version__,
            model=describe_evaluated_model(segmenter.model, model),
            protocol=OWN if self.protocol is None else self.protocol.name,
            dataset=self.dataset_name,
            tasks=self.tasks,
            num_images=self.num_images,
            labels=self.vocabulary.names,
            unseen_labels=[self.vocabulary[label_id].name for label_id in self.vocabulary.unseen_label_ids],
            label_names=self.labels.names.value,
            thresholds=used if "panoptic" in self.tasks else {},
            averages=self.averages,
            per_class=self._per_class(),
            seen_penalty=self.seen_penalty,
        ).save(output / "results.json")
        self._write_csv(output / "per_class.csv")
        written = [output / "results.json", output / "per_class.csv"]
        if self._worst.write(output / "worst"):
            written.append(output / "worst")
        if (output / "overlays").is_dir():
            written.append(output / "overlays")
        typer.echo(f"\n{typer.style('wrote', fg='green', bold=True)} {', '.join(map(str, written))}")

    def _write_csv(self, path: Path) -> None:
        """A line a label, shares in [0, 1]; empty where nothing was measured or the label does not occur."""
        per_class = self._per_class()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with unfinished.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, CSV_COLUMNS)
                writer.writeheader()
                for category in self.vocabulary:
                    kind, training = _describe_kind(category)
                    figures = {
                        name: "" if math.isnan(value) else value
                        for name, value in per_class[category.name].items()
                    }
                    writer.writerow({"label": category.name, "kind": kind, "training": training, **figures})
            flush_to_disk(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _cells(self, keys: list[str]) -> list[str]:
        return [
            *(format_percent(self.averages[key]) for key in keys),
            *(format_percent(self.averages[f"{key}_all_classes"]) for key in keys),
        ]

    def _per_class(self) -> dict[str, dict[str, float]]:
        """Label → its figures of all tasks."""
        merged: dict[str, dict[str, float]] = {name: {} for name in self.vocabulary.names}
        for metric in self._metrics.values():
            for name, figures in _list_per_class(metric).items():
                merged[name] |= figures
        return merged

    def _target(self, example: PanopticExample) -> Prediction:
        """Ground truth in the form of the first task's predictions."""
        if self.tasks[0] == "panoptic":
            return example.target
        return convert_panoptic_to_semantic(example.target, ignore_index=IGNORED)


def _list_figures(metric: Metric) -> tuple[str, ...]:
    """The columns of a metric in the table of averages."""
    if isinstance(metric, PanopticQuality):
        return "PQ", "SQ", "RQ"
    return ("mIoU", "SG-IoU") if isinstance(metric, SemanticGuidedIoU) else ("mIoU",)


def _list_per_class(metric: Metric) -> Mapping[str, Mapping[str, float]]:
    if isinstance(metric, PanopticQuality):
        return metric.compute_per_class()
    figures = {name: {"IoU": value} for name, value in metric.compute_per_class().items()}
    if isinstance(metric, SemanticGuidedIoU):
        for name, value in metric.compute_guided_per_class().items():
            figures[name]["SG-IoU"] = value
    return figures


def _describe_kind(category: Any) -> tuple[str, str]:
    return "thing" if category.is_thing else "stuff", "seen" if category.is_seen else "unseen"
