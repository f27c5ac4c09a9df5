import io
from dataclasses import replace

import pytest
import torch

from testing.interrupting_stream import InterruptingStream
from testing.tokenized_texts import listen_to_texts, mentions
from zsseg import ConcatForPanopticSegmentation, ConcatProcessor
from zsseg.data.patchwork.splits import SPLIT_A
from zsseg.training.checkpointing import CheckpointError
from zsseg.training.recipe_parts import are_complete
from zsseg.training.recipes.concat_transition import TransitionOptions
from zsseg.training.recipes.patchwork import (
    PatchworkSteps,
    build_patchwork_recipe,
    train_patchwork_recipe,
)
from zsseg.training.recipes.patchwork_clip import build_patchwork_clip
from zsseg.training.recipes.patchwork_concat import build_patchwork_concat
from zsseg.training.recipes.patchwork_transition import (
    build_patchwork_alignment_arguments,
    train_patchwork_alignment,
)

STAGES = ("backbone", "deepened", "warmup", "segmentor", "alignment", "generator", "union")
STEPS = PatchworkSteps(backbone=1, deepened=1, warmup=1, segmentor=1, alignment=1, generator=2, union=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """An untrained CLIP of the recipe."""
    folder = tmp_path_factory.mktemp("clip")
    for part in build_patchwork_clip():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr("zsseg.training.recipes.patchwork_concat.VALIDATION_SCENES", 1)


def build_stages(output, names=STAGES):
    stages = build_patchwork_recipe(output, steps=STEPS, batch_size=2, mixed_precision="no", num_workers=0)
    stages["segmentor"] = replace(stages["segmentor"], evaluate_every=None)
    stages["union"] = replace(stages["union"], batch_size=4)
    return {name: stages[name] for name in names}


def train(output, clip, names=STAGES, **options):
    options = {
        "options": TransitionOptions(query_images=4, memory_size=20),
        "stream": io.StringIO(),
        **options,
    }
    return train_patchwork_recipe(output, build_stages(output, names), clip=clip, **options)


def find_changes(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_all_stages_run_and_stop_and_resume(clip, tmp_path, monkeypatch):
    heard = listen_to_texts(monkeypatch, lambda: (tmp_path / "whole" / "alignment" / "last").exists())
    whole, processor, results = train(tmp_path / "whole", clip)
    assert tuple(results) == STAGES
    assert are_complete(results)
    assert mentions(heard, SPLIT_A)
    assert all(alignment_is_done for _, alignment_is_done in mentions(heard, SPLIT_A))
    assert set(whole.config.known_labels[48:]) == set(SPLIT_A)
    assert isinstance(processor, ConcatProcessor)
    generator = ConcatForPanopticSegmentation.from_pretrained(tmp_path / "whole" / "generator" / "last")
    changed = find_changes(generator.state_dict(), whole.state_dict())
    assert changed == {"semantic_projector.0.weight", "semantic_projector.0.bias", "no_object_embedding"}

    _, _, results = train(tmp_path / "parts", clip, STAGES[:5])
    assert tuple(results) == STAGES[:5]
    stream = InterruptingStream("stage generator:")
    _, _, results = train(tmp_path / "parts", clip, resume=True, stream=stream)
    assert [name for name, result in results.items() if not result.is_complete] == ["generator"]
    parts, _, results = train(tmp_path / "parts", clip, resume=True)
    assert are_complete(results)
    assert not find_changes(whole.state_dict(), parts.state_dict())


@pytest.mark.slow
def test_inductive_training_reads_no_unseen_name(clip, tmp_path, monkeypatch):
    heard = listen_to_texts(monkeypatch)
    model, _, results = train(tmp_path, clip, setting="inductive")
    assert tuple(results) == STAGES[:-1]
    assert are_complete(results)
    assert len(model.config.known_labels) == 48
    assert mentions(heard, model.config.known_labels)
    assert not mentions(heard, SPLIT_A)
    tower = build_patchwork_concat(clip)[0].text_model.state_dict()
    assert not find_changes(tower, model.text_model.state_dict())


def test_another_teacher_does_not_continue_the_alignment(clip, tmp_path):
    # Another vision tower alone: the model's texts stay as they are.
    other, other_processor = build_patchwork_clip()
    with torch.no_grad():
        other.visual_projection.weight.neg_()
    for part in (other, other_processor):
        part.save_pretrained(tmp_path / "other")
    model, processor = build_patchwork_concat(clip)
    arguments = build_patchwork_alignment_arguments(
        tmp_path, steps=2, batch_size=2, mixed_precision="no", num_workers=0
    )

    def align(clip, **options):
        return train_patchwork_alignment(
            model, processor, clip, arguments, token_folder=tmp_path / "clip-tokens", **options
        )

    assert not align(clip, stream=InterruptingStream("stage alignment:")).is_complete
    with pytest.raises(CheckpointError, match=r"teacher \w{64} then, \w{64} now"):
        align(tmp_path / "other", stream=io.StringIO(), resume=True)
    assert align(clip, stream=io.StringIO(), resume=True).is_complete


def test_what_cannot_run_is_refused_before_anything_is_deleted(clip, tmp_path):
    notes = tmp_path / "backbone" / "checkpoint-000001"
    notes.mkdir(parents=True)
    for names, options, message in (
        (STAGES[:3], {}, "the first four or more"),
        ((*STAGES[:4], "generator"), {}, "the first four or more"),
        (STAGES, {"split": "B"}, 'a Patchwork split is "A"'),
        (STAGES, {"options": TransitionOptions(query_images=3)}, "'union' draws .* 4 .* only 3 are stored"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path, clip, names, overwrite=True, **options)
    with pytest.raises(OSError, match="nowhere"):
        train(tmp_path, tmp_path / "nowhere", overwrite=True)
    assert notes.is_dir()
