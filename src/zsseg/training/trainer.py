"""The one training loop, on bare accelerate: every family's every stage runs through it."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from zsseg.training.arguments import RESUME_MAY_CHANGE, TrainerArguments
from zsseg.training.checkpointing import (
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    CheckpointError,
    CheckpointWriter,
    Saveable,
    TrainerState,
    check_setup,
    claim_output_dir,
    find_checkpoints,
    find_last_checkpoint,
    load_model_weights,
    load_optimizer,
    load_process_states,
    load_stage_state,
    load_state,
    read_setup,
    remove_temporary,
)
from zsseg.training.data_feed import DataFeed, ProcessPlace, build_feed
from zsseg.training.data_order import Place, SizedDataset, StreamedDataset, is_streamed
from zsseg.training.interruption import StopOnSignal
from zsseg.training.logging_sinks import ConsoleSink, RunLog
from zsseg.training.optimization import build_optimizer, freeze_batch_norm, prepare_trainable
from zsseg.training.processes import build_accelerator, is_sharded, share_failure
from zsseg.training.random_state import capture_rng_states, restore_rng_states, seed_generators
from zsseg.training.resuming import BATCH_KEYS, find_data_start, fit_global_batch, restore_generators
from zsseg.training.sharding import collect_whole, share_weights
from zsseg.training.stage import Batch, Stage, StageContext, StageModule
from zsseg.training.step import TrainingStep

Evaluate = Callable[[PreTrainedModel], Mapping[str, float]]


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
    CPU with as many threads. On several processes it learns what one learns from all their batches.

    Args:
        model: trained in place.
        stage: which weights are trained and by which loss.
        context: the labels and their embeddings; None for a stage that has no use for them.
        dataset: examples by index, ``set_epoch``, where it has one, chooses the augmentation of an epoch; or
            a stream of them.
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
        dataset: SizedDataset | StreamedDataset,
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
        self.accelerator = build_accelerator(
            arguments.mixed_precision, has_unused_parameters=stage.has_unused_parameters
        )
        self.context = None if context is None else context.to(self.accelerator.device)
        self.state = TrainerState()
        self.notes: list[str] = []
        self.writer = CheckpointWriter(
            arguments.output_dir,
            {**data_setup, **self._describe_setup()},
            None if context is None else context.text_embeds,
            arguments.keep_last_n,
        )

    def train(self, *, resume: bool | Path = False, overwrite: bool = False) -> TrainingResult:
        """Run the stage to its last step, or until a signal or a limit of time; either saves a checkpoint.

        Args:
            resume: True goes on from the newest checkpoint in the output folder, a path from that one. On
                another number of processes a step sees as many examples as before.
            overwrite: start anew in a folder that holds a run.

        Raises:
            FileExistsError: if the output folder is not empty and neither is given.
            CheckpointError: if there is nothing to resume, it belongs to another setup, or a checkpoint
                cannot be written.
            TrainingDivergedError: if the loss or the gradient is not finite.
        """
        checkpoint = self._open_output_dir(resume=resume, overwrite=overwrite)
        accelerator = self.accelerator
        # Where all processes compute the same, they draw the same too.
        seed_generators(
            self.arguments.seed,
            self.model,
            process_index=0 if self.stage.needs_whole_batch else accelerator.process_index,
        )
        if checkpoint is not None:
            load_model_weights(checkpoint, self.model)
        prepare_trainable(self.model, self.stage, self.arguments)
        self._prepare()
        stream_state = None if checkpoint is None else self._restore(checkpoint)
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
            self.feed = self._build_feed(stream_state)
            try:
                self._run(log, stop)
            finally:
                self.feed.close()
        if is_sharded(accelerator):
            self.model.to(accelerator.device)
        return self._result()

    def _open_output_dir(self, *, resume: bool | Path, overwrite: bool) -> Path | None:
        output_dir = self.arguments.output_dir
        checkpoint, failure = None, None
        try:
            if resume is not False:
                checkpoint = find_last_checkpoint(output_dir) if resume is True else Path(resume)
                self._check_checkpoint(checkpoint)
            if self.accelerator.is_main_process:
                if checkpoint is None:
                    claim_output_dir(output_dir, overwrite=overwrite)
                output_dir.mkdir(parents=True, exist_ok=True)
                remove_temporary(output_dir)
        except (OSError, CheckpointError) as error:
            failure = error
        share_failure(failure)
        return checkpoint

    def _check_checkpoint(self, checkpoint: Path) -> None:
        """Take over where the run stood, if it is this run.

        Raises:
            CheckpointError: if it is another one.
            FileExistsError: if there are later checkpoints.
        """
        self.state = load_state(checkpoint)
        setup = self.writer.setup
        check_setup(checkpoint, setup, self.writer.text_embeds, RESUME_MAY_CHANGE | BATCH_KEYS)
        self.arguments, self.notes = fit_global_batch(
            self.arguments, self.accelerator.num_processes, read_setup(checkpoint)
        )
        # The arguments as they were given: the same command resumes again.
        self.writer.setup = {**setup, "global_batch_size": self._count_global_batch()}
        later = [
            path.name
            for step, path in find_checkpoints(self.arguments.output_dir).items()
            if step > self.state.step
        ]
        if later:
            raise FileExistsError(
                f"{self.arguments.output_dir} holds checkpoints later than step {self.state.step}: {later}; "
                "remove them to go back to this one, or resume the newest"
            )

    def _describe_setup(self) -> dict[str, Any]:
        vocabulary = () if self.context is None else self.context.vocabulary
        return {
            **self.arguments.to_dict(),
            "stage": self.stage.name,
            "model": type(self.model).__name__,
            "labels": [category.spelling for category in vocabulary],
            "examples": "streamed" if is_streamed(self.dataset) else len(self.dataset),  # type: ignore[arg-type]
            "processes": self.accelerator.num_processes,
            "global_batch_size": self._count_global_batch(),
        }

    def _count_global_batch(self) -> int:
        """Examples of one step in all processes."""
        arguments = self.arguments
        return arguments.batch_size * arguments.gradient_accumulation_steps * self.accelerator.num_processes

    def _prepare(self) -> None:
        """Build what trains: optimizer, and the module around model and stage."""
        # Sharding takes a module apart; the model itself stays whole, for checkpoints and evaluation.
        self.trained = self.model
        if is_sharded(self.accelerator):
            share_weights(self.model, self.accelerator.device)
            self.trained = copy.deepcopy(self.model)
            self.model.to("cpu")
        self.optimizer = build_optimizer(self.trained, self.stage, self.arguments)
        self.module, prepared_optimizer = self.accelerator.prepare(
            StageModule(self.trained, self.stage, self.context), self.optimizer
        )
        # Walking through the modules for these at every step would slow those on stored queries noticeably.
        trainable = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        self.train_step = TrainingStep(
            self.accelerator,
            self.module,
            prepared_optimizer,
            trainable,
            self.arguments,
            self.stage.name,
            self.state,
        )

    def _restore(self, checkpoint: Path) -> list[list[int]] | None:
        """Continue with everything but the weights; what this process needs to go on in a stream."""
        accelerator = self.accelerator
        load_optimizer(checkpoint, self.optimizer, accelerator.scaler)
        self.stage.set_state(load_stage_state(checkpoint))
        process_states = load_process_states(checkpoint)
        restore_generators(
            process_states,
            self.trained,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=self.arguments.seed,
            step=self.state.step,
            draws_together=self.stage.needs_whole_batch,
        )
        start = find_data_start(
            Place(self.state.epoch, self.state.position),
            process_states,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            arguments=self.arguments,
        )
        self.state.epoch, self.state.position = start.place
        self.notes += start.notes
        return start.stream_state

    def _build_feed(self, stream_state: list[list[int]] | None) -> DataFeed:
        accelerator = self.accelerator
        return build_feed(
            self.dataset,
            self.collate,
            self.arguments,
            ProcessPlace(
                accelerator.process_index, accelerator.num_processes, accelerator.device.type == "cuda"
            ),
            start=Place(self.state.epoch, self.state.position),
            stream_state=stream_state,
        )

    def _run(self, log: RunLog, stop: StopOnSignal) -> None:
        arguments, state = self.arguments, self.state
        for note in self.notes:
            log.print(note)
        log.print(self._describe_run())
        self._set_training_mode()
        is_stopping = False
        while state.step < arguments.steps and not is_stopping:
            numbers, is_stopping = self.train_step(self.feed, stop)
            self.stage.constrain(self.trained)
            state.step += 1
            state.epoch, state.position = self.feed.place
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

    def _describe_run(self) -> str:
        parameters = list(self.model.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters)
        sharded = ", weights sharded" if is_sharded(self.accelerator) else ""
        return (
            f"stage {self.stage.name}: {trained:,} of {total:,} parameters trained on "
            f"{self.feed.describe()}, "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}{sharded}, "
            f"from step {self.state.step} to {self.arguments.steps}"
        )

    def _set_training_mode(self) -> None:
        self.module.train()
        freeze_batch_norm(self.trained)

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
        self._collect_weights()
        metric = self.arguments.metric_for_best
        value = torch.zeros(1, dtype=torch.float64, device=self.accelerator.device)
        failure = None
        if self.accelerator.is_main_process and self.evaluate is not None:
            # Training draws the same, evaluated or not.
            rng_states = capture_rng_states(self.model)
            try:
                self.model.to(self.accelerator.device).eval()
                with torch.no_grad():
                    results = self.evaluate(self.model)
                log.write({"kind": "evaluation", "step": self.state.step, **results})
                if not math.isfinite(results.get(metric, math.nan)):
                    raise ValueError(
                        f"metric_for_best is {metric!r}, but the evaluation gave no such finite number, only "
                        f"{dict(results)}"
                    )
                value += results[metric]
            except Exception as error:
                failure = error
            restore_rng_states(rng_states, self.model)
            if is_sharded(self.accelerator):
                self.model.to("cpu")
            self._set_training_mode()
        share_failure(failure)
        current = float(self.accelerator.reduce(value, reduction="sum"))
        if self.state.best_metric is not None and current <= self.state.best_metric:
            return False
        self.state.best_metric, self.state.best_step = current, self.state.step
        return True

    def _collect_weights(self) -> None:
        """Put sharded weights together into the model; all processes must call this."""
        if is_sharded(self.accelerator):
            self.model.load_state_dict(collect_whole(self.trained.state_dict()))

    def _save(self) -> None:
        """Write a checkpoint on the main process; where that fails, all processes stop."""
        self._collect_weights()
        optimizer_state = collect_whole(self.optimizer.state_dict())
        stage_state = collect_whole(self.stage.get_state())
        own_state = {"rng": capture_rng_states(self.trained), "stream": self.feed.get_state()}
        process_states = gather_object([own_state])
        failure = None
        if self.accelerator.is_main_process:
            try:
                self.writer.save(
                    self.state,
                    model=self.model,
                    processor=self.processor,
                    optimizer_state=optimizer_state,
                    scaler=self.accelerator.scaler,
                    stage_state=stage_state,
                    process_states=process_states,
                )
            except (CheckpointError, OSError) as error:
                failure = error
        share_failure(failure)

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
