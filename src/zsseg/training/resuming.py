"""How a run goes on from a checkpoint: with the same examples in each step, also on other processes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.data_feed import count_parts
from zsseg.training.data_order import Place
from zsseg.training.random_state import derive_seed, restore_parts, restore_rng_states, seed_generators

BATCH_KEYS = frozenset({"batch_size", "gradient_accumulation_steps", "processes", "global_batch_size"})
"""What may change together on resume; :func:`fit_global_batch` says how."""


def fit_global_batch(
    arguments: TrainerArguments, num_processes: int, saved: Mapping[str, Any]
) -> tuple[TrainerArguments, list[str]]:
    """Let a step see as many examples as before, on any number of processes.

    Args:
        arguments: as given now.
        num_processes: of now.
        saved: the setup of the checkpoint.

    Returns:
        The arguments, ``batch_size`` and ``gradient_accumulation_steps`` changed if need be, and what a user
        should know of it.

    Raises:
        CheckpointError: if these two were changed to numbers that do not give as many examples.
    """
    now = (arguments.batch_size, arguments.gradient_accumulation_steps)
    then = (saved["batch_size"], saved["gradient_accumulation_steps"])
    processes_then = saved["processes"]
    global_batch = saved["global_batch_size"]
    notes = []
    if num_processes != processes_then:
        notes.append(
            f"resumed on {num_processes} process(es), begun on {processes_then}: the order of the examples "
            "goes on, random draws start anew"
        )
    if now[0] * now[1] * num_processes == global_batch:
        if num_processes == processes_then and now != then:
            notes.append(
                f"{_describe(*now)} instead of {_describe(*then)}: a step sees as many examples as before"
            )
        return arguments, notes
    if now != then:
        raise CheckpointError(
            f"a step of this run saw {global_batch} examples ({_describe(*then)} on {processes_then} "
            f"process(es)), but {_describe(*now)} on {num_processes} make {now[0] * now[1] * num_processes}: "
            "choose them so that their product stays, or leave them as they were"
        )
    own, remainder = divmod(global_batch, num_processes)
    if remainder:
        notes.append(
            f"{global_batch} examples of a step do not divide by {num_processes} processes: a step now sees "
            f"{now[0] * now[1] * num_processes}, with the same learning rate"
        )
        return arguments, notes
    # No more at a time than fits into memory.
    batch_size = max(size for size in range(1, min(arguments.batch_size, own) + 1) if own % size == 0)
    fitted = replace(arguments, batch_size=batch_size, gradient_accumulation_steps=own // batch_size)
    notes.append(
        f"{_describe(batch_size, own // batch_size)}, so that a step sees {global_batch} examples as before"
    )
    return fitted, notes


def _describe(batch_size: int, accumulation: int) -> str:
    return f"batch_size {batch_size} × gradient_accumulation_steps {accumulation}"


@dataclass(frozen=True)
class DataStart:
    """Where the data of one process go on.

    Attributes:
        place: of all processes.
        stream_state: of this one, where the data are a stream that is read as before.
        notes: what a user should know.
    """

    place: Place
    stream_state: list[list[int]] | None = None
    notes: tuple[str, ...] = ()


def find_data_start(
    place: Place,
    process_states: list[dict[str, Any]],
    process_index: int,
    num_processes: int,
    arguments: TrainerArguments,
) -> DataStart:
    """Where one process reads on.

    Args:
        place: of the checkpoint.
        process_states: what each process saved.
        process_index: of this process.
        num_processes: of now.
        arguments: say how many processes load data.
    """
    streams = [state["stream"] for state in process_states]
    if streams[0] is None:
        return DataStart(place)
    if len(streams) == num_processes and all(len(parts) == count_parts(arguments) for parts in streams):
        return DataStart(place, streams[process_index])
    # Other parts have other examples in front: which of them were seen cannot be told.
    begun = max(epoch for parts in streams for _, epoch, _ in parts)
    note = (
        f"the stream is divided otherwise than before, so epoch {begun + 1} begins: what was not yet seen of "
        "the one before is left out"
    )
    return DataStart(Place(begun + 1), None, (note,))


def restore_generators(
    process_states: list[dict[str, Any]],
    model: nn.Module,
    *,
    process_index: int,
    num_processes: int,
    seed: int,
    step: int,
    draws_together: bool,
) -> None:
    """Set all random number generators to where the run was.

    On another number of processes the generators of the model's parts, the same in all, go on; the global
    ones begin anew from seed and step.

    Args:
        process_states: what each process saved.
        model: with the generators of its parts.
        process_index: of this process.
        num_processes: of now.
        seed: of the run.
        step: at which it goes on.
        draws_together: whether all processes draw the same; then they can go on as they were in any number.
    """
    if draws_together or len(process_states) == num_processes:
        restore_rng_states(process_states[0 if draws_together else process_index]["rng"], model)
        return
    seed_generators(derive_seed(seed, step), model, process_index=process_index)
    restore_parts(process_states[0]["rng"], model)
