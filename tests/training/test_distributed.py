"""Two processes (gloo, on a CPU), data parallel or sharded, against one with the same global batch."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from testing.distributed_runs import SCAN_STAGES, STAGES, run_job
from testing.tiny_concat_run import read_records
from testing.two_processes import run_in_two_processes
from zsseg.training.checkpointing import find_checkpoints, load_state

pytestmark = pytest.mark.slow

RUN_JOBS = """
from testing.distributed_runs import main
main(*sys.argv[2:])
"""
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
WHOLE_BATCH = {"batch_size": 4}
HALF_BATCH = {"batch_size": 2}
EVALUATED = {
    "generator": {"evaluate_every": 1},
    "long": {"evaluate_every": 2},
}
NO_RESULTS = {"kind", "seconds_per_step", "data_wait_fraction"}


def run_jobs(folder, jobs, environment=None):
    """What both processes say of each job, by the name of its folder; a resumed run is another job."""
    lines = run_in_two_processes(RUN_JOBS, folder, folder, json.dumps(jobs), environment=environment)
    names = [job["folder"] + "-again" * job.get("resume", False) for job in jobs]
    return {name: pair for name, *pair in zip(names, *map(json.loads, lines), strict=True)}


def assert_equal_runs(folder, other):
    """Every logged number and the weights at the end, up to a thousand roundings of float32."""
    tolerance = 1000 * torch.finfo(torch.float32).eps
    for record, expected in zip(read_records(folder), read_records(other), strict=True):
        numbers = {name: value for name, value in expected.items() if name not in NO_RESULTS}
        assert {name: record[name] for name in numbers} == pytest.approx(numbers, rel=tolerance, abs=1e-6)
    weights, expected = (load_file(path / "last" / "model.safetensors") for path in (folder, other))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: every stage with the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    for name in STAGES:
        assert run_job(name, folder / name, **WHOLE_BATCH, **EVALUATED.get(name, {}))["is_complete"]
    assert run_job("segmentor", folder / "long", steps=6, **WHOLE_BATCH, **EVALUATED["long"])["is_complete"]
    assert run_job("segmentor", folder / "accumulated", gradient_accumulation_steps=2)["is_complete"]
    return folder


def stop_alone(folder):
    """One process: a long run that is stopped half-way."""
    stopped = run_job(
        "segmentor", folder, steps=6, spoil=("SIGINT", 3, 0), **WHOLE_BATCH, **EVALUATED["long"]
    )
    assert stopped["step"] == 3


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes, data parallel: the folder, and what they said of each job by its folder's name."""
    folder = tmp_path_factory.mktemp("together")
    stop_alone(folder / "from-one")
    long = {"name": "segmentor", "steps": 6, **HALF_BATCH, **EVALUATED["long"]}
    stream = {"name": "segmentor", "steps": 8, "streamed": True, **HALF_BATCH}
    return folder, run_jobs(
        folder,
        [
            *({"name": name, "folder": name, **HALF_BATCH, **EVALUATED.get(name, {})} for name in STAGES),
            {"name": "segmentor", "folder": "accumulated", "gradient_accumulation_steps": 2, **HALF_BATCH},
            {**long, "folder": "long"},
            {**long, "folder": "resumed", "spoil": ("SIGUSR1", 3, 1)},
            {**long, "folder": "resumed", "resume": True},
            {**long, "folder": "to-one", "spoil": ("SIGTERM", 3, 1)},
            {**long, "folder": "from-one", "resume": True, "batch_size": 4},
            {**long, "folder": "nan", "spoil": ("nan", 4, 1)},
            {**long, "folder": "nan-warmup", "name": "warmup", "spoil": ("nan", 4, 1)},
            {**long, "folder": "full", "spoil": ("full disk", 3, 0)},
            {**stream, "folder": "stream", "num_workers": 1},
            {**stream, "folder": "stream-resumed", "spoil": ("SIGTERM", 3, 1)},
            {**stream, "folder": "stream-resumed", "resume": True},
        ],
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The same with the weights sharded by FSDP2."""
    folder = tmp_path_factory.mktemp("sharded")
    stop_alone(folder / "from-one")
    long = {"name": "segmentor", "steps": 6, **HALF_BATCH, **EVALUATED["long"]}
    adamw = {**long, "optimizer": "adamw", "learning_rate": 1e-3}
    return folder, run_jobs(
        folder,
        [
            {"name": "union", "folder": "version", "environment": {"FSDP_VERSION": "1"}},
            {
                "name": "union",
                "folder": "loading",
                "environment": {"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            },
            {
                "name": "union",
                "folder": "union",
                "environment": {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"},
                **HALF_BATCH,
            },
            *({"name": name, "folder": name, **HALF_BATCH} for name in SCAN_STAGES),
            {**long, "folder": "long"},
            {**long, "folder": "to-one", "spoil": ("SIGTERM", 3, 1)},
            {**long, "folder": "from-one", "resume": True},
            {**adamw, "folder": "adamw"},
            {**adamw, "folder": "adamw-resumed", "spoil": ("SIGTERM", 3, 0)},
            {**adamw, "folder": "adamw-resumed", "resume": True},
        ],
        SHARDED,
    )


@pytest.mark.parametrize("name", [*STAGES, "accumulated", "long"])
def test_two_processes_learn_what_one_learns_from_both_batches(alone, together, name):
    folder, said = together
    assert said[name][0] == said[name][1]
    assert_equal_runs(folder / name, alone / name)


@pytest.mark.parametrize("name", ["union", *SCAN_STAGES, "long"])
def test_sharded_weights_learn_and_are_evaluated_and_saved_the_same(alone, sharded, name):
    folder, said = sharded
    assert said[name][0] == said[name][1]
    assert_equal_runs(folder / name, alone / name)


def test_ways_of_sharding_that_do_not_work_are_refused(sharded):
    _, said = sharded
    assert said["version"][0]["error"].startswith(
        "ValueError: expected FSDP version 2, accelerate was told 1"
    )
    assert "set fsdp_cpu_ram_efficient_loading: false" in said["loading"][1]["error"]


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_resuming_is_exact(together):
    _, said = together
    assert [(ended["step"], ended["is_complete"]) for ended in said["resumed"]] == [(3, False)] * 2
    assert said["resumed-again"][0]["weights"] == said["long"][0]["weights"]
    assert said["resumed-again"][0]["notes"] == []


def test_sharded_runs_resume_exactly(sharded):
    _, said = sharded
    assert [(ended["step"], ended["is_complete"]) for ended in said["adamw-resumed"]] == [(3, False)] * 2
    assert said["adamw-resumed-again"][0]["weights"] == said["adamw"][0]["weights"]


@pytest.mark.parametrize("runs", ["together", "sharded"])
@pytest.mark.parametrize("given", [WHOLE_BATCH, HALF_BATCH])
def test_one_process_goes_on_where_two_stopped(alone, request, tmp_path, runs, given):
    folder, said = request.getfixturevalue(runs)
    assert said["to-one"][1]["step"] == 3
    shutil.copytree(folder / "to-one", tmp_path / "run", symlinks=True)
    ended = run_job("segmentor", tmp_path / "run", resume=True, steps=6, **given, **EVALUATED["long"])
    assert ended["is_complete"]
    assert ended["notes"][0].startswith("resumed on 1 process(es), begun on 2")
    if given == WHOLE_BATCH:
        assert_equal_runs(tmp_path / "run", alone / "long")
    else:
        # As large as before in two halves, each with points of its own.
        assert "batch_size 2 × gradient_accumulation_steps 2, so that a step sees 4" in ended["notes"][1]
        steps = [record["step"] for record in read_records(tmp_path / "run")]
        assert steps == [record["step"] for record in read_records(alone / "long")]


@pytest.mark.parametrize("runs", ["together", "sharded"])
def test_two_processes_go_on_where_one_stopped(alone, request, runs):
    folder, said = request.getfixturevalue(runs)
    (first, second) = said["from-one-again"]
    assert first == second
    assert first["notes"][0].startswith("resumed on 2 process(es), begun on 1")
    assert_equal_runs(folder / "from-one", alone / "long")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nan", "matching costs of image 0 .* are not finite"), ("nan-warmup", "diverged .* loss nan")],
)
def test_a_nan_in_one_process_stops_both_and_the_last_checkpoint_loads(together, tmp_path, name, reason):
    folder, said = together
    for ended in said[name]:
        assert f"step 4; last good checkpoint: {folder / name / 'checkpoint-000002'}" in ended["error"]
    assert re.search(reason, said[name][1]["error"])
    shutil.copytree(folder / name, tmp_path / "run", symlinks=True)
    stage = "warmup" if name == "nan-warmup" else "segmentor"
    ended = run_job(stage, tmp_path / "run", resume=True, steps=6, **WHOLE_BATCH, **EVALUATED["long"])
    assert ended["step"] == 6


def test_a_failed_save_stops_both_processes_and_leaves_earlier_checkpoints(together):
    folder, said = together
    failed, other = (ended["error"] for ended in said["full"])
    assert re.match(r"CheckpointError: .*checkpoint-000004 could not be written \(.*File too large", failed)
    assert "Complete checkpoints are untouched: ['checkpoint-000002']" in failed
    assert other.startswith("OtherProcessError: process 0 failed, so this one stops too: CheckpointError")
    assert list(find_checkpoints(folder / "full")) == [2]
    assert load_state(folder / "full" / "last").step == 2
    assert not list((folder / "full").glob(".incomplete*"))


def test_a_stream_of_unequal_parts_never_ends_and_resumes_exactly(together):
    folder, said = together
    # Eleven and five examples: the second process is in its fourth epoch when the first is in its second.
    assert said["stream"][0]["is_complete"]
    assert read_records(folder / "stream")[-1]["epoch"] == 1
    assert not said["stream-resumed"][0]["is_complete"]
    assert said["stream-resumed-again"][0]["weights"] == said["stream"][0]["weights"]
