"""Scoring a checkpoint on Patchwork: tables by preset, one JSON, every label's figures and pictures."""

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from zsseg.cli.messages import print_note
from zsseg.cli.overlays import OverlayWriter
from zsseg.cli.text_layout import echo_table, format_count, format_percent
from zsseg.data.examples import PanopticExample
from zsseg.data.patchwork.dataset import HELD_OUT_SEED, PatchworkDataset
from zsseg.metrics.class_averages import group_label_ids
from zsseg.structures import PanopticSegmentation
from zsseg.training.patchwork_benchmark import (
    PatchworkScores,
    describe_machine,
    describe_model,
    evaluate_patchwork,
)
from zsseg.training.patchwork_report import GROUPS, PatchworkReport, PatchworkRow, Text

FIGURES = ("PQ", "SQ", "RQ", "mIoU")
SHUFFLED = "names shuffled"
CSV_COLUMNS = (
    "preset",
    "text",
    "seen_penalty",
    "label",
    "kind",
    "training",
    "PQ",
    "SQ",
    "RQ",
    "TP",
    "FP",
    "FN",
    "IoU",
)


class PatchworkEvaluationRun:
    """One benchmark run and what is told of it.

    Args:
        model: the checkpoint, as named on the command line.
        presets: difficulties, in this order; repeated ones count once.
        split: which names are unseen.
        scenes: held-out scenes of each preset.
        size: their height and width in pixels.
        thresholds: by name; None for the checkpoint's own.
        shuffled_text: whether to measure the control with exchanged names too.
        seen_penalty: calibration to measure too; 0 measures none.

    Raises:
        ValueError: if a preset, the split or the size is none of Patchwork.
    """

    def __init__(
        self,
        model: str,
        *,
        presets: Sequence[str],
        split: str,
        scenes: int,
        size: int,
        thresholds: Mapping[str, Any],
        shuffled_text: bool,
        seen_penalty: float = 0.0,
    ) -> None:
        self.model = model
        self.datasets = [
            PatchworkDataset(preset, seed=HELD_OUT_SEED, num_scenes=scenes, split=split, size=size)
            for preset in dict.fromkeys(presets)
        ]
        self.vocabulary = self.datasets[0].vocabulary
        self.thresholds = thresholds
        self.seen_penalty = seen_penalty
        # The first is the model as it is.
        self.variants: list[tuple[Text, float]] = [("own", 0.0)]
        if shuffled_text:
            self.variants.append(("shuffled", 0.0))
        if seen_penalty:
            self.variants.append(("own", seen_penalty))
        self.scores: list[PatchworkScores] = []

    def print_setup(self, segmenter: Any) -> None:
        """Three lines: the checkpoint, the scenes and the machine."""
        dataset = self.datasets[0]
        typer.secho(f"{self.model} · {segmenter.device}", bold=True)
        typer.echo(
            f"Patchwork, split {dataset.split}, {format_count(len(dataset), 'held-out scene')} of "
            f"{dataset.size} × {dataset.size} · {len(self.vocabulary)} labels "
            f"({len(self.vocabulary.unseen_label_ids)} unseen)"
        )
        typer.echo(describe_machine(segmenter.device))

    def evaluate(self, segmenter: Any, *, output: Path | None, overlays: int) -> None:
        """Predict, score and print, a table a preset.

        Args:
            segmenter: pipeline with the model and its processor.
            output: folder for the pictures, by preset.
            overlays: how many pictures of each preset to draw, evenly spread over the scenes.
        """
        for dataset in self.datasets:
            scores = [
                evaluate_patchwork(
                    segmenter.model,
                    segmenter.processor,
                    dataset,
                    text=text,
                    seen_penalty=penalty,
                    on_result=self._draw_into(output, dataset, overlays) if is_first else None,
                    **self.thresholds,
                )
                for (text, penalty), is_first in zip(self.variants, (True, False, False), strict=False)
            ]
            self.scores += scores
            self._print_scores(scores)

    def write(self, segmenter: Any, output: Path) -> None:
        """Write ``results.json`` and ``per_class.csv``."""
        output.mkdir(parents=True, exist_ok=True)
        report = PatchworkReport(
            command=self.describe_command(),
            machine=describe_machine(segmenter.device),
            model=describe_model(segmenter.model, segmenter.processor, self.model, self.thresholds),
            rows=[each.row for each in self.scores],
        )
        report.save(output / "results.json")
        with (output / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            for each in self.scores:
                writer.writerows(self._list_per_class(each))
        overlays = output / "overlays"
        files = [
            output / "results.json",
            output / "per_class.csv",
            *([overlays] if overlays.is_dir() else []),
        ]
        typer.echo(f"\n{typer.style('wrote', fg='green', bold=True)} {', '.join(map(str, files))}")

    def describe_command(self) -> str:
        """The command that makes the same figures again."""
        dataset = self.datasets[0]
        options: list[Any] = ["--model", self.model, "--split", dataset.split, "--scenes", len(dataset)]
        options += ["--size", dataset.size]
        for each in self.datasets:
            options += ["--preset", each.preset.name]
        for name, value in self.thresholds.items():
            if value is not None:
                options += [f"--{name.replace('_', '-')}", value]
        if ("shuffled", 0.0) in self.variants:
            options.append("--shuffled-text")
        if self.seen_penalty:
            options += ["--seen-penalty", self.seen_penalty]
        return shlex.join(["zsseg", "evaluate", "patchwork", *map(str, options)])

    def _draw_into(self, output: Path | None, dataset: PatchworkDataset, overlays: int) -> Any:
        if output is None:
            return None
        writer = OverlayWriter(
            output / "overlays" / dataset.preset.name,
            self.vocabulary,
            num_images=len(dataset),
            num_overlays=overlays,
        )

        def draw(example: PanopticExample, prediction: PanopticSegmentation) -> None:
            writer.take(example, prediction, example.target)

        return draw

    def _print_scores(self, scores: Sequence[PatchworkScores]) -> None:
        own = scores[0].row
        typer.echo()
        echo_table([f"{own.preset}, %", "labels", *FIGURES], self._build_table([each.row for each in scores]))
        typer.echo(f"\n  pixel accuracy {_percent(own, 'pixel_accuracy')} %")
        typer.echo(f"  {own.figures['ms_per_image']:.1f} ms an image, the median")
        absent = [name for name, figures in scores[0].per_class.items() if not figures["TP"] + figures["FN"]]
        if absent:
            print_note(
                f"{len(absent)} of {len(self.vocabulary)} labels do not occur in these scenes, which hPQ and "
                "hIoU count as 0: take more scenes"
            )

    def _build_table(self, rows: Sequence[PatchworkRow]) -> list[list[str]]:
        own, *others = rows
        members = group_label_ids(self.vocabulary)
        table = []
        for ending, metric_ending in GROUPS.items():
            name = ending.strip("_").replace("_", " ") or "all"
            size = str(len(members[metric_ending]))
            table.append([name, size, *(_percent(own, f"{figure}{ending}") for figure in FIGURES)])
            if ending == "_unseen":
                table += [
                    [
                        f"unseen, {_describe(row)}",
                        size,
                        *(_percent(row, f"{figure}_unseen") for figure in FIGURES),
                    ]
                    for row in others
                ]
        for row in rows:
            name = "harmonic" if row.is_plain else f"harmonic, {_describe(row)}"
            table.append([name, "", _percent(row, "hPQ"), "", "", _percent(row, "hIoU")])
        return table

    def _list_per_class(self, scores: PatchworkScores) -> list[dict[str, Any]]:
        return [
            {
                "preset": scores.row.preset,
                "text": scores.row.text,
                "seen_penalty": scores.row.seen_penalty,
                "label": category.name,
                "kind": "thing" if category.is_thing else "stuff",
                "training": "seen" if category.is_seen else "unseen",
                **scores.per_class[category.name],
            }
            for category in self.vocabulary
        ]


def _describe(row: PatchworkRow) -> str:
    return SHUFFLED if row.text == "shuffled" else f"calibrated by {row.seen_penalty:g}"


def _percent(row: PatchworkRow, figure: str) -> str:
    value = row.figures[figure]
    return format_percent(float("nan") if value is None else value)
