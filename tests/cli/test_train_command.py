import functools
import json
import shutil
import signal

import pytest
import torch
from transformers import CLIPImageProcessorPil, pipeline

from testing.tiny_models import build_picture, save_clip
from testing.tiny_semantic_maps import write_semantic_maps
from testing.tokenized_texts import listen_to_texts, mentions
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.cli.messages import UsageError
from zsseg.cli.training_run import choose_stages
from zsseg.data.datasets_columns import to_hf_dataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.training.recipes.concat_transition import TransitionOptions
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip
from zsseg.vocabulary import Vocabulary

SMALL = ("--size", 64, 64, "--batch-size", 2, "--num-workers", 0)
QUERY_STAGES = {"generator": {"steps": 2}, "union": {"steps": 2, "batch_size": 2}}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return write_semantic_maps(tmp_path_factory.mktemp("training") / "maps")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_clip(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def load_weights(folder):
    return ConcatForPanopticSegmentation.from_pretrained(folder).state_dict()


def write_arguments(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_all_stages_end_in_a_checkpoint_that_the_pipeline_loads_and_that_adapts(
    run, maps, concat_checkpoint, tmp_path
):
    output = tmp_path / "run"
    sections = {"warmup": {"steps": 3}, "segmentor": {"steps": 2}, **QUERY_STAGES}
    content = {"log_every": 1, "learning_rate": 5.0, **sections}
    arguments = write_arguments(tmp_path / "arguments.json", content)
    outcome = run(
        *("train", "concat", "--data", maps, "--val", maps, "-m", concat_checkpoint, "-o", output, *SMALL),
        *("--arguments", arguments, "--learning-rate", 1e-4, "--unseen-policy", "ignore_pixels"),
    )
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert (
        "6 images · 3 labels (2 seen, 1 unseen), clean names · unseen: ignore_pixels, transductive" in lines
    )
    assert f"warmup 3 steps, segmentor 2 steps, generator 2 steps, union 2 steps → {output}" in lines
    assert f"wrote {output / 'checkpoint'}" in lines
    assert lines[-2].startswith("segmentor, best by mIoU_seen: ")
    assert lines[-1].startswith("union, best by mIoU_seen: ")
    records = [json.loads(line) for line in (output / "warmup" / "metrics.jsonl").read_text().splitlines()]
    assert {record["learning_rate"] for record in records} <= {1e-4, 1e-5, 1e-6}
    before, after = load_weights(concat_checkpoint), load_weights(output / "segmentor" / "last")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"segmentor", "semantic_projector", "no_object_embedding"}
    final, last = load_weights(output / "checkpoint"), load_weights(output / "union" / "last")
    assert all(torch.equal(final[name], last[name]) for name in final)
    segment = pipeline("zero-shot-semantic-segmentation", model=str(output / "checkpoint"))
    assert segment(build_picture(40, 40), candidate_labels=["red", "violet"])
    adapted = run(
        *("adapt", output / "checkpoint", "--labels", "violet", "-o", tmp_path / "new", "--steps", 1)
    )
    assert adapted.code == 0
    assert "the checkpoint knows 4 labels" in adapted.stdout


@pytest.mark.slow
def test_a_teacher_turns_the_segmentor_stage_into_alignment(run, maps, concat_checkpoint, teacher, tmp_path):
    content = {"steps": 1, **QUERY_STAGES}
    outcome = run(
        *("train", "concat", "--data", maps, "-m", concat_checkpoint, "--teacher", teacher, *SMALL),
        *("-o", tmp_path / "run", "--setting", "inductive", "--generator", "cvae"),
        *("--arguments", write_arguments(tmp_path / "arguments.json", content)),
    )
    assert outcome.code == 0
    stages = f"warmup 1 step, alignment 1 step, generator 2 steps → {tmp_path / 'run'}"
    assert stages in outcome.stdout.splitlines()
    assert outcome.stderr.count("kept 3 of") == 1
    assert (tmp_path / "run" / "clip-tokens").is_dir()
    model = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "run" / "checkpoint")
    assert model.config.generator_type == "cvae"
    assert model.config.known_labels == ["red", "green"]


def test_inductive_training_reads_no_unseen_name_for_its_validation_either(
    run, maps, concat_checkpoint, tmp_path, monkeypatch
):
    heard = listen_to_texts(monkeypatch)
    outcome = run(
        *("train", "concat", "--stage", "segmentor", "--data", maps, "--val", maps, "-m", concat_checkpoint),
        *("-o", tmp_path / "run", "--setting", "inductive", "--steps", 1, *SMALL),
    )
    assert outcome.code == 0, outcome.stderr
    assert mentions(heard, ["green"])
    assert not mentions(heard, ["blue"])
    assert "best by mIoU_seen" in outcome.stdout


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


def test_a_folder_of_parts_trains_on_train_and_validates_on_val(run, maps, concat_checkpoint, tmp_path):
    shutil.copytree(maps, tmp_path / "data" / "train")
    write_semantic_maps(tmp_path / "data" / "val", count=2)
    outcome = run(
        *("train", "concat", "--stage", "segmentor", "--dataset", tmp_path / "data", "-m", concat_checkpoint),
        *("--val", tmp_path / "data", "-o", tmp_path / "run", "--steps", 1, *SMALL),
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[1].startswith("6 images · 3 labels (2 seen, 1 unseen)")
    lines = (tmp_path / "run" / "segmentor" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_images"] for line in lines if "num_images" in line] == [2]
    one = run("train", "concat", "--dataset", tmp_path / "data", "--part", "test", "-m", "a", "-o", "b")
    assert one.code == 2
    assert "has no part 'test'" in one.stderr


@pytest.fixture
def shards(maps, tmp_path):
    """The maps as parquet files."""
    columns = to_hf_dataset(SemanticMapDataset(maps), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    columns.to_parquet(tmp_path / "shards" / "train-00000-of-00001.parquet")
    return tmp_path / "shards"


def test_columns_are_trained_on_and_scored_by_segments(run, shards, concat_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    outcome = run(
        *("train", "concat", "--stage", "segmentor", "--dataset", shards, "--val", shards, "--steps", 1),
        *("-m", concat_checkpoint, "-o", tmp_path / "run", "--unseen-policy", "ignore_pixels", *SMALL),
    )
    assert outcome.code == 0, outcome.stderr
    assert "best by PQ_seen" in outcome.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stage", "generator"), "with --streaming the stages are warmup and segmentor"),
        (("--teacher", "open_clip:a/b"), "with --streaming the stages are warmup and segmentor"),
        (("--images", "photos"), "--images are those of a COCO JSON"),
    ],
)
def test_what_a_stream_is_not_enough_for(run, shards, tmp_path, options, message):
    train = ("train", "concat", "--dataset", shards, "--streaming", "-m", "open_clip:none", "--steps", 1)
    outcome = run(*train, *options, "-o", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_folders_are_not_streamed(run, maps, tmp_path):
    outcome = run(
        *("train", "concat", "--dataset", maps, "--streaming", "-m", "open_clip:none", "-o", tmp_path / "run")
    )
    assert outcome.code == 2
    assert "cannot be streamed and need not be" in outcome.stderr


class InterruptedDataset(SemanticMapDataset):
    """Ctrl-C comes while a picture is read."""

    readings = 0

    def __getitem__(self, index):
        self.readings += 1
        if self.readings == 2:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


def test_an_interrupted_run_ends_with_resume_as_if_nothing_had_happened(
    run, maps, concat_checkpoint, tmp_path, monkeypatch
):
    def train(output, *options):
        return run(
            *("train", "concat", "--stage", "warmup", "--data", maps, "-m", concat_checkpoint, "-o", output),
            *("--size", 64, 64, "--batch-size", 1, "--num-workers", 0, "--steps", 3, *options),
            *("--min-scale", 0.5, "--max-scale", 1.5, "--unseen-policy", "ignore_pixels"),
        )

    assert train(tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("zsseg.data.opening.SemanticMapDataset", InterruptedDataset)
        interrupted = train(tmp_path / "parts")
    assert interrupted.code == 1
    assert "the same command with --resume goes on from here" in interrupted.stderr
    assert not (tmp_path / "parts" / "checkpoint").exists()
    assert train(tmp_path / "parts", "--resume").code == 0
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
    # Killed before its first checkpoint, it begins anew.
    assert run(*arguments, "--resume").code == 0
    assert run(*arguments, "--overwrite").code == 0
    shutil.rmtree(output / "warmup")
    nothing = run(*arguments, "--resume")
    assert nothing.code == 1
    assert "there is nothing to resume" in nothing.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "name the start weights"),
        (("-m", "a", "--clip", "b"), 2, "name the start weights"),
        (("-m", "a", "--mask2former", "b", "--clip", "c"), 2, "name the start weights"),
        (("--mask2former", "b"), 2, "name the start weights"),
        (("-m", "/no/such"), 1, "no checkpoint folder at /no/such"),
        (("-m", "a", "--teacher", "/no/such"), 1, "no checkpoint folder at /no/such"),
        (("-m", "a", "--resume", "--overwrite"), 2, "give one of them"),
        (("-m", "a", "--evaluate-every", "5"), 2, "need --val"),
        (("-m", "a", "--images", "b"), 2, "leave the images out"),
        (("-m", "a"), 2, "--steps"),
        (("-m", "a", "--steps", "0"), 1, "steps must be at least 1"),
        (("-m", "a", "--steps", "1", "--arguments", "nowhere.json"), 1, "no annotation file"),
        (("-m", "a", "--steps", "1", "--stage", "alignment"), 2, "--teacher and --stage alignment"),
        (("-m", "a", "--steps", "1", "--stage", "warmup", "--generator", "mlp"), 2, "does not run"),
        (("-m", "a", "--stage", "union", "--setting", "inductive"), 2, "--setting transductive"),
    ],
)
def test_mistakes_are_said_in_one_line(run, maps, tmp_path, options, code, message):
    outcome = run("train", "concat", "--data", maps, "-o", tmp_path / "run", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_a_stage_that_lacks_a_generator_is_refused(run, maps, concat_checkpoint, tmp_path):
    outcome = run(
        *("train", "concat", "--data", maps, "-m", concat_checkpoint, "-o", tmp_path, "--stage", "union")
    )
    assert outcome.code == 1
    assert (
        'needs a query generator, but the checkpoint holds none: run the stage "generator"' in outcome.stderr
    )


def test_stages_follow_from_data_setting_and_teacher():
    labels = Vocabulary.from_labels(["red", "blue"])
    streamed = choose_stages("all", labels, setting="transductive", has_teacher=False, is_streamed=True)
    assert streamed == ("warmup", "segmentor")
    assert choose_stages("all", labels, setting="transductive", has_teacher=True) == (
        *("warmup", "alignment", "generator"),
    )
    with pytest.raises(UsageError, match="data with unseen labels"):
        choose_stages("union", labels, setting="transductive", has_teacher=False)
    with pytest.raises(UsageError, match="go together"):
        choose_stages("generator", labels, setting="transductive", has_teacher=True)


@pytest.mark.slow
def test_the_patchwork_recipe_ends_where_it_is_told_to_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("zsseg.training.recipes.patchwork_concat.VALIDATION_SCENES", 1)
    few_queries = functools.partial(TransitionOptions, query_images=4, memory_size=20)
    monkeypatch.setattr("zsseg.cli.patchwork_training_run.TransitionOptions", few_queries)
    for part in build_patchwork_clip():
        part.save_pretrained(tmp_path / "clip")
    output = tmp_path / "run"
    content = {"steps": 1, **QUERY_STAGES}
    command = (
        *("train", "concat", "--recipe", "patchwork", "--clip", tmp_path / "clip", "-o", output),
        *("--batch-size", 1, "--num-workers", 0, "--mixed-precision", "no", "--split", "seed-1"),
        *("--arguments", write_arguments(tmp_path / "arguments.json", content), "--generator", "cvae"),
    )
    assert run(*command, "--stage", "segmentor").code == 0
    assert load_weights(output / "checkpoint").keys() == load_weights(output / "segmentor" / "last").keys()
    assert not (output / "alignment").exists()
    refused = run(*command)
    assert refused.code == 2
    assert "pass --resume" in refused.stderr
    outcome = run(*command, "--resume")
    assert outcome.code == 0
    assert "Patchwork, split seed-1, transductive" in outcome.stdout
    model = ConcatForPanopticSegmentation.from_pretrained(output / "checkpoint")
    assert model.config.generator_type == "cvae"
    assert len(model.config.known_labels) == 60


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--data", "a", "--size", 9, 9, "--model", "b"), 2, "leave out --dataset, --model, --size"),
        (("--teacher", "a", "--steps", "1"), 2, "leave out --teacher, --steps"),
        (("--clip", "/no/such"), 1, "no checkpoint folder at /no/such"),
        (("--stage", "warmup"), 2, "ends with one of ['segmentor', 'alignment', 'generator', 'union']"),
        (("--stage", "union", "--setting", "inductive"), 2, "'generator'], got union"),
        (("--resume", "--overwrite"), 2, "give one of them"),
        (("--resume",), 1, "there is nothing to resume"),
        (("--split", "B"), 1, 'a Patchwork split is "A" or "seed-N"'),
        (("--batch-size", "0"), 1, "batch_size must be at least 1"),
    ],
)
def test_what_the_recipe_has_no_use_for_is_said_in_one_line(run, tmp_path, options, code, message):
    outcome = run("train", "concat", "--recipe", "patchwork", "-o", tmp_path / "run", *options)
    assert outcome.code == code
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_data_or_a_recipe_must_be_named(run, tmp_path):
    outcome = run("train", "concat", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "--dataset DATASET, or --recipe patchwork" in outcome.stderr


def test_a_final_checkpoint_holds_nothing_of_an_earlier_one(run, maps, concat_checkpoint, tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("half written")
    (folder / "notes.txt").write_text("mine")
    command = (
        *("train", "concat", "--stage", "warmup", "--data", maps, "-m", concat_checkpoint, *SMALL),
        *("-o", tmp_path / "run", "--steps", 1),
    )
    outcome = run(*command, "--overwrite")
    assert outcome.code == 1
    assert "notes.txt" in outcome.stderr
    assert (folder / "model.safetensors").read_text() == "half written"
    # That is found before training.
    assert not (tmp_path / "run" / "warmup").exists()
    (folder / "notes.txt").unlink()
    assert run(*command, "--overwrite").code == 0
    assert load_weights(folder)
