import json

import pytest

from zsseg.cli.messages import UsageError
from zsseg.cli.stage_arguments import build_stage_arguments
from zsseg.cli.training_run import STAGES, build_concat_arguments

DEFAULTS = {
    "segmentor": {},
    "generator": {"steps": 30, "learning_rate": 5e-4, "warmup_steps": 20},
}


def build(tmp_path, from_file, defaults=DEFAULTS, **from_options):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps(from_file))
    return build_stage_arguments(
        tmp_path,
        defaults,
        arguments=path,
        from_options=from_options,
        sections=STAGES,
        evaluated=("segmentor",),
    )


def test_the_command_line_wins_over_the_file_and_a_section_over_the_rest_of_it(tmp_path):
    from_file = {"steps": 9, "batch_size": 3, "seed": 5, "segmentor": {"batch_size": 4}, "log_every": 7}
    stages = build(
        tmp_path, from_file, {"warmup": {"batch_size": 2}, "segmentor": {}}, steps=7, evaluate_every=2
    )
    assert {name: (a.steps, a.batch_size, a.evaluate_every) for name, a in stages.items()} == {
        "warmup": (7, 3, None),
        "segmentor": (7, 4, 2),
    }
    assert stages["warmup"].output_dir == tmp_path / "warmup"
    assert {stage.log_every for stage in stages.values()} == {7}


def test_stages_on_queries_share_nothing_but_seed_and_precision_with_those_on_pictures(tmp_path):
    from_file = {"steps": 9, "learning_rate": 5.0, "seed": 5, "generator": {"batch_size": 4}}
    stages = build(tmp_path, from_file, batch_size=2, mixed_precision="bf16")
    generator = stages["generator"]
    assert (generator.steps, generator.learning_rate, generator.batch_size) == (30, 5e-4, 4)
    assert (generator.seed, generator.mixed_precision) == (5, "bf16")
    assert (stages["segmentor"].learning_rate, stages["segmentor"].batch_size) == (5.0, 2)


def test_a_stage_by_itself_takes_everything(tmp_path):
    (generator,) = build(
        tmp_path, {"learning_rate": 5.0}, {"generator": DEFAULTS["generator"]}, steps=4
    ).values()
    assert (generator.steps, generator.learning_rate) == (4, 5.0)
    # The recipe's 20 steps of rising rate do not fit into 4.
    assert generator.warmup_steps == 3


def test_a_warm_up_that_is_asked_for_must_fit(tmp_path):
    with pytest.raises(ValueError, match="warmup_steps must be fewer"):
        build(tmp_path, {"steps": 9, "generator": {"steps": 4, "warmup_steps": 4}})


@pytest.mark.parametrize(
    ("from_file", "message"),
    [
        ({"step": 1}, "unknown training arguments"),
        ({"deepened": {"steps": 1}}, "unknown training arguments"),
        ({"steps": "many"}, "steps must be an integer"),
        ({"output_dir": "x"}, "output_dir"),
        ({"union": {"output_dir": "x"}}, "output_dir"),
        ({"generator": 3}, "'generator' must hold training arguments"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, from_file, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, {"steps": 1, **from_file})


def test_steps_on_pictures_must_be_said(tmp_path):
    with pytest.raises(UsageError, match="'segmentor'"):
        build(tmp_path, {"generator": {"steps": 1}}, batch_size=1)


def test_evaluation_needs_data(tmp_path):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({"steps": 9, "evaluate_every": 3}))
    names = ("warmup", "segmentor", "generator", "union")
    with pytest.raises(UsageError, match="evaluate_every, which needs --val"):
        build_concat_arguments(tmp_path, names, None, arguments=path, from_options={})
    stages = build_concat_arguments(tmp_path, names[:1], None, arguments=path, from_options={})
    assert stages["warmup"].evaluate_every is None
