"""Weights that FSDP2 spread over processes, as whole tensors and back: checkpoints know no sharding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def collect_whole(state: Any) -> Any:
    """A nested state with every sharded tensor whole and on the CPU; all processes must call this.

    What is not sharded stays as it is, and so does the order: processes collect the same tensor at a time.
    """
    if isinstance(state, Mapping):
        return {name: collect_whole(value) for name, value in state.items()}
    if isinstance(state, list):
        return [collect_whole(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def share_weights(model: nn.Module, device: torch.device) -> None:
    """Give every process the weights of the first: new layers begin with random ones.

    Args:
        model: of this process.
        device: where the processes exchange tensors.
    """
    for tensor in model.state_dict().values():
        moved = tensor.to(device)
        torch.distributed.broadcast(moved, src=0)
        tensor.copy_(moved)


def shard_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, spread as its parameters are; without sharded parameters as it was.

    Args:
        state: of ``state_dict``, for the same parameters in the same order.
        optimizer: whose parameters may be sharded.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": sharded}


def _shard_like(value: Any, parameter: Tensor) -> Any:
    """Moments have the shape of their parameter; the number of steps has none."""
    is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
    if not isinstance(parameter, DTensor) or not is_moment:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
