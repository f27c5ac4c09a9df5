import json
import shutil

import pytest
import torch
from transformers.utils import logging as transformers_logging

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
    load_state,
    remove_temporary,
)
from zsseg.training.optimization import build_optimizer, prepare_trainable
from zsseg.training.recipes.concat_segmentor import SegmentorStage, WarmupStage


@pytest.fixture(scope="module")
def model():
    return build_model()


def build_stage_optimizer(model, stage, tmp_path):
    arguments = TrainerArguments(output_dir=tmp_path, steps=1)
    prepare_trainable(model, stage, arguments)
    return build_optimizer(model, stage, arguments)


def save(folder, model, state, *, keep_last_n=2, optimizer=None, setup=None):
    folder.mkdir(exist_ok=True)
    writer = CheckpointWriter(folder, setup or {"steps": 9}, torch.ones(2, 3), keep_last_n)
    optimizer = optimizer or torch.optim.AdamW([{"params": list(model.parameters()), "names": ["all"]}])
    writer.begin(state)
    writer.write_rng_states(state, 0, model)
    writer.write(state, model, build_processor(), optimizer, None, {})
    return writer


def test_a_checkpoint_counts_only_once_it_is_committed(tmp_path, model):
    state = TrainerState(step=3, epoch=1, position=2, window_sums={"loss": 0.1}, window_count=4)
    writer = save(tmp_path, model, state)
    assert find_checkpoints(tmp_path) == {}
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_last_checkpoint(tmp_path)
    assert writer.commit(state) == find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    assert load_state(tmp_path / "last") == state


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path, model):
    complete = TrainerState(step=1)
    save(tmp_path, model, complete).commit(complete)
    save(tmp_path, model, TrainerState(step=2))
    (tmp_path / ".dropped-checkpoint-000000").mkdir()
    (tmp_path / ".link-last").symlink_to("checkpoint-000001")
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "last"]


def test_old_checkpoints_go_and_the_best_stays(tmp_path, model):
    state = TrainerState()
    for step in range(1, 6):
        state.step = step
        if step == 2:
            state.best_metric, state.best_step = 0.5, 2
        save(tmp_path, model, state, keep_last_n=2).commit(state)
    assert list(find_checkpoints(tmp_path)) == [2, 4, 5]
    assert (tmp_path / "best").readlink().name == "checkpoint-000002"
    assert (tmp_path / "last").readlink().name == "checkpoint-000005"


def test_the_same_step_can_be_saved_again(tmp_path, model):
    for position in (1, 2):
        state = TrainerState(step=1, position=position)
        save(tmp_path, model, state).commit(state)
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
    checkpoint = save(tmp_path, model, state, setup=setup).commit(state)
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
    checkpoint = save(tmp_path, saved, state).commit(state)
    load_model_weights(checkpoint, other)
    expected = saved.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_left_over_weights_are_refused(tmp_path, model):
    from safetensors.torch import load_file, save_file

    state = TrainerState(step=1)
    checkpoint = save(tmp_path, model, state).commit(state)
    path = checkpoint / "model.safetensors"
    save_file({**load_file(path), "stray.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"does not hold exactly .* unexpected_keys \['stray.weight'\]"):
        load_model_weights(checkpoint, build_model())


def test_an_optimizer_of_other_parameters_is_refused(tmp_path, model):
    state = TrainerState(step=1)
    optimizer = build_stage_optimizer(model, WarmupStage(), tmp_path)
    checkpoint = save(tmp_path, model, state, optimizer=optimizer).commit(state)
    load_optimizer(checkpoint, build_stage_optimizer(model, WarmupStage(), tmp_path), None)
    with pytest.raises(CheckpointError, match=r"trained only then or only now: \['no_object_embedding'"):
        load_optimizer(checkpoint, build_stage_optimizer(model, SegmentorStage(), tmp_path), None)


def test_a_loss_scaler_is_saved_and_restored(tmp_path, model):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    state = TrainerState(step=1)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "names": ["all"]}])
    writer = CheckpointWriter(tmp_path, {}, torch.ones(1, 1), 1)
    writer.begin(state)
    writer.write(state, model, build_processor(), optimizer, scaler, {})
    checkpoint = writer.commit(state)
    restored = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_optimizer(checkpoint, optimizer, restored)
    assert restored.get_scale() == 8.0


def test_a_model_folder_is_no_run(tmp_path, model):
    model.save_pretrained(tmp_path / "checkpoint-000001")
    with pytest.raises(CheckpointError, match=r"trainer_state.json does not exist, so there is no run"):
        load_state(tmp_path / "checkpoint-000001")


def test_overwriting_deletes_the_run_and_keeps_other_files(tmp_path, model):
    state = TrainerState(step=1, best_step=1, best_metric=1.0)
    save(tmp_path, model, state).commit(state)
    save(tmp_path, model, TrainerState(step=2))
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
