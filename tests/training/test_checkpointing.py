import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from testing.distributed_runs import limit_file_size
from testing.tiny_concat_run import build_model, build_processor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import (
    CheckpointError,
    CheckpointWriter,
    TrainerState,
    check_setup,
    claim_output_dir,
    find_checkpoints,
    find_last_checkpoint,
    load_model_weights,
    load_optimizer,
    load_process_states,
    load_state,
    remove_temporary,
)
from zsseg.training.optimization import build_optimizer, prepare_trainable
from zsseg.training.random_state import capture_rng_states
from zsseg.training.recipes.concat_segmentor import SegmentorStage, WarmupStage

FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree"}


@pytest.fixture(scope="module")
def model():
    return build_model()


def build_stage_optimizer(model, stage, tmp_path):
    arguments = TrainerArguments(output_dir=tmp_path, steps=1)
    prepare_trainable(model, stage, arguments)
    return build_optimizer(model, stage, arguments)


def save(folder, model, state, *, keep_last_n=2, optimizer=None, setup=None, scaler=None):
    folder.mkdir(exist_ok=True)
    writer = CheckpointWriter(folder, setup or {"steps": 9}, torch.ones(2, 3), keep_last_n)
    optimizer = optimizer or torch.optim.AdamW([{"params": list(model.parameters()), "names": ["all"]}])
    return writer.save(
        state,
        model=model,
        processor=build_processor(),
        optimizer_state=optimizer.state_dict(),
        scaler=scaler,
        stage_state={},
        process_states=[{"rng": capture_rng_states(model), "stream": None}],
    )


class FailingProcessor:
    """Stands for whatever fails, or is killed, when the weights are already written."""

    def save_pretrained(self, save_directory):
        raise KeyboardInterrupt


def leave_half_written(folder, model, state):
    writer = CheckpointWriter(folder, {}, None, 1)
    parts = {"optimizer_state": {}, "scaler": None, "stage_state": {}, "process_states": []}
    with pytest.raises(KeyboardInterrupt):
        writer.save(state, model=model, processor=FailingProcessor(), **parts)


def test_a_checkpoint_counts_only_once_it_is_complete(tmp_path, model):
    state = TrainerState(step=3, epoch=1, position=2, window_sums={"loss": 0.1}, window_count=4)
    leave_half_written(tmp_path, model, state)
    assert (tmp_path / ".incomplete-checkpoint-000003" / "model.safetensors").is_file()
    assert find_checkpoints(tmp_path) == {}
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_last_checkpoint(tmp_path)
    checkpoint = save(tmp_path, model, state)
    assert checkpoint == find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    assert load_state(tmp_path / "last") == state


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path, model):
    save(tmp_path, model, TrainerState(step=1))
    leave_half_written(tmp_path, model, TrainerState(step=2))
    (tmp_path / ".dropped-checkpoint-000000").mkdir()
    (tmp_path / ".link-last").symlink_to("checkpoint-000001")
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last"]


@pytest.mark.parametrize("largest_file", [1_000, 10_000, 100_000, 300_000])
def test_a_failed_save_says_why_and_leaves_the_earlier_checkpoint_alone(tmp_path, model, largest_file):
    """A file that may not grow fails as on a full disk: in JSON, in safetensors, in the optimizer's state."""
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "names": ["all"]}])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    save(tmp_path, model, TrainerState(step=1), optimizer=optimizer)
    limit_file_size(largest_file)
    try:
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, model, TrainerState(step=2), optimizer=optimizer)
    finally:
        limit_file_size(resource.RLIM_INFINITY)
    message = str(caught.value)
    assert f"{tmp_path / 'checkpoint-000002'} could not be written" in message
    assert re.search(r"it needs about 0\.[5-9] MiB, and [\d,.]+ MiB are free on its disk", message)
    assert "Complete checkpoints are untouched: ['checkpoint-000001']" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last"]
    load_model_weights(tmp_path / "last", build_model(1))
    load_optimizer(tmp_path / "last", optimizer, None)
    save(tmp_path, model, TrainerState(step=2), optimizer=optimizer)
    assert list(find_checkpoints(tmp_path)) == [1, 2]


def save_and_die(folder, model, state, at_operation):
    """Save in a process that kills itself before so many operations on files; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        operations = 0

        def count(event, _):
            nonlocal operations
            if event in FILE_OPERATIONS:
                operations += 1
                if operations == at_operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(folder, model, state, keep_last_n=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_a_kill_at_any_moment_of_saving_leaves_a_checkpoint_that_loads(tmp_path, model):
    save(tmp_path, model, TrainerState(step=1), keep_last_n=1)
    expected, step, found = model.state_dict(), 1, set()
    for at_operation in itertools.count(1):
        is_complete = save_and_die(tmp_path, model, TrainerState(step=step + 1), at_operation)
        checkpoints = find_checkpoints(tmp_path)
        # An older one may not yet be gone.
        assert max(checkpoints) in (step, step + 1)
        found.add(max(checkpoints) - step)
        # The link never points to nothing, though perhaps to the one before the newest.
        assert load_state(tmp_path / "last").step in checkpoints
        for checkpoint in checkpoints.values():
            assert f"checkpoint-{load_state(checkpoint).step:06d}" == checkpoint.name
            assert len(load_process_states(checkpoint)) == 1
            weights = load_file(checkpoint / "model.safetensors")
            assert all(torch.equal(value, expected[name]) for name, value in weights.items())
        # What resuming does first.
        remove_temporary(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} - {"last"} == {p.name for p in checkpoints.values()}
        step = max(checkpoints)
        if is_complete:
            break
    assert found == {0, 1}
    assert at_operation > 20
    assert load_state(tmp_path / "last").step == step


def test_a_checkpoint_of_an_earlier_version_says_so(tmp_path, model):
    checkpoint = save(tmp_path, model, TrainerState(step=1))
    (checkpoint / "trainer" / "processes.pt").unlink()
    with pytest.raises(CheckpointError, match="was written by an earlier version"):
        load_state(checkpoint)


def test_old_checkpoints_go_and_the_best_stays(tmp_path, model):
    state = TrainerState()
    for step in range(1, 6):
        state.step = step
        if step == 2:
            state.best_metric, state.best_step = 0.5, 2
        save(tmp_path, model, state, keep_last_n=2)
    assert list(find_checkpoints(tmp_path)) == [2, 4, 5]
    assert (tmp_path / "best").readlink().name == "checkpoint-000002"
    assert (tmp_path / "last").readlink().name == "checkpoint-000005"


def test_the_same_step_can_be_saved_again(tmp_path, model):
    for position in (1, 2):
        state = TrainerState(step=1, position=position)
        save(tmp_path, model, state)
    assert load_state(tmp_path / "last").position == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last"]


def test_progress_bars_of_transformers_are_left_as_they_were(tmp_path, model):
    transformers_logging.disable_progress_bar()
    try:
        save(tmp_path, model, TrainerState(step=1))
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()
    save(tmp_path, model, TrainerState(step=1))
    assert transformers_logging.is_progress_bar_enabled()


def test_differences_of_setup_are_listed_and_allowed_ones_are_not(tmp_path, model):
    state = TrainerState(step=1)
    setup = {"steps": 9, "batch_size": 2, "log_every": 1}
    checkpoint = save(tmp_path, model, state, setup=setup)
    embeds = torch.ones(2, 3)
    check_setup(checkpoint, {"steps": 9, "batch_size": 2, "log_every": 5}, embeds, frozenset({"log_every"}))
    check_setup(checkpoint, setup, embeds + 1e-5, frozenset())
    with pytest.raises(CheckpointError) as caught:
        check_setup(checkpoint, {"steps": 9, "batch_size": 4}, embeds, frozenset())
    assert "batch_size: 2 then, 4 now\n  log_every: 1 then, null now" in str(caught.value)
    assert "steps" not in str(caught.value)
    with pytest.raises(CheckpointError, match="text_embeds: other vectors"):
        check_setup(checkpoint, setup, embeds * 2, frozenset())


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_all_weights_come_back_converted_backbones_included(tmp_path, backbone):
    saved, other = build_model(0, backbone), build_model(1, backbone)
    state = TrainerState(step=1)
    checkpoint = save(tmp_path, saved, state)
    load_model_weights(checkpoint, other)
    expected = saved.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_left_over_weights_are_refused(tmp_path, model):
    state = TrainerState(step=1)
    checkpoint = save(tmp_path, model, state)
    path = checkpoint / "model.safetensors"
    save_file({**load_file(path), "stray.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not hold exactly .* unexpected_keys \['stray.weight'\]"):
        load_model_weights(checkpoint, build_model())


def test_an_optimizer_of_other_parameters_is_refused(tmp_path, model):
    state = TrainerState(step=1)
    optimizer = build_stage_optimizer(model, WarmupStage(), tmp_path)
    checkpoint = save(tmp_path, model, state, optimizer=optimizer)
    load_optimizer(checkpoint, build_stage_optimizer(model, WarmupStage(), tmp_path), None)
    with pytest.raises(CheckpointError, match=r"trained only then or only now: \['no_object_embedding'"):
        load_optimizer(checkpoint, build_stage_optimizer(model, SegmentorStage(), tmp_path), None)


def test_a_loss_scaler_is_saved_and_restored(tmp_path, model):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "names": ["all"]}])
    checkpoint = save(tmp_path, model, TrainerState(step=1), optimizer=optimizer, scaler=scaler)
    restored = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_optimizer(checkpoint, optimizer, restored)
    assert restored.get_scale() == 8.0


def test_a_model_folder_is_no_run(tmp_path, model):
    model.save_pretrained(tmp_path / "checkpoint-000001")
    with pytest.raises(CheckpointError, match=r"trainer_state.json does not exist, so there is no run"):
        load_state(tmp_path / "checkpoint-000001")


def test_overwriting_deletes_the_run_and_keeps_other_files(tmp_path, model):
    state = TrainerState(step=1, best_step=1, best_metric=1.0)
    save(tmp_path, model, state)
    leave_half_written(tmp_path, model, TrainerState(step=2))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}))
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="resume its run, allow overwriting"):
        claim_output_dir(tmp_path, overwrite=False)
    claim_output_dir(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    shutil.rmtree(tmp_path)
    claim_output_dir(tmp_path / "a" / "b", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()
