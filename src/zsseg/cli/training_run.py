"""From the options of ``zsseg train`` to a recipe that runs, and a checkpoint at its end."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import PartialState

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.ground_truth import LabelSetup, describe_labels
from zsseg.cli.messages import UsageError
from zsseg.cli.text_layout import format_count, format_percent
from zsseg.data.annotation_files import read_annotation_json
from zsseg.data.coco_panoptic import CocoPanopticDataset
from zsseg.data.examples import PanopticDataset
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.evaluation import Task, evaluate_model
from zsseg.training.recipes.concat import (
    CONCAT_STAGES,
    UnseenPolicy,
    build_concat_transform,
    train_concat,
)
from zsseg.training.recipes.concat_segmentor import SegmentorStage
from zsseg.training.trainer import Evaluate, TrainingDivergedError, TrainingResult

CHECKPOINT_FOLDER = "checkpoint"


def read_arguments(path: Path) -> dict[str, Any]:
    """The JSON object of ``--arguments``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON object.
    """
    return read_annotation_json(path, ())


def build_stage_arguments(
    output: Path,
    stage: str | None,
    validation: PanopticDataset | None,
    *,
    from_file: Mapping[str, Any],
    from_options: Mapping[str, Any],
) -> dict[str, TrainerArguments]:
    """The arguments of each stage: those of the file, its own section of the file, the command's options.

    The best checkpoint is chosen by the seen labels, unless the file names another metric: unseen ones must
    not decide anything in training.

    Args:
        output: every stage gets a folder of its name in it.
        stage: the one to run; None runs all.
        validation: what the run is evaluated on.
        from_file: training arguments by name, and under a stage's name those of that stage alone.
        from_options: what the command line sets.

    Raises:
        ValueError: if an argument is unknown, or its value is out of range or of the wrong type.
        UsageError: if nothing says how many steps to take.
    """
    sections = {name: from_file.get(name, {}) for name in CONCAT_STAGES}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise ValueError(f"{name!r} must hold training arguments of that stage by name, got {section!r}")
    shared = {name: value for name, value in from_file.items() if name not in CONCAT_STAGES}
    if "output_dir" in shared or any("output_dir" in section for section in sections.values()):
        raise ValueError("the arguments name an output_dir, but --output does; take it out of the file")
    metric = "PQ_seen" if isinstance(validation, CocoPanopticDataset) else "mIoU_seen"
    stages = {}
    for name in CONCAT_STAGES if stage is None else (stage,):
        values = {"metric_for_best": metric, **shared, **sections[name], **from_options}
        if "steps" not in values:
            raise UsageError(f"say how many steps the stage {name!r} takes: --steps, or in --arguments")
        if name != SegmentorStage.name:
            values["evaluate_every"] = None
        try:
            stages[name] = TrainerArguments.from_dict({**values, "output_dir": output / name})
        except TypeError as error:
            raise ValueError(str(error)) from error
    return stages


def check_stage_folders(output: Path, stages: Iterable[str]) -> None:
    """Refuse to begin where an earlier run would be in the way.

    Raises:
        UsageError: if the folder of a stage or of the final checkpoint is there and not empty.
    """
    for folder in (*(output / name for name in stages), output / CHECKPOINT_FOLDER):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is not empty: pass --resume to go on with its run, --overwrite to start anew, or "
                "choose another --output"
            )


class TrainingRun:
    """One run of CONCAT's recipe.

    Args:
        stages: arguments by stage.
        dataset: what to train on.
        validation: what to evaluate on during the segmentor stage; None does not evaluate.
        labels: how labels are spelled, for the record.
        output: folder of the stages' folders and of the checkpoint at the end.
    """

    model: ConcatForPanopticSegmentation
    processor: ConcatProcessor

    def __init__(
        self,
        *,
        stages: Mapping[str, TrainerArguments],
        dataset: PanopticDataset,
        validation: PanopticDataset | None,
        labels: LabelSetup,
        output: Path,
    ) -> None:
        self.stages = stages
        self.dataset = dataset
        self.validation = validation
        self.labels = labels
        self.output = output

    def load(self, *, model: str | None, mask2former: str | None, clip: str | None) -> None:
        """Load the start weights: a checkpoint, or a Mask2Former and a text encoder."""
        quieten_transformers()
        torch.manual_seed(next(iter(self.stages.values())).seed)
        if model is not None:
            self.source = model
            self.model = ConcatForPanopticSegmentation.from_pretrained(model)
            self.processor = ConcatProcessor.from_pretrained(model)
            return
        self.source = f"{mask2former} + {clip}"
        self.model = ConcatForPanopticSegmentation.from_mask2former(str(mask2former), clip=str(clip))
        self.processor = ConcatProcessor.from_mask2former(str(mask2former), clip=str(clip))

    def print_setup(self, unseen_policy: str) -> None:
        """What is trained from which weights, on which pictures and labels, for how long."""
        if not PartialState().is_main_process:
            return
        typer.secho(f"{self.source} · {PartialState().device}", bold=True)
        vocabulary = self.dataset.vocabulary
        policy = f" · unseen: {unseen_policy}" if vocabulary.unseen_label_ids else ""
        typer.echo(
            f"{format_count(len(self.dataset), 'image')} · {describe_labels(vocabulary, self.labels)}{policy}"
        )
        stages = ", ".join(
            f"{name} {format_count(arguments.steps, 'step')}" for name, arguments in self.stages.items()
        )
        typer.echo(f"{stages} → {self.output}")

    def train(
        self,
        *,
        size: tuple[int, int],
        min_scale: float,
        max_scale: float,
        unseen_policy: UnseenPolicy,
        resume: bool,
        overwrite: bool,
    ) -> bool:
        """Run the recipe and write the checkpoint.

        Args:
            size: (height, width) of a training crop in pixels.
            min_scale: smallest factor of the scale jitter.
            max_scale: largest factor.
            unseen_policy: as of :func:`~zsseg.training.recipes.concat.train_concat`.
            resume: go on with an earlier run.
            overwrite: start anew in folders that hold one.

        Returns:
            Whether all stages are complete; an interrupted run writes no final checkpoint.

        Raises:
            ValueError: if the run cannot begin, cannot be resumed, or diverges.
        """
        try:
            results = train_concat(
                self.model,
                self.processor,
                self.dataset,
                stages=self.stages,
                transform=build_concat_transform(size, min_scale=min_scale, max_scale=max_scale),
                unseen=unseen_policy,
                evaluate=self._build_evaluation(),
                resume=resume,
                overwrite=overwrite,
            )
        except (CheckpointError, TrainingDivergedError) as error:
            raise ValueError(str(error)) from error
        is_complete = all(result.is_complete for result in results.values())
        if PartialState().is_main_process:
            self._finish(results, is_complete)
        return is_complete

    def _finish(self, results: Mapping[str, TrainingResult], is_complete: bool) -> None:
        if not is_complete:
            typer.echo("the same command with --resume goes on from here", err=True)
            return
        folder = self.output / CHECKPOINT_FOLDER
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        typer.echo(f"{typer.style('wrote', fg='green', bold=True)} {folder}")
        for name, result in results.items():
            if result.best_metric is not None:
                metric = self.stages[name].metric_for_best
                typer.echo(
                    f"best by {metric}: {format_percent(result.best_metric)} % in {result.best_checkpoint}"
                )

    def _build_evaluation(self) -> Evaluate | None:
        validation = self.validation
        if validation is None:
            return None
        task: Task = "panoptic" if isinstance(validation, CocoPanopticDataset) else "semantic"
        return lambda model: evaluate_model(model, self.processor, validation, task=task)
