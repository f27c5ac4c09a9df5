import json
import math

import pytest

from zsseg.training.arguments import RESUME_MAY_CHANGE, TrainerArguments


def test_json_round_trip_keeps_every_value(tmp_path):
    arguments = TrainerArguments(
        output_dir=tmp_path / "run",
        steps=7,
        milestones=(0.25, 0.5),
        max_grad_norm=None,
        schedule="polynomial",
        adam_betas=(0.5, 0.75),
        mixed_precision="bf16",
        evaluate_every=3,
    )
    arguments.save_json(tmp_path / "arguments.json")
    assert TrainerArguments.load_json(tmp_path / "arguments.json") == arguments


def test_resume_may_change_names_real_arguments(tmp_path):
    assert TrainerArguments(output_dir=tmp_path, steps=1).to_dict().keys() >= RESUME_MAY_CHANGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -2}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and positive"),
        ({"learning_rate": math.nan}, "learning_rate must be finite"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and 0 or more"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and positive"),
        ({"schedule": "linear"}, "schedule must be one of .*'polynomial'.*got 'linear'"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"adam_betas": (0.9,)}, "adam_betas must be two numbers"),
        ({"adam_betas": (-0.1, 0.9)}, "adam_betas must be finite and 0 or more"),
        ({"mixed_precision": "int8"}, "mixed_precision must be one of"),
        ({"warmup_steps": 10}, "warmup_steps must be fewer than the stage's 10 steps"),
        ({"milestones": (0.9, 0.5)}, "milestones must be rising fractions"),
        ({"milestones": (5000.0,)}, "milestones must be rising fractions"),
        ({"metric_for_best": ""}, "metric_for_best must name a key"),
    ],
)
def test_out_of_range_values_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainerArguments(**{"output_dir": tmp_path, "steps": 10, **changes})


@pytest.mark.parametrize("changes", [{"steps": 1.5}, {"steps": True}, {"learning_rate": "1e-4"}])
def test_wrong_types_are_refused(tmp_path, changes):
    with pytest.raises(TypeError, match="must be a"):
        TrainerArguments(**{"output_dir": tmp_path, "steps": 10, **changes})


def test_a_typo_in_a_file_is_named(tmp_path):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({"output_dir": "x", "steps": 3, "learning_rte": 0.1}))
    with pytest.raises(ValueError, match="unknown training arguments \\['learning_rte'\\]"):
        TrainerArguments.load_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ('{"steps": 3}', "lack \\['output_dir'\\]"),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, message):
    path = tmp_path / "arguments.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        TrainerArguments.load_json(path)
