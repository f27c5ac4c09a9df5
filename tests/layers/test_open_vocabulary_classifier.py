import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.open_vocabulary import class_logits
from zsseg.layers.open_vocabulary_classifier import compute_cosine_class_logits


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_against_the_oracle_with_synonyms(seed, drawn):
    label_ids = np.unique(drawn, return_inverse=True)[1]
    semantic, texts, no_object = draw(seed, 3, 5), draw(seed + 1, len(label_ids), 5), draw(seed + 2, 5)
    logits = compute_cosine_class_logits(
        semantic,
        texts,
        logit_scale=100.0,
        text_label_ids=torch.from_numpy(label_ids),
        no_object_embedding=no_object,
    )
    expected = class_logits(semantic.numpy(), texts.numpy(), label_ids.tolist(), no_object.numpy(), 100.0)
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)


@given(st.permutations(range(4)))
def test_permuting_labels_permutes_columns(order):
    semantic, texts, no_object = draw(0, 2, 6, 5), draw(1, 4, 5), draw(2, 5)
    given_order = torch.tensor(order)
    expected = compute_cosine_class_logits(semantic, texts, logit_scale=10.0, no_object_embedding=no_object)
    permuted = compute_cosine_class_logits(
        semantic, texts[given_order], logit_scale=10.0, no_object_embedding=no_object
    )
    torch.testing.assert_close(permuted[..., :4], expected[..., given_order])
    torch.testing.assert_close(permuted[..., 4], expected[..., 4])
    by_ids = compute_cosine_class_logits(
        semantic, texts, logit_scale=10.0, text_label_ids=torch.argsort(given_order)
    )
    torch.testing.assert_close(by_ids, expected[..., given_order])


def test_norms_do_not_matter_and_the_range_is_the_scale():
    semantic, texts = draw(0, 7, 5), draw(1, 4, 5)
    logits = compute_cosine_class_logits(semantic, texts, logit_scale=100.0)
    assert logits.shape == (7, 4)
    assert logits.abs().max() <= 100.0001
    scaled = compute_cosine_class_logits(3.5 * semantic, 0.01 * texts, logit_scale=100.0)
    torch.testing.assert_close(scaled, logits, atol=1e-4, rtol=1e-5)


def test_half_precision_and_autocast_lose_nothing_here():
    semantic, texts = draw(0, 7, 64), draw(1, 4, 64)
    exact = compute_cosine_class_logits(semantic, texts, logit_scale=100.0, no_object_embedding=texts[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = compute_cosine_class_logits(
            semantic, texts, logit_scale=100.0, no_object_embedding=texts[0]
        )
    assert torch.equal(under_autocast, exact)
    halved = compute_cosine_class_logits(semantic.bfloat16(), texts, logit_scale=100.0)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(
        halved, compute_cosine_class_logits(semantic.bfloat16().float(), texts, logit_scale=100.0)
    )


def test_gradients_reach_queries_texts_and_no_object():
    inputs = [draw(0, 3, 5), draw(1, 4, 5), draw(2, 5)]
    semantic, texts, no_object = (tensor.requires_grad_() for tensor in inputs)
    logits = compute_cosine_class_logits(
        semantic,
        texts,
        logit_scale=100.0,
        text_label_ids=torch.tensor([0, 0, 1, 2]),
        no_object_embedding=no_object,
    )
    logits.logsumexp(-1).sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (semantic, texts, no_object))


@pytest.mark.parametrize("shape", [(4, 6), (5,), (0, 5), (1, 4, 5)])
def test_texts_of_another_width(shape):
    with pytest.raises(ValueError, match=r"text_embeds must be \(texts, 5\).*got .*the checkpoint was"):
        compute_cosine_class_logits(torch.zeros(3, 5), torch.zeros(shape), logit_scale=1.0)


@pytest.mark.parametrize(
    ("label_ids", "message"),
    [
        ([0, 1], "one label per text, expected 3"),
        ([0, 2, 2], "cover every label from 0 to 2"),
        ([-1, 0, 1], "cover every label"),
    ],
)
def test_label_ids_that_do_not_fit(label_ids, message):
    with pytest.raises(ValueError, match=message):
        compute_cosine_class_logits(
            torch.ones(2, 5), torch.ones(3, 5), logit_scale=1.0, text_label_ids=torch.tensor(label_ids)
        )
