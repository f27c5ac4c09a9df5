import json
import signal

import pytest
import torch
from transformers import pipeline

from testing.tiny_models import build_picture
from testing.tiny_scan_run import save_scan_clip
from testing.tiny_semantic_maps import write_semantic_maps
from testing.tokenized_texts import listen_to_texts, mentions
from zsseg import ScanForSemanticSegmentation
from zsseg.data.datasets_columns import to_hf_dataset
from zsseg.data.semantic_maps import SemanticMapDataset

SMALL = ("--size", 32, 32, "--batch-size", 2, "--num-workers", 0)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return write_semantic_maps(tmp_path_factory.mktemp("training") / "maps")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_scan_clip(folder)
    return folder


@pytest.fixture(scope="module")
def parts(mask2former_checkpoint, clip):
    return ("--mask2former", mask2former_checkpoint, "--clip", clip)


@pytest.fixture(scope="module")
def start(mask2former_checkpoint, clip, tmp_path_factory):
    """An untrained SCAN."""
    from zsseg import ScanProcessor

    folder = tmp_path_factory.mktemp("start")
    names = {"mask2former": str(mask2former_checkpoint), "clip": str(clip)}
    torch.manual_seed(0)
    ScanForSemanticSegmentation.from_parts(
        **names, integration_layers=(1, 2, 3), shift_layers=(1,)
    ).save_pretrained(folder)
    ScanProcessor.from_parts(**names).save_pretrained(folder)
    return folder


def load_weights(folder):
    return ScanForSemanticSegmentation.from_pretrained(folder).state_dict()


def find_changed(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_both_stages_end_in_a_checkpoint_that_the_pipeline_loads(run, maps, parts, tmp_path):
    output, arguments = tmp_path / "run", tmp_path / "arguments.json"
    sections = {"proposals": {"steps": 3}, "contextual_shift": {"steps": 2, "learning_rate": 1e-3}}
    arguments.write_text(json.dumps({"log_every": 1, **sections}))
    outcome = run(
        *("train", "scan", "--data", maps, "--val", maps, *parts, "-o", output, *SMALL),
        *("--arguments", arguments, "--unseen-policy", "ignore_pixels", "--crops-per-image", 1),
    )
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert "6 images · 3 labels (2 seen, 1 unseen), clean names · unseen: ignore_pixels" in lines
    assert f"proposals 3 steps, contextual_shift 2 steps → {output}" in lines
    assert f"wrote {output / 'checkpoint'}" in lines
    assert lines[-2].startswith("proposals, best by mIoU_seen: ")
    assert lines[-1].startswith("contextual_shift, best by mIoU_seen: ")
    proposals, final = load_weights(output / "proposals" / "last"), load_weights(output / "checkpoint")
    assert not any(name.startswith("shifted") for name in proposals)
    assert not find_changed(proposals, final)
    added = {name.split(".")[0] for name in final.keys() - proposals.keys()}
    assert added == {"shifted_tower", "shifted_logit_scale"}
    setup = json.loads((output / "contextual_shift" / "last" / "trainer" / "setup.json").read_text())
    assert "crops_per_image=1" in setup["shift"]
    assert setup["adam_betas"] == [0.9, 0.98]
    model = ScanForSemanticSegmentation.from_pretrained(output / "checkpoint")
    # A tower of three blocks; the paper's of twelve and twenty-four are read at the same shares.
    assert tuple(model.config.integration_layers) == (1, 2, 3)
    segment = pipeline("zero-shot-semantic-segmentation", model=str(output / "checkpoint"))
    assert segment(build_picture(40, 40), candidate_labels=["red", "violet"])


def test_crops_alone_are_learnt_by_a_model_without_proposal_embeddings(run, maps, parts, tmp_path):
    outcome = run(
        *("train", "scan", "--stage", "contextual_shift", "--data", maps, *parts, "--steps", 2, *SMALL),
        *("-o", tmp_path / "run", "--learning-rate", 1e-3),
    )
    assert outcome.code == 0, outcome.stderr
    assert "kept 3 of 6 pictures: 3 hold an unseen segment" in outcome.stderr
    model = ScanForSemanticSegmentation.from_pretrained(tmp_path / "run" / "checkpoint")
    assert model.config.mode == "clip_only"
    weights = model.state_dict()
    towers = [
        {name.removeprefix(tower): value for name, value in weights.items() if name.startswith(tower)}
        for tower in ("context_tower.", "shifted_tower.")
    ]
    assert find_changed(*towers) == {"vision_model", "visual_projection"}


class InterruptedDataset(SemanticMapDataset):
    """Ctrl-C comes while the second picture of the second stage is read."""

    readings = 0

    def __getitem__(self, index):
        self.readings += 1
        if self.readings == 5:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


def test_an_interrupted_second_stage_ends_with_resume_as_if_nothing_had_happened(
    run, maps, start, tmp_path, monkeypatch
):
    def train(output, *options):
        return run(
            *("train", "scan", "--data", maps, "-m", start, "-o", output, "--steps", 3, *SMALL),
            *("--batch-size", 1, "--unseen-policy", "ignore_pixels", "--learning-rate", 1e-3, *options),
            *("--size", 64, 64),
        )

    assert train(tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("zsseg.data.opening.SemanticMapDataset", InterruptedDataset)
        interrupted = train(tmp_path / "parts")
    assert interrupted.code == 1
    assert "the same command with --resume goes on from here" in interrupted.stderr
    assert (tmp_path / "parts" / "contextual_shift" / "last").exists()
    assert not (tmp_path / "parts" / "checkpoint").exists()
    assert train(tmp_path / "parts", "--resume").code == 0
    whole, parts = (load_weights(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_first_stage_that_ran_alone_is_gone_on_from_and_nothing_outlives_a_new_one(
    run, maps, start, tmp_path, monkeypatch
):
    command = ("train", "scan", "--data", maps, "-m", start, "-o", tmp_path / "run", "--steps", 1, *SMALL)
    heard = listen_to_texts(monkeypatch)
    assert run(*command, "--stage", "proposals").code == 0
    assert not (tmp_path / "run" / "contextual_shift").exists()
    refused = run(*command)
    assert refused.code == 2
    assert "pass --resume" in refused.stderr
    resumed = run(*command, "--resume")
    assert resumed.code == 0, resumed.stderr
    assert (tmp_path / "run" / "contextual_shift" / "last").is_dir()
    assert run(*command, "--stage", "proposals", "--overwrite").code == 0
    # What went on from the proposals of before is gone.
    assert not (tmp_path / "run" / "contextual_shift" / "last").exists()
    assert mentions(heard, ["green"])
    assert not mentions(heard, ["blue"])


def test_columns_are_streamed(run, maps, start, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    columns = to_hf_dataset(SemanticMapDataset(maps), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    columns.to_parquet(tmp_path / "shards" / "train-00000-of-00001.parquet")
    outcome = run(
        *("train", "scan", "--dataset", tmp_path / "shards", "--streaming", "-m", start, "--steps", 1),
        *("-o", tmp_path / "run", "--unseen-policy", "ignore_pixels", *SMALL),
    )
    assert outcome.code == 0, outcome.stderr
    assert "a stream of images" in outcome.stdout


def test_the_default_warm_up_is_the_papers_share_of_the_steps(run, maps, start, tmp_path):
    outcome = run(
        *("train", "scan", "--data", maps, "-m", start, "--steps", 160, "-o", tmp_path / "run", *SMALL),
        *("--time-limit", 1e-9),
    )
    assert outcome.code == 1
    setup = json.loads((tmp_path / "run" / "proposals" / "last" / "trainer" / "setup.json").read_text())
    assert setup["warmup_steps"] == 2
    assert (setup["learning_rate"], setup["weight_decay"], setup["schedule"]) == (6e-5, 0.01, "polynomial")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "name the start weights"),
        (("-m", "a", "--clip", "b"), 2, "name the start weights"),
        (("--mask2former", "b"), 2, "name the start weights"),
        (("--mask2former", "b", "--clip", "open_clip:a/b"), 2, "convert_open_clip_to_zsseg.py"),
        (("-m", "/no/such"), 1, "no checkpoint folder at /no/such"),
        (("-m", "a", "--resume", "--overwrite"), 2, "give one of them"),
        (("-m", "a", "--evaluate-every", "5"), 2, "need --val"),
        (("-m", "a"), 2, "--steps"),
        (("-m", "a", "--steps", "0"), 1, "steps must be at least 1"),
        (("-m", "a", "--stage", "union"), 2, "'union' is not one of"),
    ],
)
def test_mistakes_are_said_in_one_line(run, maps, tmp_path, options, code, message):
    outcome = run("train", "scan", "--data", maps, "-o", tmp_path / "run", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crops-per-image", 0), "crops_per_image must be 1 or more"),
        (("--shift-ratio", 2), "shift_ratio must lie in [0, 1]"),
        (("--min-scale", 3), "0 < min_scale <= max_scale"),
    ],
)
def test_settings_out_of_range_are_said_in_one_line(run, maps, start, tmp_path, options, message):
    outcome = run(
        *("train", "scan", "--data", maps, "-m", start, "-o", tmp_path / "run", "--steps", 1, *options)
    )
    assert outcome.code == 1
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_family_is_named(run, maps, concat_checkpoint, tmp_path):
    outcome = run(
        *("train", "scan", "--data", maps, "-m", concat_checkpoint, "-o", tmp_path / "run", "--steps", 1)
    )
    assert outcome.code == 1
    assert "is a checkpoint of model type 'zsseg-concat'" in outcome.stderr


def test_data_must_be_named(run, tmp_path):
    outcome = run("train", "scan", "-o", tmp_path / "run", "-m", "a")
    assert outcome.code == 2
    assert "--dataset DATASET" in outcome.stderr
