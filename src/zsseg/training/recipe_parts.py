"""Recipes that run in several parts, each with data of its own, and resume as one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import (
    CheckpointError,
    check_output_dir,
    check_resumable,
    claim_output_dir,
    find_checkpoints,
)
from zsseg.training.processes import get_process_state, share_failure
from zsseg.training.trainer import TrainingResult


def prepare_stages(
    stages: Iterable[TrainerArguments],
    *,
    later_folders: Iterable[Path] = (),
    resume: bool,
    overwrite: bool,
) -> None:
    """Find out before the first stage what would stop a later one.

    Args:
        stages: arguments of all stages that are to run.
        later_folders: of stages that would go on from these, but do not run now.
        resume: one of the stages must have begun.
        overwrite: earlier runs are deleted now, those of later stages too: resuming goes on with the last
            stage that has a checkpoint, which must not be one of another run.

    Raises:
        ValueError: if mixed precision differs between stages.
        CheckpointError: if there is nothing to resume.
        FileExistsError: if a folder is not empty and neither ``resume`` nor ``overwrite`` is given.
    """
    arguments = list(stages)
    check_mixed_precision(arguments)
    failure = None
    if get_process_state().is_main_process:
        folders = [stage.output_dir for stage in arguments]
        try:
            if resume:
                check_resumable(folders)
            for folder in (*folders, *later_folders):
                if overwrite and folder.is_dir():
                    claim_output_dir(folder, overwrite=True)
                elif not resume and not overwrite:
                    check_output_dir(folder)
        except (OSError, CheckpointError) as error:
            failure = error
    share_failure(failure)


def check_mixed_precision(stages: Iterable[TrainerArguments]) -> None:
    """Accelerate fixes it for the whole process.

    Raises:
        ValueError: if it differs between stages.
    """
    precisions = {arguments.mixed_precision for arguments in stages}
    if len(precisions) > 1:
        raise ValueError(f"all stages of one process share one mixed_precision, got {sorted(precisions)}")


class Start(TypedDict):
    """How a part of a recipe begins, as its function takes it."""

    resume: bool
    overwrite: bool


def choose_start(stages: Iterable[TrainerArguments], *, resume: bool, overwrite: bool) -> Start:
    """How one part begins in a recipe that was called with ``resume`` and ``overwrite``.

    A part of which no stage has a checkpoint begins anew in a resumed recipe too; it may find what a stage
    left that was killed before its first checkpoint.
    """
    has_begun = any(find_checkpoints(arguments.output_dir) for arguments in stages)
    return {"resume": resume and has_begun, "overwrite": overwrite or (resume and not has_begun)}


def are_complete(results: Mapping[str, TrainingResult]) -> bool:
    """Whether every stage came to its end."""
    return all(result.is_complete for result in results.values())
