import signal

import pytest
import torch

from testing.tiny_concat_run import EMBED_DIM, RectanglesDataset, build_model, build_trainer, collate
from zsseg.training.recipes.concat_segmentor import AlignmentOptions, AlignmentStage

TOKENS = torch.nn.functional.normalize(
    torch.randn(10, EMBED_DIM, generator=torch.Generator().manual_seed(4)), dim=-1
)


class TokenDataset(RectanglesDataset):
    """Every picture has a token, and every label has one for its segments."""

    def __init__(self, stops=False):
        super().__init__()
        self.stops = stops

    def __getitem__(self, index):
        if self.stops and self.epoch == 1:
            self.stops = False
            signal.raise_signal(signal.SIGINT)
        return {**super().__getitem__(index), "index": index}


def collate_with_tokens(examples):
    return {
        **collate(examples),
        "image_ids": [example["index"] for example in examples],
        "image_tokens": TOKENS[[example["index"] for example in examples]],
        "segment_tokens": [torch.eye(EMBED_DIM)[example["class_labels"] + 3] for example in examples],
    }


def build(folder, *, model=None, stops=False, **options):
    stage = AlignmentStage(AlignmentOptions(**{"bank_size": 5, **options}), EMBED_DIM)
    trainer = build_trainer(folder, model=model, stage=stage, dataset=TokenDataset(stops), steps=9)
    trainer.collate = collate_with_tokens
    return trainer


def test_a_resumed_run_equals_an_uninterrupted_one_bank_included(tmp_path):
    assert not build(tmp_path / "resumed", stops=True).train().is_complete
    resumed, whole = build(tmp_path / "resumed", model=build_model(99)), build(tmp_path / "whole")
    assert resumed.train(resume=True).is_complete
    whole.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for name, value in whole.stage.get_state().items():
        assert torch.equal(resumed.stage.get_state()[name], value), name
    assert len(whole.stage.bank.tokens) == 5


@pytest.mark.slow
def test_queries_are_pulled_to_the_tokens_of_their_segments(tmp_path):
    trainer = build(tmp_path, global_weight=0.0, instance_weight=5.0)
    context, model = trainer.context, trainer.model.train()
    batch = collate_with_tokens([TokenDataset()[index] for index in range(4)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    history = []
    for _ in range(30):
        losses = trainer.stage.compute_loss(model, batch, context)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(float(losses["instance_alignment"]))
    assert history[-1] < 0.7 * history[0]
    assert "global_alignment" not in losses


def test_the_global_part_fills_the_bank_and_leaves_the_own_image_out(tmp_path):
    trainer = build(tmp_path, instance_weight=0.0, bank_size=4)
    model, stage = trainer.model.train(), trainer.stage
    examples = [TokenDataset()[index] for index in range(4)]
    losses = stage.compute_loss(model, collate_with_tokens(examples[:2]), trainer.context)
    assert "instance_alignment" not in losses
    assert torch.equal(stage.bank.tokens, TOKENS[:2])
    # One picture twice: all that the bank holds but itself is a negative.
    same = collate_with_tokens(examples[:1] * 2)
    assert float(stage.compute_loss(model, same, trainer.context)["global_alignment"]) > 0
    empty = build(tmp_path / "other", instance_weight=0.0, bank_size=0)
    assert float(empty.stage.compute_loss(model, same, trainer.context)["global_alignment"]) == 0.0


@pytest.mark.parametrize(("name", "value"), [("bank_size", -1), ("temperature", 0.0)])
def test_sizes_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        AlignmentOptions(**{name: value})


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 1.0)])
def test_weights_out_of_range(weights):
    with pytest.raises(ValueError, match="must be 0 or more, and one of them more"):
        AlignmentOptions(global_weight=weights[0], instance_weight=weights[1])
