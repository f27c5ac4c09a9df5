import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from testing.interrupting_stream import InterruptingStream
from testing.tiny_models import build_clip_text_config, build_model, build_processor, save_clip
from testing.tiny_semantic_maps import write_semantic_maps
from testing.tokenized_texts import listen_to_texts, mentions
from testing.two_processes import run_in_two_processes
from zsseg import ConcatForPanopticSegmentation
from zsseg.data.datasets_columns import to_hf_dataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.tensor_store import TensorStore
from zsseg.data.transforms import LargeScaleJitter, Resize
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.layers.vision_language import load_vision_language_teacher
from zsseg.training.arguments import TrainerArguments
from zsseg.training.checkpointing import CheckpointError, find_checkpoints
from zsseg.training.recipe_parts import are_complete
from zsseg.training.recipes.concat_stages import train_concat_stages
from zsseg.training.recipes.concat_transition import TransitionOptions

ALL = ("warmup", "alignment", "generator", "union")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SemanticMapDataset(write_semantic_maps(tmp_path_factory.mktemp("maps") / "train", count=8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_clip(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(clip):
    return load_vision_language_teacher(clip)


def train(dataset, folder, names=ALL, *, model=None, steps=2, batch_size=2, **options):
    stages = {
        name: TrainerArguments(
            output_dir=folder / name,
            steps=steps,
            batch_size=batch_size,
            learning_rate=1e-3,
            num_workers=0,
            save_every=None,
        )
        for name in names
    }
    model = build_model(text_config=build_clip_text_config()) if model is None else model
    processor = options.pop("processor", None) or build_processor()
    options = {
        "size": (32, 48),
        "options": TransitionOptions(noise_dim=4, hidden_dim=16),
        "stream": io.StringIO(),
        **options,
    }
    return model, train_concat_stages(
        model, processor, dataset, stages=stages, store_folder=folder, **options
    )


def find_changes(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_each_stage_goes_on_from_the_one_before_and_union_changes_two_parts_alone(dataset, teacher, tmp_path):
    model, results = train(dataset, tmp_path, teacher=teacher)
    assert list(results) == list(ALL)
    assert are_complete(results)
    weights = {
        name: ConcatForPanopticSegmentation.from_pretrained(tmp_path / name / "last").state_dict()
        for name in ALL
    }
    changed = find_changes(weights["generator"], model.state_dict())
    assert changed == {"semantic_projector.0.weight", "semantic_projector.0.bias", "no_object_embedding"}
    before = {name for name in weights["generator"] if name.startswith(("generator.", "memory."))}
    assert weights["generator"].keys() - weights["alignment"].keys() == before
    assert all(torch.equal(value, weights["generator"][name]) for name, value in weights["alignment"].items())
    # Four of the eight pictures hold the unseen label: neither tokens nor queries were taken of them.
    assert len(list((tmp_path / "clip-tokens").glob("items-00000000-00000004*"))) == 1
    assert len(list((tmp_path / "queries").glob("items-00000000-00000004*"))) == 1
    assert model.config.known_labels == ["red", "green", "blue"]
    # All the queries there are: six of each picture.
    assert model.config.memory_size == 24


@pytest.mark.slow
def test_a_run_that_is_stopped_in_every_stage_ends_as_if_it_never_was(dataset, teacher, tmp_path):
    whole, _ = train(dataset, tmp_path / "whole", teacher=teacher)
    for count, name in enumerate(ALL):
        _, results = train(
            dataset,
            tmp_path / "parts",
            teacher=teacher,
            resume=count > 0,
            stream=InterruptingStream(f"stage {name}:"),
        )
        assert not results[name].is_complete
        assert list(results)[-1] == name
    # Of the start weights only the text tower has a say any more.
    start = build_model(text_config=build_clip_text_config(), seed=9)
    start.text_model.load_state_dict(whole.text_model.state_dict())
    parts, results = train(dataset, tmp_path / "parts", teacher=teacher, resume=True, model=start)
    assert are_complete(results)
    assert not find_changes(whole.state_dict(), parts.state_dict())


TWO_PROCESSES = """
import io
from pathlib import Path
from testing.tiny_models import build_clip_text_config, build_model, build_processor
from zsseg.data.datasets_columns import to_hf_dataset
from zsseg.data.semantic_maps import SemanticMapDataset
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.layers.vision_language import load_vision_language_teacher
from zsseg.training.arguments import TrainerArguments
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.training.recipe_parts import are_complete
from zsseg.training.recipes.concat_stages import train_concat_stages
from zsseg.training.recipes.concat_transition import TransitionOptions

maps, clip, folder = map(Path, sys.argv[2:])
stages = {
    name: TrainerArguments(output_dir=folder / name, steps=2, batch_size=2, learning_rate=1e-3, num_workers=0)
    for name in ("alignment", "generator", "union")
}
model = build_model(text_config=build_clip_text_config())
results = train_concat_stages(
    model,
    build_processor(),
    SemanticMapDataset(maps),
    stages=stages,
    store_folder=folder,
    size=(32, 48),
    teacher=load_vision_language_teacher(clip),
    options=TransitionOptions(noise_dim=4, hidden_dim=16, query_batch_size=1),
    stream=io.StringIO(),
)
print(list(results), are_complete(results), compute_weights_digest(model, ("",)))
"""


@pytest.mark.slow
def test_two_processes_run_all_stages_and_agree(dataset, clip, tmp_path):
    lines = run_in_two_processes(TWO_PROCESSES, tmp_path, dataset.folder, clip, tmp_path / "run")
    last = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "run" / "union" / "last")
    expected = f"['alignment', 'generator', 'union'] True {compute_weights_digest(last, ('',))}"
    assert lines == [expected, expected]


def test_queries_are_extracted_as_many_pictures_at_a_time_as_told(dataset, tmp_path):
    model = build_model(text_config=build_clip_text_config())
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    options = TransitionOptions(noise_dim=4, hidden_dim=16, query_batch_size=3)
    train(dataset, tmp_path, ("generator",), model=model, options=options)
    assert sizes == [3, 1]
    with pytest.raises(ValueError, match="query_batch_size must be 1 or more, got 0"):
        TransitionOptions(query_batch_size=0)


@pytest.mark.slow
def test_a_run_goes_on_after_its_last_stage_is_complete(dataset, tmp_path):
    torch.manual_seed(0)
    whole, _ = train(dataset, tmp_path / "whole", ("segmentor", "generator", "union"))
    train(dataset, tmp_path / "parts", ("segmentor",))
    torch.manual_seed(1)
    parts, _ = train(dataset, tmp_path / "parts", ("segmentor", "generator", "union"), resume=True)
    assert not find_changes(whole.state_dict(), parts.state_dict())


@pytest.mark.parametrize("unseen", ["drop_images", "ignore_pixels"])
def test_inductive_training_reads_no_unseen_name(dataset, tmp_path, monkeypatch, unseen):
    heard = listen_to_texts(monkeypatch)
    names = ("warmup", "segmentor", "generator")
    model, results = train(dataset, tmp_path, names, setting="inductive", unseen=unseen)
    assert are_complete(results)
    assert mentions(heard, ["green"])
    assert not mentions(heard, ["blue"])
    assert model.config.known_labels == ["red", "green"]


def test_transductive_training_reads_unseen_names_for_the_generator_only(dataset, tmp_path, monkeypatch):
    heard = listen_to_texts(monkeypatch, lambda: (tmp_path / "segmentor" / "last").exists())
    train(dataset, tmp_path, ("warmup", "segmentor", "generator"))
    assert mentions(heard, ["blue"])
    assert all(segmentor_is_done for _, segmentor_is_done in mentions(heard, ["blue"]))


def test_pixels_of_unseen_labels_have_no_tokens(dataset, teacher, tmp_path):
    train(dataset, tmp_path, ("alignment",), teacher=teacher, unseen="ignore_pixels")
    (shard,) = (tmp_path / "clip-tokens").iterdir()
    assert shard.name == "items-00000000-00000008.safetensors"
    store = TensorStore(tmp_path / "clip-tokens", {}, 8, {0: shard})
    # Pictures of odd index hold one seen and one unseen colour.
    assert [len(store[index]["segment_ids"]) for index in range(4)] == [2, 1, 2, 1]


@pytest.mark.parametrize("size", [(32, 32), (17, 53), (53, 17), (480, 360)])
def test_pictures_whose_queries_are_stored_are_always_the_same(dataset, size):
    example = Resize(size)(dataset[0], np.random.default_rng(0))
    first, second = (
        LargeScaleJitter((40, 30), 1.0, 1.0)(example, np.random.default_rng(seed)) for seed in (1, 2)
    )
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert np.array_equal(first.target.segment_ids, second.target.segment_ids)


def test_another_teacher_does_not_continue_the_run(dataset, teacher, tmp_path):
    train(dataset, tmp_path, ("alignment",), teacher=teacher, stream=InterruptingStream("stage alignment:"))
    save_clip(tmp_path / "other")
    CLIPImageProcessorPil(image_mean=[0.1] * 3).save_pretrained(tmp_path / "other")
    other = load_vision_language_teacher(tmp_path / "other")
    tokens = {path: path.read_bytes() for path in (tmp_path / "clip-tokens").iterdir()}
    assert tokens
    with pytest.raises(CheckpointError, match=r"teacher \w{64} then, \w{64} now"):
        train(dataset, tmp_path, ("alignment",), teacher=other, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "clip-tokens").iterdir()} == tokens
    _, results = train(dataset, tmp_path, ("alignment",), teacher=teacher, resume=True)
    assert are_complete(results)


def test_no_tokens_are_computed_for_stages_that_learn_from_none(dataset, teacher, tmp_path):
    train(dataset, tmp_path, ("warmup",), teacher=teacher)
    assert not (tmp_path / "clip-tokens").exists()
    _, results = train(dataset, tmp_path, ("warmup", "alignment"), teacher=teacher, resume=True)
    assert are_complete(results)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(dataset, tmp_path):
    for name in ("generator", "union"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
    _, results = train(dataset, tmp_path, ("generator", "union"), resume=True)
    assert are_complete(results)


def test_a_stage_that_is_trained_anew_takes_the_later_ones_along(dataset, tmp_path):
    train(dataset, tmp_path, ("segmentor", "generator", "union"))
    train(dataset, tmp_path, ("segmentor",), overwrite=True)
    assert find_checkpoints(tmp_path / "segmentor")
    assert not find_checkpoints(tmp_path / "generator")
    assert not find_checkpoints(tmp_path / "union")


def count_extractions(dataset, folder, **options):
    """Pictures that go through the segmentor before the generator is trained on their queries."""
    model, processor = build_model(text_config=build_clip_text_config()), build_processor()
    pictures = []
    model.register_forward_pre_hook(
        lambda _, args, inputs: pictures.extend(inputs["pixel_values"]), with_kwargs=True
    )
    if "image_std" in options:
        processor.image_processor.image_std = options.pop("image_std")
    if "logit_scale" in options:
        model.config.logit_scale = options.pop("logit_scale")
    train(dataset, folder, ("generator",), model=model, processor=processor, overwrite=True, **options)
    return len(pictures)


class OtherLabels:
    """The data set, the second picture of seen labels with another one."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.vocabulary = dataset.vocabulary

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        example = self.dataset[index]
        if index != 2:
            return example
        (first, *others) = example.target.segments
        target = replace(example.target, segments=(replace(first, label_id=1 - first.label_id), *others))
        return replace(example, target=target)

    def label_ids(self, index):
        return frozenset(segment.label_id for segment in self[index].target.segments)


def test_stored_queries_are_used_again_only_if_all_that_made_them_is_the_same(dataset, tmp_path):
    assert count_extractions(dataset, tmp_path) == 4
    assert count_extractions(dataset, tmp_path) == 0
    # As many pictures, and the first of them the same.
    few = TransitionOptions(noise_dim=4, hidden_dim=16, query_images=4)
    assert count_extractions(dataset, tmp_path, unseen="ignore_pixels", options=few) == 4
    assert count_extractions(dataset, tmp_path, options=few) == 4
    assert count_extractions(OtherLabels(dataset), tmp_path) == 4
    assert count_extractions(dataset, tmp_path) == 4
    assert count_extractions(dataset, tmp_path, image_std=[0.3] * 3) == 4
    assert count_extractions(dataset, tmp_path, logit_scale=7.0) == 4
    assert count_extractions(dataset, tmp_path, logit_scale=7.0) == 0


def test_stages_that_lack_something_are_refused_before_anything_is_deleted(dataset, teacher, tmp_path):
    notes = tmp_path / "union" / "checkpoint-000001"
    notes.mkdir(parents=True)
    for names, options, message in (
        ((), {}, "give one of the stages .* or more, got"),
        (("distil",), {}, r"give one of the stages .*, got \['distil'\]"),
        (("alignment",), {}, "needs a teacher"),
        (("union",), {}, "needs a query generator"),
        (("generator", "union"), {"setting": "inductive"}, 'the setting "transductive"'),
        (
            ("alignment",),
            {"teacher": teacher, "model": build_model(projection_dim=7)},
            "tokens have 12 numbers, but .* have 7",
        ),
        (
            ("segmentor", "generator", "union"),
            {"batch_size": 5},
            "'union' draws the queries of 5 pictures at a time .* only 4 are stored: lower its batch_size",
        ),
        (
            ("segmentor", "generator"),
            {"options": TransitionOptions(query_images=1, queries_per_label=None)},
            "'generator' draws the queries of 2 pictures .* only 1 are stored",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataset, tmp_path, names, overwrite=True, **options)
    assert notes.is_dir()


def test_a_stream_is_not_enough_for_stages_that_store_things_by_number(dataset, tmp_path):
    columns = to_hf_dataset(dataset, cache_dir=str(tmp_path / "cache"))
    stream = StreamedPanopticDataset(columns.to_iterable_dataset())
    with pytest.raises(
        ValueError, match=r"the stages \['generator'\] store tokens or queries .* open_dataset"
    ):
        train(stream, tmp_path / "run", ("segmentor", "generator"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stream_trains_the_stages_on_pictures(dataset, tmp_path):
    columns = to_hf_dataset(dataset, cache_dir=str(tmp_path / "cache"))
    stream = StreamedPanopticDataset(columns.to_iterable_dataset(num_shards=2))
    (first, results), (second, _) = (
        train(stream, tmp_path / name, ("warmup", "segmentor"), steps=6) for name in ("one", "two")
    )
    assert list(results) == ["warmup", "segmentor"]
    assert are_complete(results)
    assert not find_changes(first.state_dict(), second.state_dict())
    other, _ = train(stream, tmp_path / "three", ("warmup", "segmentor"), unseen="ignore_pixels")
    assert find_changes(first.state_dict(), other.state_dict())
