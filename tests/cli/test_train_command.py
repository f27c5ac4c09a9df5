import json
import signal

import pytest
import torch
from transformers import pipeline

from testing.tiny_models import build_picture
from testing.tiny_semantic_maps import write_semantic_maps
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.cli.ground_truth import LabelSetup
from zsseg.cli.messages import UsageError
from zsseg.cli.training_run import TrainingRun, build_stage_arguments
from zsseg.data.semantic_maps import SemanticMapDataset

SMALL = ("--size", 64, 64, "--batch-size", 2, "--num-workers", 0)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return write_semantic_maps(tmp_path_factory.mktemp("training") / "maps")


def load_weights(folder):
    return ConcatForPanopticSegmentation.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_all_stages_end_in_a_checkpoint_that_the_pipeline_loads(run, maps, concat_checkpoint, tmp_path):
    output = tmp_path / "run"
    arguments = tmp_path / "arguments.json"
    content = {"log_every": 1, "learning_rate": 5.0, "warmup": {"steps": 3}, "segmentor": {"steps": 2}}
    arguments.write_text(json.dumps(content))
    outcome = run(
        *("train", "concat", "--data", maps, "--val", maps, "-m", concat_checkpoint, "-o", output, *SMALL),
        *("--arguments", arguments, "--learning-rate", 1e-4, "--unseen-policy", "ignore_pixels"),
    )
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert "6 images · 3 labels (2 seen, 1 unseen), clean names · unseen: ignore_pixels" in lines
    assert f"warmup 3 steps, segmentor 2 steps → {output}" in lines
    assert f"wrote {output / 'checkpoint'}" in lines
    assert "best by mIoU_seen: " in lines[-1]
    records = [json.loads(line) for line in (output / "warmup" / "metrics.jsonl").read_text().splitlines()]
    assert {record["learning_rate"] for record in records} <= {1e-4, 1e-5, 1e-6}
    before, after = load_weights(concat_checkpoint), load_weights(output / "checkpoint")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"segmentor", "semantic_projector", "no_object_embedding"}
    last = load_weights(output / "segmentor" / "last")
    assert all(torch.equal(after[name], last[name]) for name in after)
    segment = pipeline("zero-shot-semantic-segmentation", model=str(output / "checkpoint"))
    assert segment(build_picture(40, 40), candidate_labels=["red", "violet"])


def test_images_with_unseen_labels_are_dropped_by_default(run, maps, concat_checkpoint, tmp_path):
    outcome = run(
        *("train", "concat", "--stage", "warmup", "--data", maps, "-m", concat_checkpoint, *SMALL),
        *("-o", tmp_path / "run", "--steps", 1),
    )
    assert outcome.code == 0
    assert "kept 3 of 6 pictures: 3 hold an unseen segment" in outcome.stderr
    assert not (tmp_path / "run" / "segmentor").exists()


def test_a_mask2former_and_a_clip_are_enough_to_start(
    run, maps, mask2former_checkpoint, clip_checkpoint, tmp_path
):
    outcome = run(
        *("train", "concat", "--stage", "warmup", "--data", maps, "--steps", 1, *SMALL, "--unseen", "red"),
        *("--mask2former", mask2former_checkpoint, "--clip", clip_checkpoint, "-o", tmp_path / "run"),
    )
    assert outcome.code == 0
    checkpoint = tmp_path / "run" / "checkpoint"
    assert ConcatForPanopticSegmentation.from_pretrained(checkpoint).text_model is not None
    assert list(ConcatProcessor.from_pretrained(checkpoint).image_processor.image_mean) == [0.4] * 3


class InterruptedDataset(SemanticMapDataset):
    """Ctrl-C comes while a picture is read."""

    readings = 0

    def __getitem__(self, index):
        self.readings += 1
        if self.readings == 2:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


def test_an_interrupted_run_ends_with_resume_as_if_nothing_had_happened(maps, concat_checkpoint, tmp_path):
    def train(output, dataset_class, *, resume):
        options = {"steps": 3, "batch_size": 1, "num_workers": 0}
        run = TrainingRun(
            stages=build_stage_arguments(output, "warmup", None, from_file={}, from_options=options),
            dataset=dataset_class(maps),
            validation=None,
            labels=LabelSetup(),
            output=output,
        )
        run.load(model=str(concat_checkpoint), mask2former=None, clip=None)
        return run.train(
            size=(64, 64),
            min_scale=0.5,
            max_scale=1.5,
            unseen_policy="ignore_pixels",
            resume=resume,
            overwrite=False,
        )

    assert train(tmp_path / "whole", SemanticMapDataset, resume=False)
    assert not train(tmp_path / "parts", InterruptedDataset, resume=False)
    assert not (tmp_path / "parts" / "checkpoint").exists()
    assert train(tmp_path / "parts", SemanticMapDataset, resume=True)
    whole, parts = (load_weights(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_in_the_way_is_kept(run, maps, concat_checkpoint, tmp_path):
    output = tmp_path / "run"
    arguments = (
        *("train", "concat", "--stage", "warmup", "--data", maps, "-m", concat_checkpoint, *SMALL),
        *("-o", output, "--steps", 1),
    )
    (output / "warmup").mkdir(parents=True)
    (output / "warmup" / "metrics.jsonl").touch()
    refused = run(*arguments)
    assert refused.code == 2
    assert "--resume" in refused.stderr
    nothing = run(*arguments, "--resume")
    assert nothing.code == 1
    assert "no stage has a checkpoint to resume" in nothing.stderr
    assert run(*arguments, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "name the start weights"),
        (("-m", "a", "--clip", "b"), 2, "name the start weights"),
        (("-m", "a", "--mask2former", "b", "--clip", "c"), 2, "name the start weights"),
        (("--mask2former", "b"), 2, "name the start weights"),
        (("-m", "/no/such"), 1, "no checkpoint folder at /no/such"),
        (("-m", "a", "--resume", "--overwrite"), 2, "give one of them"),
        (("-m", "a", "--evaluate-every", "5"), 2, "need --val"),
        (("-m", "a", "--images", "b"), 2, "leave the images out"),
        (("-m", "a"), 2, "--steps"),
        (("-m", "a", "--steps", "0"), 1, "steps must be at least 1"),
        (("-m", "a", "--steps", "1", "--arguments", "nowhere.json"), 1, "no annotation file"),
    ],
)
def test_mistakes_are_said_in_one_line(run, maps, tmp_path, options, code, message):
    outcome = run("train", "concat", "--data", maps, "-o", tmp_path / "run", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_the_command_line_wins_over_the_file_and_the_stage_over_all(tmp_path):
    from_file = {"steps": 9, "batch_size": 3, "warmup": {"batch_size": 4}, "metric_for_best": "mIoU"}
    stages = build_stage_arguments(
        tmp_path, None, None, from_file=from_file, from_options={"steps": 7, "evaluate_every": 2}
    )
    assert {name: (a.steps, a.batch_size, a.evaluate_every) for name, a in stages.items()} == {
        "warmup": (7, 4, None),
        "segmentor": (7, 3, 2),
    }
    assert stages["warmup"].output_dir == tmp_path / "warmup"
    assert stages["segmentor"].metric_for_best == "mIoU"


@pytest.mark.parametrize(
    ("from_file", "message"),
    [
        ({"step": 1}, "unknown training arguments"),
        ({"steps": "many"}, "steps must be an integer"),
        ({"steps": 1, "output_dir": "x"}, "output_dir"),
        ({"steps": 1, "warmup": {"output_dir": "x"}}, "output_dir"),
        ({"steps": 1, "warmup": 3}, "'warmup' must hold training arguments"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, from_file, message):
    with pytest.raises(ValueError, match=message):
        build_stage_arguments(tmp_path, "warmup", None, from_file={"steps": 1, **from_file}, from_options={})


def test_steps_must_be_said(tmp_path):
    with pytest.raises(UsageError, match="'segmentor'"):
        build_stage_arguments(
            tmp_path, None, None, from_file={"warmup": {"steps": 1}}, from_options={"batch_size": 1}
        )
