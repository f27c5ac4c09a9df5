import io

import pytest
import torch
import torch.nn.functional as F

from testing.tiny_concat_run import read_records
from zsseg.checkpoints import packaged
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose
from zsseg.models.inference import encode_vocabulary
from zsseg.training.picture_recipe import build_seen_collator
from zsseg.training.recipes.patchwork_scan import (
    build_patchwork_scan,
    build_patchwork_scan_stages,
    train_patchwork_integration,
    train_patchwork_shift,
)
from zsseg.training.recipes.scan_integration import (
    NAMING_PREFIXES,
    IntegrationStage,
    ProposalQueries,
    collate_proposal_queries,
    extract_proposal_queries,
)
from zsseg.training.stage import StageContext

SCENES = 6


def build(**fields):
    sizes = {"integration_steps": 2, "integration_encoder_layers": 1, "integration_feedforward_dim": 32}
    return build_patchwork_scan(
        packaged("concat-patchwork-inductive"), packaged("patchwork-clip"), **sizes | fields
    )


@pytest.fixture(scope="module")
def world():
    model, processor = build()
    scenes = PatchworkDataset("easy", num_scenes=SCENES, categories="seen")
    context = StageContext(scenes.vocabulary, **encode_vocabulary(model, processor, scenes.vocabulary))
    queries = extract_proposal_queries(
        model,
        TransformedDataset(scenes, Compose(()), seed=0),
        collate=build_seen_collator(processor, scenes.vocabulary),
        context=context,
        batch_size=4,
        progress=False,
    )
    return model, processor, scenes, context, queries


def test_queries_are_those_of_the_model_with_the_labels_of_the_segments_they_overlap_best(world):
    model, processor, scenes, _, queries = world
    assert len(queries) == SCENES
    example = scenes[SCENES - 1]
    pixels = processor(images=example.image)["pixel_values"]
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixels, text_embeds=torch.eye(128)[:3], mode="in_vocab_only")
    torch.testing.assert_close(
        queries[SCENES - 1]["query_embeds"].float(), outputs.query_embeds[0], atol=2e-2, rtol=1e-2
    )
    # A trained proposal network on easy scenes: the query of a segment is the one whose mask overlaps it.
    masks = F.interpolate(outputs.masks_queries_logits, (128, 128), mode="bilinear")[0] > 0
    label_ids = queries[SCENES - 1]["label_ids"]
    segments = example.target.segments
    assert int((label_ids < len(scenes.vocabulary)).sum()) == len(segments)
    largest = max(segments, key=lambda segment: segment.area)
    truth = torch.from_numpy(example.target.mask(largest.id))
    overlaps = (masks & truth).flatten(1).sum(1) / (masks | truth).flatten(1).sum(1)
    assert overlaps.max() > 0.5
    assert label_ids[overlaps.argmax()] == largest.label_id


def test_tokens_are_those_of_the_frozen_clip(world):
    model, processor, scenes, _, queries = world
    example = scenes[0]
    # Both normalise alike in this world, and nearest neighbour takes every second pixel.
    pixels = processor(images=example.image)["pixel_values"][..., ::2, ::2]
    with torch.no_grad():
        outputs = model.context_tower(pixels, output_hidden_states=True)
    expected = outputs.hidden_states[3][:, 1:].transpose(1, 2).reshape(160, 8, 8)
    assert queries.tokens.shape == (SCENES, 3, 160, 8, 8)
    torch.testing.assert_close(queries.tokens[0, 0].float(), expected, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(queries.image_embeds[0].float(), outputs.image_embeds[0], atol=2e-2, rtol=1e-2)


def test_the_loss_is_weighted_cross_entropy_and_no_object_is_no_right_answer(world):
    model, _, _, context, queries = world
    batch = collate_proposal_queries([queries[0], queries[1]])
    losses = IntegrationStage().compute_loss(model.eval(), batch, context)
    embeds = model.sim(
        model.proposal_head(batch["query_embeds"]),
        list(batch["tokens"].transpose(0, 1)),
        batch["image_embeds"],
    )
    directions = F.normalize(torch.cat([context.text_embeds, model.no_object_embedding[None]]), dim=1)
    logits = 40 * F.normalize(embeds, dim=-1).flatten(0, 1) @ directions.T
    targets = batch["label_ids"].flatten()
    weight = torch.ones(len(context.vocabulary) + 1)
    weight[-1] = 0.1
    torch.testing.assert_close(losses["loss"], F.cross_entropy(logits, targets, weight))
    matched = targets < len(context.vocabulary)
    right = logits[matched][:, :-1].argmax(1) == targets[matched]
    torch.testing.assert_close(losses["accuracy"], right.float().mean())


def test_only_what_names_the_proposals_learns_and_the_loss_falls(world, tmp_path):
    _, _, _, _, queries = world
    model, processor = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages = build_patchwork_scan_stages(
        tmp_path, integration_steps=40, shift_steps=1, batch_size=2, mixed_precision="no"
    )
    stages = {"integration": stages["integration"]}
    stages["integration"] = type(stages["integration"]).from_dict(
        stages["integration"].to_dict() | {"log_every": 10, "warmup_steps": 5}
    )
    train_patchwork_integration(model, processor, queries, stages["integration"], stream=io.StringIO())
    records = [r for r in read_records(tmp_path / "integration") if r["kind"] == "train"]
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(NAMING_PREFIXES) for name in moved)


def test_stored_queries_come_back_from_a_file_equal(world, tmp_path):
    from safetensors.torch import load_file, save_file

    queries = world[-1]
    save_file(queries.get_tensors(), tmp_path / "queries.safetensors")
    again = ProposalQueries(**load_file(tmp_path / "queries.safetensors"))
    for name, tensor in queries.get_tensors().items():
        assert torch.equal(getattr(again, name), tensor)


def test_a_model_without_semantic_integration_learns_too(world):
    _, _, _, context, queries = world
    model, _ = build(has_semantic_integration=False)
    losses = IntegrationStage().compute_loss(model, collate_proposal_queries([queries[0]]), context)
    losses["loss"].backward()
    assert model.proposal_head.fc1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.segmentor.parameters())


@pytest.mark.slow
def test_contextual_shift_on_patchwork_trains_a_tower_of_its_own(tmp_path):
    model, processor = build()
    stages = build_patchwork_scan_stages(
        tmp_path, integration_steps=1, shift_steps=2, batch_size=2, mixed_precision="no"
    )
    frozen = {name: tensor.clone() for name, tensor in model.context_tower.state_dict().items()}
    result = train_patchwork_shift(model, processor, stages["contextual_shift"], stream=io.StringIO())
    assert result.is_complete
    assert model.config.has_shifted_tower
    shifted = model.shifted_tower.state_dict()
    assert all(torch.equal(model.context_tower.state_dict()[name], frozen[name]) for name in frozen)
    assert any(not torch.equal(shifted[name], frozen[name]) for name in frozen)
