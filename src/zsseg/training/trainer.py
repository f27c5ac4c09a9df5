"""The one training loop, on bare accelerate: every family's every stage runs through it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from zsseg.training.arguments import RESUME_MAY_CHANGE, TrainerArguments
from zsseg.training.checkpointing import (
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    CheckpointWriter,
    Saveable,
    TrainerState,
    check_setup,
    claim_output_dir,
    find_checkpoints,
    find_last_checkpoint,
    load_model_weights,
    load_optimizer,
    load_rng_states,
    load_stage_state,
    load_state,
    remove_temporary,
)
from zsseg.training.data_order import EpochBatchSampler, EpochDataset, SizedDataset
from zsseg.training.interruption import StopOnSignal, leave_signals_to_trainer
from zsseg.training.logging_sinks import ConsoleSink, RunLog
from zsseg.training.optimization import (
    build_optimizer,
    compute_learning_rate_factor,
    freeze_batch_norm,
    prepare_trainable,
    set_learning_rates,
)
from zsseg.training.random_state import seed_generators
from zsseg.training.stage import Batch, Stage, StageContext, StageModule

Evaluate = Callable[[PreTrainedModel], Mapping[str, float]]


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done, over all resumed parts.
        is_complete: false if it was interrupted before its last step; resume to go on.
        last_checkpoint: the checkpoint of ``step``.
        best_checkpoint: the one whose evaluation was best; None without evaluation, or if it was removed.
        best_metric: that evaluation's number.
    """

    step: int
    is_complete: bool
    last_checkpoint: Path
    best_checkpoint: Path | None
    best_metric: float | None


class Trainer:
    """Trains one stage of one model.

    The run is a function of its arguments: data order, augmentation and learning rate follow from seed and
    step, so a killed run that resumes ends with the weights of one that was never killed, bit for bit on one
    CPU with as many threads.

    Args:
        model: trained in place.
        stage: which weights are trained and by which loss.
        context: the labels and their embeddings; None for a stage that has no use for them.
        dataset: examples; ``set_epoch``, where it has one, chooses the augmentation of an epoch.
        collate: list of examples → batch.
        processor: saved with every checkpoint.
        arguments: sizes, rates and cadence.
        evaluate: the model, in evaluation mode → numbers by name; None does not evaluate.
        data_setup: what else must be equal when the run resumes, such as the augmentation, by name.
        stream: console output, standard error if None.

    Raises:
        ValueError: if evaluation is asked for without ``evaluate``.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        stage: Stage,
        context: StageContext | None,
        dataset: SizedDataset,
        collate: Callable[[list[Any]], Batch],
        processor: Saveable,
        arguments: TrainerArguments,
        evaluate: Evaluate | None = None,
        data_setup: Mapping[str, str] = MappingProxyType({}),
        stream: TextIO | None = None,
    ) -> None:
        if arguments.evaluate_every is not None and evaluate is None:
            raise ValueError(
                f"evaluate_every is {arguments.evaluate_every}, but there is nothing to evaluate on: "
                "pass evaluate, or set evaluate_every to None"
            )
        self.model = model
        self.stage = stage
        self.arguments = arguments
        self.dataset = dataset
        self.collate = collate
        self.processor = processor
        self.evaluate = evaluate
        self.stream = stream
        self.accelerator = Accelerator(
            mixed_precision=arguments.mixed_precision,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=stage.has_unused_parameters)
            ],
        )
        self.context = None if context is None else context.to(self.accelerator.device)
        self.state = TrainerState()
        self.writer = CheckpointWriter(
            arguments.output_dir,
            {**data_setup, **self._describe_setup()},
            None if context is None else context.text_embeds,
            arguments.keep_last_n,
        )

    def train(self, *, resume: bool | Path = False, overwrite: bool = False) -> TrainingResult:
        """Run the stage to its last step, or until Ctrl-C, which saves a checkpoint first.

        Args:
            resume: True goes on from the newest checkpoint in the output folder, a path from that one.
            overwrite: start anew in a folder that holds a run.

        Raises:
            FileExistsError: if the output folder is not empty and neither is given.
            CheckpointError: if there is nothing to resume or it belongs to another setup.
            TrainingDivergedError: if the loss or the gradient is not finite.
        """
        checkpoint = self._open_output_dir(resume=resume, overwrite=overwrite)
        accelerator = self.accelerator
        seed_generators(self.arguments.seed + accelerator.process_index, self.model)
        if checkpoint is not None:
            load_model_weights(checkpoint, self.model)
        prepare_trainable(self.model, self.stage, self.arguments)
        # Walking through the modules for these at every step would slow those on stored queries noticeably.
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(self.model, self.stage, self.arguments)
        self.module, self.prepared_optimizer = accelerator.prepare(
            StageModule(self.model, self.stage, self.context), self.optimizer
        )
        if checkpoint is not None:
            load_optimizer(checkpoint, self.optimizer, accelerator.scaler)
            load_rng_states(checkpoint, accelerator.process_index, self.model)
            self.stage.set_state(load_stage_state(checkpoint))
        with (
            StopOnSignal() as stop,
            RunLog(
                self.arguments.output_dir / METRICS_FILE,
                self.arguments.output_dir / TENSORBOARD_FOLDER,
                ConsoleSink(self.stage.name, self.arguments.steps, self.state.step, self.stream),
                resume_step=self.state.step,
                is_active=accelerator.is_main_process,
            ) as log,
        ):
            self._run(log, stop)
        return self._result()

    def _open_output_dir(self, *, resume: bool | Path, overwrite: bool) -> Path | None:
        output_dir = self.arguments.output_dir
        if resume is False:
            with self.accelerator.main_process_first():
                if self.accelerator.is_main_process:
                    claim_output_dir(output_dir, overwrite=overwrite)
            return None
        checkpoint = find_last_checkpoint(output_dir) if resume is True else Path(resume)
        self.state = load_state(checkpoint)
        check_setup(checkpoint, self.writer.setup, self.writer.text_embeds, RESUME_MAY_CHANGE)
        later = [path.name for step, path in find_checkpoints(output_dir).items() if step > self.state.step]
        if later:
            raise FileExistsError(
                f"{output_dir} holds checkpoints later than step {self.state.step}: {later}; remove them to "
                "go back to this one, or resume the newest"
            )
        if self.accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            remove_temporary(output_dir)
        return checkpoint

    def _describe_setup(self) -> dict[str, Any]:
        vocabulary = () if self.context is None else self.context.vocabulary
        return {
            **self.arguments.to_dict(),
            "stage": self.stage.name,
            "model": type(self.model).__name__,
            "labels": [category.spelling for category in vocabulary],
            "examples": len(self.dataset),
            "processes": self.accelerator.num_processes,
        }

    def _run(self, log: RunLog, stop: StopOnSignal) -> None:
        arguments, state = self.arguments, self.state
        sampler = EpochBatchSampler(
            length=len(self.dataset),
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            start=state.step * arguments.gradient_accumulation_steps,
            process_index=self.accelerator.process_index,
            process_count=self.accelerator.num_processes,
        )
        log.print(self._describe_run(sampler.batches_per_epoch))
        batches = iter(self._build_loader(sampler))
        self._set_training_mode()
        is_stopping = False
        while state.step < arguments.steps and not is_stopping:
            numbers, is_stopping = self._train_step(batches, stop)
            state.step += 1
            state.epoch, state.position = divmod(
                state.step * arguments.gradient_accumulation_steps, sampler.batches_per_epoch
            )
            self._log_step(log, numbers)
            is_last = state.step == arguments.steps
            has_improved = False
            if self.evaluate is not None and (is_last or _is_due(state.step, arguments.evaluate_every)):
                has_improved = self._evaluate(log)
            if is_last or is_stopping or has_improved or _is_due(state.step, arguments.save_every):
                self._save()
                log.print(f"saved step {state.step}" + (", the best so far" if has_improved else ""))
        if is_stopping and state.step < arguments.steps:
            log.print(f"stopped at step {state.step} of {arguments.steps}; resume to go on")

    def _describe_run(self, batches_per_epoch: int) -> str:
        parameters = list(self.model.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters)
        return (
            f"stage {self.stage.name}: {trained:,} of {total:,} parameters trained on "
            f"{len(self.dataset):,} examples, {batches_per_epoch:,} batches an epoch, "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}, "
            f"from step {self.state.step} to {self.arguments.steps}"
        )

    def _build_loader(self, sampler: EpochBatchSampler) -> DataLoader[Any]:
        return DataLoader(
            EpochDataset(self.dataset),
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.arguments.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=leave_signals_to_trainer,
            # Its own generator: otherwise the loader draws its workers' seed from the global one, once more
            # in a resumed run than in one that was never killed.
            generator=torch.Generator().manual_seed(self.arguments.seed),
        )

    def _set_training_mode(self) -> None:
        self.module.train()
        freeze_batch_norm(self.model)

    def _train_step(self, batches: Iterator[Batch], stop: StopOnSignal) -> tuple[dict[str, float], bool]:
        """One optimizer step; the numbers to log, and whether any process was asked to stop."""
        started = time.monotonic()
        waited = 0.0
        count = self.arguments.gradient_accumulation_steps
        factor = compute_learning_rate_factor(self.state.step, self.arguments)
        set_learning_rates(self.optimizer, factor)
        sums: dict[str, Tensor] = {}
        for index in range(count):
            asked = time.monotonic()
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
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
        try:
            if is_last:
                losses = self.module(batch)
                self.accelerator.backward(losses["loss"] / self.arguments.gradient_accumulation_steps)
            else:
                with self.accelerator.no_sync(self.module):
                    losses = self.module(batch)
                    self.accelerator.backward(losses["loss"] / self.arguments.gradient_accumulation_steps)
        except ValueError as error:
            error.add_note(f"This happened in {self._describe_place()}")
            raise
        return losses

    def _update_weights(self) -> float:
        """Clip, step and clear the gradients; the 2-norm they had before clipping."""
        limit = self.arguments.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.trainable, math.inf if limit is None else limit))
        # The scaler of fp16 skips a step whose gradient overflows, and lowers its scale.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self._check_finite({"gradient_norm": norm})
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        return norm

    def _check_finite(self, numbers: Mapping[str, float]) -> None:
        if all(math.isfinite(number) for number in numbers.values()):
            return
        shown = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        raise TrainingDivergedError(
            f"training diverged in {self._describe_place()}: {shown}. Begin again from its weights in "
            "a new folder, with a lower learning rate, clipped gradients or no mixed precision"
        )

    def _describe_place(self) -> str:
        checkpoints = find_checkpoints(self.arguments.output_dir)
        last = checkpoints[max(checkpoints)] if checkpoints else "none was saved yet"
        return f"stage {self.stage.name!r}, step {self.state.step + 1}; last good checkpoint: {last}"

    def _log_step(self, log: RunLog, numbers: Mapping[str, float]) -> None:
        state = self.state
        for name, number in numbers.items():
            state.window_sums[name] = state.window_sums.get(name, 0.0) + number
        state.window_count += 1
        log.advance()
        if state.step % self.arguments.log_every == 0 or state.step == self.arguments.steps:
            means = {name: total / state.window_count for name, total in state.window_sums.items()}
            log.write({"kind": "train", "step": state.step, "epoch": state.epoch, **means})
            state.window_sums, state.window_count = {}, 0

    def _evaluate(self, log: RunLog) -> bool:
        """Evaluate on the main process; whether this is the best result so far."""
        metric = self.arguments.metric_for_best
        value = torch.zeros(1, dtype=torch.float64, device=self.accelerator.device)
        if self.accelerator.is_main_process and self.evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                results = self.evaluate(self.model)
            self._set_training_mode()
            log.write({"kind": "evaluation", "step": self.state.step, **results})
            if not math.isfinite(results.get(metric, math.nan)):
                raise ValueError(
                    f"metric_for_best is {metric!r}, but the evaluation gave no such finite number, only "
                    f"{dict(results)}"
                )
            value += results[metric]
        current = float(self.accelerator.reduce(value, reduction="sum"))
        if self.state.best_metric is not None and current <= self.state.best_metric:
            return False
        self.state.best_metric, self.state.best_step = current, self.state.step
        return True

    def _save(self) -> None:
        accelerator = self.accelerator
        if accelerator.is_main_process:
            self.writer.begin(self.state)
        accelerator.wait_for_everyone()
        self.writer.write_rng_states(self.state, accelerator.process_index, self.model)
        if accelerator.is_main_process:
            self.writer.write(
                self.state,
                self.model,
                self.processor,
                self.optimizer,
                accelerator.scaler,
                self.stage.get_state(),
            )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.writer.commit(self.state)
        accelerator.wait_for_everyone()

    def _result(self) -> TrainingResult:
        checkpoints = find_checkpoints(self.arguments.output_dir)
        best_step = self.state.best_step
        return TrainingResult(
            step=self.state.step,
            is_complete=self.state.step == self.arguments.steps,
            last_checkpoint=checkpoints[self.state.step],
            best_checkpoint=None if best_step is None else checkpoints.get(best_step),
            best_metric=self.state.best_metric,
        )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
