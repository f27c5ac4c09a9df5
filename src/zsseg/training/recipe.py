"""Runs the stages of a recipe one after the other on one model, each in its own folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from transformers import PreTrainedModel

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import Saveable, check_resumable, find_checkpoints
from zsseg.training.data_order import SizedDataset, StreamedDataset
from zsseg.training.recipe_parts import check_mixed_precision
from zsseg.training.stage import Batch, Stage, StageContext
from zsseg.training.trainer import Evaluate, Trainer, TrainingResult


@dataclass(frozen=True)
class RecipeStep:
    """One stage of a recipe with its arguments.

    Attributes:
        stage: what is trained and by which loss.
        arguments: sizes, rates, cadence, and the stage's own folder.
        evaluate: the model → numbers by name; None where the stage has nothing to evaluate.
        dataset: examples of this stage; None takes the recipe's.
        prepare: called before the stage begins or goes on, to give the model a part that it trains.
        data_setup: what must be equal when this stage resumes, beside what the recipe says.
    """

    stage: Stage
    arguments: TrainerArguments
    evaluate: Evaluate | None = None
    dataset: SizedDataset | StreamedDataset | None = None
    prepare: Callable[[], None] | None = None
    data_setup: Mapping[str, str] = field(default_factory=dict)


def run_recipe(
    steps: Sequence[RecipeStep],
    *,
    model: PreTrainedModel,
    processor: Saveable,
    context: StageContext | None,
    dataset: SizedDataset | StreamedDataset,
    collate: Callable[[list[Any]], Batch],
    data_setup: Mapping[str, str],
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train a model through all stages, each from the weights the one before left.

    Args:
        steps: the stages in order.
        model: trained in place.
        processor: saved with every checkpoint.
        context: the labels and their embeddings; None for stages that have no use for them.
        dataset: examples.
        collate: list of examples → batch.
        data_setup: what else must be equal when a stage resumes, such as the augmentation, by name.
        resume: go on with the last stage that has a checkpoint; the stages before it are not run again. If
            the run was killed before its first checkpoint, it begins anew.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name; an interrupted one is the last.

    Raises:
        ValueError: if there is no stage, two share a folder, or their mixed precision differs.
        CheckpointError: if there is nothing to resume.
        FileExistsError: if a folder is not empty and neither ``resume`` nor ``overwrite`` is given.
    """
    _check_steps(steps)
    folders = [step.arguments.output_dir for step in steps]
    if resume:
        check_resumable(folders)
    started = [index for index, folder in enumerate(folders) if resume and find_checkpoints(folder)]
    first = max(started, default=0)
    results: dict[str, TrainingResult] = {}
    for index, step in enumerate(steps[first:], start=first):
        if step.prepare is not None:
            step.prepare()
        trainer = Trainer(
            model=model,
            stage=step.stage,
            context=context,
            dataset=dataset if step.dataset is None else step.dataset,
            collate=collate,
            processor=processor,
            arguments=step.arguments,
            evaluate=step.evaluate,
            data_setup={**data_setup, **step.data_setup},
            stream=stream,
        )
        is_resumed = bool(started) and index == first
        # A resumed recipe may find what a stage left that was killed before its first checkpoint.
        result = trainer.train(resume=is_resumed, overwrite=overwrite or (resume and not is_resumed))
        results[step.stage.name] = result
        if not result.is_complete:
            break
    return results


def _check_steps(steps: Sequence[RecipeStep]) -> None:
    if not steps:
        raise ValueError("a recipe needs at least one stage, got none")
    folders = [step.arguments.output_dir.resolve() for step in steps]
    if len(set(folders)) != len(folders):
        raise ValueError(f"every stage needs its own output_dir, got {[str(folder) for folder in folders]}")
    check_mixed_precision(step.arguments for step in steps)
