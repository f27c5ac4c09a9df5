"""One optimizer step: batches, losses, gradients and weights, the same in all processes of a run."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import TrainerState, find_checkpoints
from zsseg.training.data_feed import DataFeed
from zsseg.training.interruption import StopOnSignal
from zsseg.training.optimization import compute_learning_rate_factor, set_learning_rates
from zsseg.training.stage import Batch


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


class TrainingStep:
    """Takes one step after the other; every process of a run takes all of them.

    Args:
        accelerator: of the run.
        module: batch → losses, prepared.
        optimizer: prepared.
        trainable: the parameters it trains.
        arguments: batches in a step, rates, largest gradient.
        stage_name: for messages.
        state: where the run stands.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: AcceleratedOptimizer,
        trainable: Sequence[nn.Parameter],
        arguments: TrainerArguments,
        stage_name: str,
        state: TrainerState,
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.optimizer = optimizer
        self.trainable = trainable
        self.arguments = arguments
        self.stage_name = stage_name
        self.state = state

    def __call__(self, feed: DataFeed, stop: StopOnSignal) -> tuple[dict[str, float], bool]:
        """Take a step.

        Args:
            feed: where the batches come from.
            stop: whether this process was asked to stop.

        Returns:
            The numbers to log, means over all processes, and whether any process was asked to stop.

        Raises:
            TrainingDivergedError: if a loss or the gradient is not finite, in all processes.
        """
        started = time.monotonic()
        waited = 0.0
        count = self.arguments.gradient_accumulation_steps
        factor = compute_learning_rate_factor(self.state.step, self.arguments)
        set_learning_rates(self.optimizer, factor)
        sums: dict[str, Tensor] = {}
        for index in range(count):
            asked = time.monotonic()
            batch = send_to_device(feed.next_batch(), self.accelerator.device, non_blocking=True)
            waited += time.monotonic() - asked
            losses = self._accumulate_gradients(batch, is_last=index == count - 1)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / count
        names = sorted(sums)
        values = torch.stack([sums[name] for name in names] + [sums["loss"].new_tensor(stop.is_requested)])
        *means, stopping = self.accelerator.reduce(values, reduction="mean").tolist()
        numbers = dict(zip(names, means, strict=True))
        self._check_finite(numbers)
        numbers["gradient_norm"] = self._update_weights()
        numbers["learning_rate"] = self.arguments.learning_rate * factor
        numbers["seconds_per_step"] = time.monotonic() - started
        numbers["data_wait_fraction"] = waited / numbers["seconds_per_step"]
        return numbers, stopping > 0

    def _accumulate_gradients(self, batch: Batch, *, is_last: bool) -> dict[str, Tensor]:
        count = self.arguments.gradient_accumulation_steps
        try:
            with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                with self.accelerator.autocast():
                    losses: dict[str, Tensor] = self.module(batch)
                self.accelerator.backward(losses["loss"] / count)
        except ValueError as error:
            error.add_note(f"This happened in {self._describe_place()}")
            raise
        return losses

    def _update_weights(self) -> float:
        """Clip, step and clear the gradients; the 2-norm they had before clipping."""
        limit = self.arguments.max_grad_norm
        scaler = self.accelerator.scaler
        self.accelerator.unscale_gradients(self.optimizer)
        total = torch.nn.utils.clip_grad_norm_(self.trainable, math.inf if limit is None else limit)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        # The scaler of fp16 skips a step whose gradient overflows, and halves its scale; at a scale of 1 it
        # is the gradient itself that is not finite, and every step to come would be skipped too.
        if scaler is None or scaler.get_scale() <= 1.0:
            self._check_finite({"gradient_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _describe_place(self) -> str:
        checkpoints = find_checkpoints(self.arguments.output_dir)
        last = checkpoints[max(checkpoints)] if checkpoints else "none was saved yet"
        return f"stage {self.stage_name!r}, step {self.state.step + 1}; last good checkpoint: {last}"

    def _check_finite(self, numbers: Mapping[str, float]) -> None:
        if all(math.isfinite(number) for number in numbers.values()):
            return
        shown = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        raise TrainingDivergedError(
            f"training diverged in {self._describe_place()}: {shown}. Begin again from its weights in "
            "a new folder, with a lower learning rate, clipped gradients or no mixed precision"
        )
