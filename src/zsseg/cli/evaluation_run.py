"""Scoring a checkpoint: the averages and every label's figures as tables, as JSON and as pictures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from zsseg import __version__
from zsseg.cli.ground_truth import LabelSetup, describe_labels
from zsseg.cli.options import Task
from zsseg.cli.overlays import OverlayWriter
from zsseg.cli.text_layout import echo_table, format_count, format_percent
from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.metrics.class_averages import group_label_ids
from zsseg.training.evaluation import IGNORED, Prediction, build_metric, evaluate_model

GROUPS = {"all": "", "things": "_th", "stuff": "_st", "seen": "_seen", "unseen": "_unseen"}
"""Rows of the table and how the metrics' keys end for them."""


class EvaluationRun:
    """One evaluation and what is told of it.

    Args:
        dataset: pictures with ground truth.
        task: what is scored.
        labels: how labels are spelled, for the record.
        max_images: only the first so many.
    """

    def __init__(
        self, dataset: PanopticDataset, task: Task, labels: LabelSetup, max_images: int | None = None
    ) -> None:
        self.dataset = dataset
        self.vocabulary = dataset.vocabulary
        self.task = task
        self.labels = labels
        self.max_images = max_images
        self.num_images = len(dataset) if max_images is None else min(max_images, len(dataset))
        self.averages: dict[str, float] = {}
        self.figures = ("PQ", "SQ", "RQ") if task is Task.PANOPTIC else ("mIoU",)
        self._metric = build_metric(task.value, self.vocabulary)

    def print_setup(self, model: str, segmenter: Any) -> None:
        """Two lines: the checkpoint and where it runs; the pictures and the labels, with their spelling."""
        typer.secho(f"{model} · {segmenter.device}", bold=True)
        typer.echo(
            f"{self.task.value}, {format_count(self.num_images, 'image')} · "
            f"{describe_labels(self.vocabulary, self.labels)}"
        )

    def evaluate(self, segmenter: Any, *, output: Path | None, overlays: int, **options: Any) -> None:
        """Predict and score.

        Args:
            segmenter: pipeline with the model and its processor.
            output: folder for the pictures.
            overlays: how many pictures to draw, evenly spread over the data set.
            options: of :func:`~zsseg.training.evaluation.evaluate_model`.
        """
        writer = (
            None
            if output is None
            else OverlayWriter(
                output / "overlays", self.vocabulary, num_images=self.num_images, num_overlays=overlays
            )
        )

        def take(example: PanopticExample, prediction: Prediction) -> None:
            if writer is not None:
                writer.take(example, prediction, self._target(example))

        self.averages = evaluate_model(
            segmenter.model,
            segmenter.processor,
            self.dataset,
            task=self.task.value,
            metric=self._metric,
            max_images=self.max_images,
            on_result=take,
            **options,
        )

    def print_averages(self) -> None:
        """The averages in both conventions, in percent, a row a group."""
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
        if self.task is Task.SEMANTIC:
            typer.echo(f"  pixel accuracy {format_percent(self.averages['pixel_accuracy'])} %")
        typer.echo(f"  {self.averages['seconds_per_image']:.2f} s an image")

    def print_per_class(self) -> None:
        """Every label's figures in percent, with what kind of label it is."""
        typer.echo()
        kinds = [
            ["thing" if category.is_thing else "stuff", "seen" if category.is_seen else "unseen"]
            for category in self.vocabulary
        ]
        rows = []
        for (name, figures), kind in zip(self._per_class().items(), kinds, strict=True):
            cells = [
                f"{value:,}" if isinstance(value, int) else format_percent(value)
                for value in figures.values()
            ]
            rows.append([name, *kind, *cells])
        figure_names = next(iter(self._per_class().values()))
        echo_table(["label", "kind", "training", *figure_names], rows, left_columns=3)

    def write(self, output: Path, model: str, thresholds: Mapping[str, float | None]) -> None:
        """Write ``results.json``: the setup, all averages in [0, 1] and every label's figures."""
        content = {
            "zsseg": __version__,
            "model": model,
            "task": self.task.value,
            "num_images": self.num_images,
            "label_names": self.labels.names.value,
            "split": self.labels.split,
            "labels": list(self.vocabulary.names),
            "unseen_labels": [
                self.vocabulary[label_id].name for label_id in self.vocabulary.unseen_label_ids
            ],
            "thresholds": dict(thresholds),
            "averages": self.averages,
            "per_class": self._per_class(),
        }
        output.mkdir(parents=True, exist_ok=True)
        path = output / "results.json"
        text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        overlays = output / "overlays"
        pictures = f" and {overlays}" if overlays.is_dir() else ""
        typer.echo(f"\n{typer.style('wrote', fg='green', bold=True)} {path}{pictures}")

    def _cells(self, keys: list[str]) -> list[str]:
        return [
            *(format_percent(self.averages[key]) for key in keys),
            *(format_percent(self.averages[f"{key}_all_classes"]) for key in keys),
        ]

    def _per_class(self) -> dict[str, dict[str, float]]:
        figures: dict[str, Any] = self._metric.compute_per_class()
        if self.task is Task.PANOPTIC:
            return figures
        return {name: {"IoU": value} for name, value in figures.items()}

    def _target(self, example: PanopticExample) -> Prediction:
        """Ground truth in the prediction's form."""
        if self.task is Task.PANOPTIC:
            return example.target
        return convert_panoptic_to_semantic(example.target, ignore_index=IGNORED)


def _without_nan(value: Any) -> Any:
    """The same content with None for NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
