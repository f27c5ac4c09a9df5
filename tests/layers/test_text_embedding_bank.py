import copy

import numpy as np
import pytest
import torch
from transformers import BertModel, CLIPTextModelWithProjection, SiglipTextConfig, SiglipTextModel

from oracles.open_vocabulary import average_prompts
from testing.tiny_models import (
    CONTEXT,
    TEXT_WIDTH,
    build_bert_config,
    build_clip_text_config,
    build_tokenizer,
)
from zsseg.layers import text_embedding_bank
from zsseg.layers.text_embedding_bank import (
    TextEmbeddingBank,
    build_text_tower,
    encode_prompts,
    infer_text_pooling,
    infer_text_width,
)

TEXTS = ("road", "a very long name of a car")
TEMPLATES = ("{}", "a photo of a {}.", "art: {}")


def build_siglip_config():
    return SiglipTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(build_tokenizer()),
        max_position_embeddings=CONTEXT,
        projection_size=10,
    )


CONFIGS = {"projection": build_clip_text_config, "mean": build_bert_config, "pooler": build_siglip_config}


def build_tower(pooling):
    torch.manual_seed(0)
    return build_text_tower(CONFIGS[pooling]()).eval()


def tokenize(padding=True, templates=TEMPLATES):
    prompts = [template.replace("{}", text) for text in TEXTS for template in templates]
    tokens = build_tokenizer()(prompts, padding=padding, return_tensors="pt")
    shape = (len(TEXTS), len(templates), -1)
    return tokens["input_ids"].view(shape), tokens["attention_mask"].view(shape)


@pytest.fixture
def count_calls():
    def attach(tower):
        calls = []
        tower.register_forward_hook(lambda *_: calls.append(1))
        return calls

    return attach


@pytest.mark.parametrize(
    ("pooling", "tower_class", "width"),
    [
        ("projection", CLIPTextModelWithProjection, TEXT_WIDTH),
        ("mean", BertModel, 16),
        ("pooler", SiglipTextModel, 10),
    ],
)
def test_towers_their_pooling_and_width(pooling, tower_class, width):
    tower = build_tower(pooling)
    assert type(tower) is tower_class
    assert infer_text_pooling(tower.config) == pooling
    assert infer_text_width(tower.config, pooling) == width
    with torch.no_grad():
        assert encode_prompts(tower, *tokenize("max_length"), pooling).shape == (2, width)


@pytest.mark.parametrize("pooling", ["projection", "mean"])
def test_prompts_one_by_one_averaged_by_the_oracle(pooling):
    tower, tokenizer = build_tower(pooling), build_tokenizer()
    with torch.no_grad():
        embeds = encode_prompts(tower, *tokenize(), pooling)
        for row, text in enumerate(TEXTS):
            alone = []
            for template in TEMPLATES:
                outputs = tower(**tokenizer(template.replace("{}", text), return_tensors="pt"))
                tokens = outputs.text_embeds if pooling == "projection" else outputs.last_hidden_state[0]
                alone.append(tokens.numpy().mean(axis=0))
            np.testing.assert_allclose(embeds[row].numpy(), average_prompts(alone), atol=1e-5)


@pytest.mark.parametrize("pooling", ["projection", "mean"])
def test_padding_to_the_full_context_changes_nothing(pooling):
    tower = build_tower(pooling)
    trimmed, padded = tokenize(), tokenize("max_length")
    assert trimmed[0].shape[-1] < padded[0].shape[-1] == CONTEXT
    lengths = []
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        of_trimmed = encode_prompts(tower, *trimmed, pooling)
        of_padded = encode_prompts(tower, *padded, pooling)
        outputs = tower(input_ids=padded[0].flatten(0, 1), attention_mask=padded[1].flatten(0, 1))
    torch.testing.assert_close(of_padded, of_trimmed, atol=1e-5, rtol=0)
    assert lengths[0] == lengths[1] == trimmed[0].shape[-1]
    if pooling == "projection":
        full = outputs.text_embeds.view(len(TEXTS), len(TEMPLATES), -1)
        for row in range(len(TEXTS)):
            np.testing.assert_allclose(of_trimmed[row].numpy(), average_prompts(full[row].numpy()), atol=1e-5)


def test_tokens_on_the_right_are_never_cut_off():
    tower = build_tower("mean")
    ids, mask = (tensor.flip(-1) for tensor in tokenize("max_length"))
    with torch.no_grad():
        embeds = encode_prompts(tower, ids, mask, "mean")
        states = tower(input_ids=ids.flatten(0, 1), attention_mask=mask.flatten(0, 1)).last_hidden_state
    weights = mask.flatten(0, 1)[..., None].numpy()
    means = (states.numpy() * weights).sum(axis=1) / weights.sum(axis=1)
    for row, group in enumerate(means.reshape(len(TEXTS), len(TEMPLATES), -1)):
        np.testing.assert_allclose(embeds[row].numpy(), average_prompts(group), atol=1e-5)


def test_chunks_give_what_one_pass_gives(monkeypatch):
    tower = build_tower("projection")
    with torch.no_grad():
        whole = encode_prompts(tower, *tokenize(), "projection")
        monkeypatch.setattr(text_embedding_bank, "ENCODE_CHUNK_SIZE", 2)
        chunked = encode_prompts(tower, *tokenize(), "projection")
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


def test_prompts_longer_than_the_context_are_refused():
    ids = torch.ones(1, 1, CONTEXT + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"takes {CONTEXT + 1} tokens, but the text tower reads {CONTEXT}"):
        encode_prompts(build_tower("projection"), ids, torch.ones_like(ids), "projection")


def test_second_call_runs_no_tower(count_calls):
    tower, bank = build_tower("projection"), TextEmbeddingBank()
    calls = count_calls(tower)
    first = bank.encode(tower, *tokenize(), "projection")
    assert len(calls) == 1
    assert bank.encode(tower, *tokenize(), "projection") is first
    assert len(calls) == 1
    bank.encode(tower, *tokenize(templates=("{}",)), "projection")
    assert len(calls) == 2
    assert not first.requires_grad


def step(tower):
    optimizer = torch.optim.SGD(tower.parameters(), lr=1.0)
    for parameter in tower.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


CHANGES = {
    "an optimizer's step": step,
    "other weights": lambda tower: tower.load_state_dict(
        {
            name: value + 1 if value.is_floating_point() else value
            for name, value in tower.state_dict().items()
        }
    ),
    "another dtype": lambda tower: tower.double(),
    "a new parameter": lambda tower: setattr(
        tower.text_projection, "weight", torch.nn.Parameter(torch.ones_like(tower.text_projection.weight))
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_towers_are_not_remembered(change, count_calls):
    tower, bank = build_tower("projection"), TextEmbeddingBank()
    before = bank.encode(tower, *tokenize(), "projection").clone()
    change(tower)
    calls = count_calls(tower)
    after = bank.encode(tower, *tokenize(), "projection")
    assert len(calls) == 1
    fresh = TextEmbeddingBank().encode(tower, *tokenize(), "projection")
    assert torch.equal(after, fresh)
    if change is not CHANGES["another dtype"]:
        assert not torch.allclose(after, before)


def test_another_tower_is_not_taken_for_the_first(count_calls):
    first, bank = build_tower("projection"), TextEmbeddingBank()
    second = copy.deepcopy(first)
    calls = count_calls(second)
    bank.encode(first, *tokenize(), "projection")
    bank.encode(second, *tokenize(), "projection")
    assert len(calls) == 1


def test_writes_through_data_need_clear():
    tower, bank = build_tower("projection"), TextEmbeddingBank()
    before = bank.encode(tower, *tokenize(), "projection")
    for parameter in tower.parameters():
        parameter.data.add_(1.0)
    bank.clear()
    assert not torch.allclose(bank.encode(tower, *tokenize(), "projection"), before)


def test_the_oldest_vocabulary_is_forgotten(monkeypatch, count_calls):
    monkeypatch.setattr(text_embedding_bank, "BANK_SIZE", 2)
    tower, bank = build_tower("projection"), TextEmbeddingBank()
    calls = count_calls(tower)
    vocabularies = [tokenize(templates=(template,)) for template in TEMPLATES]
    for tokens in (vocabularies[0], vocabularies[1], vocabularies[0], vocabularies[2]):
        bank.encode(tower, *tokens, "projection")
    assert len(calls) == 3
    bank.encode(tower, *vocabularies[0], "projection")
    assert len(calls) == 3
    bank.encode(tower, *vocabularies[1], "projection")
    assert len(calls) == 4


def test_what_is_remembered_does_not_depend_on_who_asks_first():
    tower = build_tower("projection")
    plain = TextEmbeddingBank().encode(tower, *tokenize(), "projection")
    bank = TextEmbeddingBank()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        bank.encode(tower, *tokenize(), "projection")
    remembered = bank.encode(tower, *tokenize(), "projection")
    assert torch.equal(remembered, plain)
    weight = torch.ones(TEXT_WIDTH, requires_grad=True)
    (remembered * weight).sum().backward()
    torch.testing.assert_close(weight.grad, plain.sum(dim=0))
