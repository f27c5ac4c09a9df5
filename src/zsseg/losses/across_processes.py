"""Losses that are no mean over the processes of a run: what they count and compare is that of all of them.

Distributed training takes the mean of the processes' gradients. So a sum is divided by the mean count of a
process, not by the own one; and where examples are compared with each other, every process computes the loss
of all of them, from gathered rows. Then two processes learn what one learns from both their batches.

Every process has to call these functions as often as the others. Outside distributed runs they talk to none.
"""

import torch
import torch.distributed
from torch import Tensor


def get_num_processes() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def get_process_index() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def mean_over_processes(counts: Tensor, *, smallest_total: float = 0.0) -> Tensor:
    """What the processes count, on average.

    Args:
        counts: of this process, of any shape; they get no gradient.
        smallest_total: the sums over processes count as this much at least; 1 where a mean over nothing
            shall be 0.

    Returns:
        The same shape, in floating point: with it as divisor, the mean over processes of sums is the mean
        over all their items.
    """
    totals = counts.detach().clone()
    if not totals.is_floating_point():
        totals = totals.float()
    if _is_distributed():
        torch.distributed.all_reduce(totals)
    return totals.clamp(min=smallest_total) / get_num_processes()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes one after the other, with gradients to the own ones.

    Every process must compute the same loss from them: the gradient of its own rows is multiplied by the
    number of processes, so that the mean that distributed training takes is the gradient of that loss.

    Args:
        rows: (N, …); N may differ between processes, also be 0.

    Returns:
        (sum of N, …), in the order of the processes.
    """
    gathered: Tensor = _GatherRows.apply(rows) if _is_distributed() else rows
    return gathered


def raise_in_all_processes(error: ValueError | None) -> None:
    """Raise in every process what one of them came across, so that none waits for another in vain.

    Args:
        error: of this process, None if it came across nothing.

    Raises:
        ValueError: ``error``, or one that says that another process has failed.
    """
    if _is_distributed():
        has_failed = torch.tensor(float(error is not None), device=_collective_device())
        torch.distributed.all_reduce(has_failed)
        if error is None and has_failed > 0:
            raise ValueError(
                f"{int(has_failed)} other of {get_num_processes()} processes found values that are not "
                "finite; their own messages say where"
            )
    if error is not None:
        raise error


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        num_processes, index = get_num_processes(), get_process_index()
        counts = rows.new_zeros(num_processes, dtype=torch.int64)
        counts[index] = len(rows)
        torch.distributed.all_reduce(counts)
        lengths = counts.tolist()
        # Collectives take equal shapes alone.
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(num_processes)]
        torch.distributed.all_gather(parts, padded)
        context.num_processes = num_processes  # type: ignore[attr-defined]
        context.own = slice(sum(lengths[:index]), sum(lengths[: index + 1]))  # type: ignore[attr-defined]
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradients: Tensor) -> Tensor:
        own: Tensor = gradients[context.own]  # type: ignore[attr-defined]
        return own * context.num_processes  # type: ignore[attr-defined]


def _collective_device() -> torch.device:
    """Where the backend takes tensors: NCCL only on the GPU."""
    is_on_cpu = "gloo" in str(torch.distributed.get_backend())
    return torch.device("cpu" if is_on_cpu else "cuda")


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
