"""The processes of a run, one or those that ``accelerate launch`` or ``torchrun`` started."""

import atexit
import functools
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    gather_object,
    parse_flag_from_env,
)

from zsseg.training.arguments import MixedPrecision

COLLECTIVE_TIMEOUT = timedelta(hours=3)
"""How long processes wait for each other. One evaluates and writes while the others wait."""


def get_process_state() -> PartialState:
    """Which of the processes this one is, how many there are, and its device.

    The first call in a process decides for all of accelerate: several processes on CPUs take each other into
    account only if it says that they are on CPUs.
    """
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    is_on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        is_launched and not torch.accelerator.is_available()
    )
    state = PartialState(cpu=is_on_cpu, timeout=COLLECTIVE_TIMEOUT)
    leave_process_group_at_exit()
    return state


@functools.cache
def leave_process_group_at_exit() -> None:
    """Close the connections to the other processes before the interpreter goes.

    Gloo's threads that still run then end the process with SIGABRT every now and then ("terminate called
    without an active exception"), although its work was done.
    """

    def leave() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def build_accelerator(mixed_precision: MixedPrecision, *, has_unused_parameters: bool) -> Accelerator:
    """Accelerate as it was launched: one process, data parallel, or with weights sharded by FSDP2.

    Args:
        mixed_precision: autocast dtype.
        has_unused_parameters: whether a step may leave trained weights without a gradient.

    Raises:
        ValueError: if accelerate was told to shard in a way that does not work here.
    """
    state = get_process_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=has_unused_parameters)],
    )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and state.num_processes > 1:
        _set_up_sharding(accelerator)
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process holds only its part of the weights."""
    return accelerator.distributed_type == DistributedType.FSDP


def _set_up_sharding(accelerator: Accelerator) -> None:
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"expected FSDP version 2, accelerate was told {plugin.fsdp_version}: set fsdp_version: 2 in its "
            "configuration, or --fsdp_version 2"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "every process embeds the labels and so needs the whole checkpoint, but accelerate was told to "
            "load it in one process alone: set fsdp_cpu_ram_efficient_loading: false"
        )
    # Mask2Former's loss does not take bfloat16 weights; autocast lowers the precision where it may be.
    plugin.mixed_precision_policy = None
    # Accelerate shards on accelerators alone and would say nothing on CPUs, where PyTorch shards too.
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, get_process_state()):
        state.distributed_type = DistributedType.FSDP


class OtherProcessError(RuntimeError):
    """Another process of the run has failed, so this one stops too."""


def share_failure(error: Exception | None) -> None:
    """Raise in every process what failed in one of them, so that none waits for another in vain.

    Args:
        error: of this process, None if it did not fail; all processes must call this.

    Raises:
        Exception: ``error`` itself.
        OtherProcessError: in the processes that did not fail, with the message of the first that did.
    """
    messages = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    for index, message in enumerate(messages):
        if message is not None:
            raise OtherProcessError(f"process {index} failed, so this one stops too: {message}")
