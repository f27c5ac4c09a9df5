import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from testing.tiny_concat_run import (
    LABELS,
    RectanglesDataset,
    build_model,
    build_trainer,
    read_records,
)
from zsseg.training.checkpointing import CheckpointError, find_checkpoints, load_state
from zsseg.training.optimization import freeze_batch_norm
from zsseg.training.recipes.concat_segmentor import SegmentorStage, WarmupStage
from zsseg.training.step import TrainingDivergedError

TIMINGS = ("seconds_per_step", "data_wait_fraction")


class InterruptingDataset(RectanglesDataset):
    """Presses Ctrl-C while the examples of one epoch are read."""

    def __init__(self, at_epoch):
        super().__init__()
        self.at_epoch = at_epoch

    def __getitem__(self, index):
        if self.epoch == self.at_epoch:
            self.at_epoch = None
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


class PoisonedDataset(RectanglesDataset):
    """From the second epoch on a picture holds a NaN."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if self.epoch:
            example["pixel_values"][0, 0, 0] = float("nan")
        return example


def assert_same_weights(model, other):
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    different = [name for name, value in weights.items() if not torch.equal(value, others[name])]
    assert different == []


def without_timings(records):
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def interrupt_and_resume(tmp_path, **arguments):
    """Train with a Ctrl-C in the second epoch and go on; then train without one: (resumed, whole)."""
    first = build_trainer(tmp_path / "resumed", dataset=InterruptingDataset(at_epoch=1), **arguments)
    result = first.train()
    assert not result.is_complete
    assert 0 < result.step < first.arguments.steps
    resumed = build_trainer(tmp_path / "resumed", model=build_model(seed=99), **arguments)
    whole = build_trainer(tmp_path / "whole", **arguments)
    assert resumed.train(resume=True).is_complete
    assert whole.train().is_complete
    return resumed, whole


def test_training_lowers_the_loss_and_says_what_it_did(tmp_path):
    trainer = build_trainer(tmp_path, steps=30, save_every=None, log_every=5)
    result = trainer.train()
    records = read_records(tmp_path)
    assert [record["step"] for record in records] == [5, 10, 15, 20, 25, 30]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert {"class", "mask", "dice", "gradient_norm", "learning_rate", "epoch"} <= records[0].keys()
    assert result.is_complete
    assert result.last_checkpoint == tmp_path / "checkpoint-000030"
    assert (tmp_path / "last").resolve() == result.last_checkpoint.resolve()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_checkpoint_is_a_model_that_loads_by_itself(tmp_path):
    from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
    from zsseg.models.concat.processing_concat import ConcatProcessor

    trainer = build_trainer(tmp_path, steps=2)
    trainer.train()
    assert_same_weights(ConcatForPanopticSegmentation.from_pretrained(tmp_path / "last"), trainer.model)
    processor = ConcatProcessor.from_pretrained(tmp_path / "last")
    assert torch.equal(processor.encode_labels(LABELS)["text_embeds"], trainer.context.text_embeds)


def test_ctrl_c_saves_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    resumed, whole = interrupt_and_resume(tmp_path, steps=9, log_every=2)
    assert_same_weights(resumed.model, whole.model)
    assert without_timings(read_records(tmp_path / "resumed")) == without_timings(
        read_records(tmp_path / "whole")
    )


def test_exact_resume_with_gradient_accumulation_and_warmup_stage(tmp_path):
    resumed, whole = interrupt_and_resume(
        tmp_path, stage=WarmupStage(), steps=7, gradient_accumulation_steps=2, warmup_steps=3
    )
    assert_same_weights(resumed.model, whole.model)


def test_the_number_of_loading_processes_changes_nothing(tmp_path):
    trainers = [build_trainer(tmp_path / str(workers), num_workers=workers) for workers in (0, 2)]
    for trainer in trainers:
        trainer.train()
    assert_same_weights(trainers[0].model, trainers[1].model)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_last_bit(tmp_path):
    """SIGKILL in the middle of a Swin run with drop path, which draws from the global generator too."""
    arguments = {"steps": 12, "save_every": 3, "log_every": 1, "num_workers": 1}
    script = Path(sys.modules[build_trainer.__module__].__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [
            sys.executable,
            str(script),
            str(tmp_path / "killed"),
            json.dumps({**arguments, "backbone": "swin", "resume": False}),
        ],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "killed" / "metrics.jsonl"
    try:
        while not (log.exists() and len(log.read_text().splitlines()) >= 7):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    checkpoints = find_checkpoints(tmp_path / "killed")
    assert 0 < max(checkpoints) < 12

    resumed = build_trainer(tmp_path / "killed", model=build_model(99, "swin"), **arguments)
    assert resumed.train(resume=True).is_complete
    whole = build_trainer(tmp_path / "whole", model=build_model(0, "swin"), **arguments)
    whole.train()
    assert_same_weights(resumed.model, whole.model)
    assert without_timings(read_records(tmp_path / "killed")) == without_timings(
        read_records(tmp_path / "whole")
    )


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """The dense loss averages over pixels, and every picture has as many: so the gradients are equal."""
    gradients = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        trainer = build_trainer(
            tmp_path / str(batch_size),
            stage=WarmupStage(),
            steps=1,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            dataset=RectanglesDataset(4),
        )
        trainer.train()
        gradients.append(read_records(tmp_path / str(batch_size))[0])
    assert gradients[0]["gradient_norm"] == pytest.approx(gradients[1]["gradient_norm"], rel=1e-4)
    assert gradients[0]["loss"] == pytest.approx(gradients[1]["loss"], rel=1e-5)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    scores = iter([0.2, 0.7, 0.1, 0.7, 0.3])
    trainer = build_trainer(
        tmp_path,
        steps=5,
        evaluate_every=1,
        save_every=1,
        keep_last_n=1,
        evaluate=lambda model: {"score": next(scores), "other": float("nan")},
    )
    result = trainer.train()
    assert result.best_metric == 0.7
    assert result.best_checkpoint == tmp_path / "checkpoint-000002"
    assert (tmp_path / "best").resolve() == result.best_checkpoint.resolve()
    assert list(find_checkpoints(tmp_path)) == [2, 5]
    evaluations = [record for record in read_records(tmp_path) if record["kind"] == "evaluation"]
    assert [record["score"] for record in evaluations] == [0.2, 0.7, 0.1, 0.7, 0.3]
    assert evaluations[0]["other"] is None


def test_evaluation_sees_a_model_at_rest_and_training_goes_on(tmp_path):
    modes = []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"score": 0.0}

    trainer = build_trainer(tmp_path, steps=2, evaluate_every=1, evaluate=evaluate)
    trainer.train()
    assert modes == [(False, False)] * 2
    assert trainer.model.training
    norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)


def test_an_evaluation_without_the_deciding_number_is_refused(tmp_path):
    trainer = build_trainer(tmp_path, steps=1, evaluate=lambda model: {"PQ": 0.5})
    with pytest.raises(ValueError, match=r"metric_for_best is 'score', .* only \{'PQ': 0.5\}"):
        trainer.train()


def test_evaluate_every_needs_something_to_evaluate(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        build_trainer(tmp_path, evaluate_every=1)


def test_frozen_parameters_do_not_move_and_trained_ones_do(tmp_path):
    trainer = build_trainer(tmp_path, stage=WarmupStage(), steps=2, weight_decay=0.5)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], parameter) == (not parameter.requires_grad), name


def test_a_nan_stops_the_run_and_names_step_and_checkpoint(tmp_path):
    trainer = build_trainer(tmp_path, stage=WarmupStage(), dataset=PoisonedDataset(), steps=20, save_every=2)
    with pytest.raises(
        TrainingDivergedError,
        match=r"stage 'warmup', step 6; last good checkpoint: .*checkpoint-000004: loss nan",
    ):
        trainer.train()
    assert load_state(tmp_path / "last").step == 4


def test_a_nan_found_by_the_matcher_says_where_it_happened(tmp_path):
    trainer = build_trainer(tmp_path, dataset=PoisonedDataset(), steps=20, save_every=None)
    with pytest.raises(ValueError, match="not finite") as caught:
        trainer.train()
    assert "step 6; last good checkpoint: none was saved yet" in caught.value.__notes__[0]


def test_an_infinite_gradient_stops_the_run_before_it_reaches_the_weights(tmp_path):
    class ExplodingStage(WarmupStage):
        def compute_loss(self, model, batch, context):
            losses = super().compute_loss(model, batch, context)
            zero = losses["loss"] - losses["loss"].detach()
            return {"loss": losses["loss"] + torch.sqrt(zero.abs())}

    trainer = build_trainer(tmp_path, stage=ExplodingStage(), steps=3)
    with pytest.raises(TrainingDivergedError, match=r"step 1; .*gradient_norm"):
        trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_stage_without_a_loss_is_refused(tmp_path):
    class LosslessStage(SegmentorStage):
        def compute_loss(self, model, batch, context):
            return {"class": torch.zeros(())}

    with pytest.raises(ValueError, match=r"must return a 'loss', got only \['class'\]"):
        build_trainer(tmp_path, stage=LosslessStage(), steps=1).train()


def test_a_used_folder_is_neither_overwritten_nor_mixed_unasked(tmp_path):
    build_trainer(tmp_path, steps=2).train()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        build_trainer(tmp_path, steps=3).train()
    build_trainer(tmp_path, steps=3, save_every=None).train(overwrite=True)
    assert list(find_checkpoints(tmp_path)) == [3]
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="holds no complete checkpoint to resume"):
        build_trainer(tmp_path / "absent").train(resume=True)


def test_a_finished_run_resumes_to_itself(tmp_path):
    first = build_trainer(tmp_path, steps=2)
    first.train()
    again = build_trainer(tmp_path, steps=2, model=build_model(seed=7))
    assert again.train(resume=True).step == 2
    assert_same_weights(again.model, first.model)


def test_resuming_with_other_arguments_lists_what_differs(tmp_path):
    build_trainer(tmp_path, steps=2).train()
    other = build_trainer(tmp_path, steps=4, learning_rate=0.5, log_every=2, stage=WarmupStage())
    with pytest.raises(CheckpointError) as caught:
        other.train(resume=True)
    message = str(caught.value)
    assert "learning_rate: 0.001 then, 0.5 now" in message
    assert "steps: 2 then, 4 now" in message
    assert 'stage: "segmentor" then, "warmup" now' in message
    assert "log_every" not in message


def test_resuming_with_other_labels_or_vectors_is_refused(tmp_path):
    from zsseg.training.stage import StageContext
    from zsseg.vocabulary import Vocabulary

    build_trainer(tmp_path, steps=2).train()
    other = build_trainer(tmp_path, steps=2)
    context = StageContext(Vocabulary.from_labels(["a", "b", "c"]), torch.ones(3, 8), torch.arange(3))
    other = type(other)(
        model=other.model,
        stage=other.stage,
        context=context,
        dataset=other.dataset,
        collate=other.collate,
        processor=other.processor,
        arguments=other.arguments,
    )
    with pytest.raises(CheckpointError) as caught:
        other.train(resume=True)
    assert 'labels: ["red", "green", "blue"] then, ["a", "b", "c"] now' in str(caught.value)
    assert "text_embeds: other vectors" in str(caught.value)


def test_an_older_checkpoint_resumes_only_where_no_newer_one_lies(tmp_path):
    build_trainer(tmp_path / "run", steps=4).train()
    older = tmp_path / "run" / "checkpoint-000002"
    with pytest.raises(FileExistsError, match=r"later than step 2: \['checkpoint-000004'\]"):
        build_trainer(tmp_path / "run", steps=4).train(resume=older)
    branch = build_trainer(tmp_path / "branch", steps=4)
    assert branch.train(resume=older).is_complete
    assert list(find_checkpoints(tmp_path / "branch")) == [4]


def test_freezing_survives_the_training_mode(tmp_path):
    trainer = build_trainer(tmp_path, steps=1)
    freeze_batch_norm(trainer.model)
    statistics = {n: b.clone() for n, b in trainer.model.named_buffers() if "running" in n}
    assert statistics
    trainer.train()
    for name, buffer in trainer.model.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, statistics[name]), name


@pytest.fixture
def _fresh_accelerator():
    """Accelerate fixes the precision once per process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_fresh_accelerator")
def test_bf16_autocast_trains_and_keeps_float32_weights(tmp_path):
    dtypes = set()

    class WatchingStage(SegmentorStage):
        def compute_loss(self, model, batch, context):
            dtypes.add(model.semantic_projector(torch.ones(1, 32)).dtype)
            return super().compute_loss(model, batch, context)

    trainer = build_trainer(tmp_path, stage=WatchingStage(), steps=3, mixed_precision="bf16")
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert len(read_records(tmp_path)) == 3


class SteepStage(WarmupStage):
    """Beside the loss a term of value 0 with a gradient of ``slope``, or NaN."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def compute_loss(self, model, batch, context):
        losses = super().compute_loss(model, batch, context)
        zero = model.semantic_projector[0].bias[0] - model.semantic_projector[0].bias[0].detach()
        term = torch.sqrt(zero.abs()) if math.isnan(self.slope) else zero * self.slope
        return {**losses, "loss": losses["loss"] + term}


def build_scaled_trainer(tmp_path, slope, scale):
    """As fp16 trains, with its loss scaler; accelerate's autocast to fp16 needs a GPU."""
    trainer = build_trainer(tmp_path, stage=SteepStage(slope), steps=20, save_every=None, log_every=100)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


def test_the_loss_scaler_skips_steps_that_overflow_and_training_goes_on(tmp_path):
    # float32 ends at 2^128: 2^120 · 2^10 overflows, and is halved until it is 2^127.
    trainer = build_scaled_trainer(tmp_path, 2.0**10, 2.0**120)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert trainer.train().is_complete
    assert 2.0**105 < trainer.accelerator.scaler.get_scale() <= 2.0**117
    assert not all(torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_gradient_that_no_scale_makes_finite_stops_the_run(tmp_path):
    trainer = build_scaled_trainer(tmp_path, math.nan, 2.0**5)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(TrainingDivergedError, match=r"step 6; .*gradient_norm nan"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.named_parameters())


def test_signals_outside_the_main_thread_are_left_alone(tmp_path):
    results = []
    trainer = build_trainer(tmp_path, steps=1)
    thread = threading.Thread(target=lambda: results.append(trainer.train()))
    thread.start()
    thread.join()
    assert results[0].is_complete
