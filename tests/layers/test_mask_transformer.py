import logging

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerModel
from transformers.utils import logging as transformers_logging

from testing.tiny_models import HIDDEN_DIM, NUM_QUERIES, SEGMENTOR_SIZES, build_backbone_config
from zsseg.layers.mask_transformer import MaskTransformerConfig, compute_mask_transformer_features


def build(backbone):
    config = MaskTransformerConfig(backbone_config=build_backbone_config(backbone), **SEGMENTOR_SIZES)
    torch.manual_seed(0)
    return Mask2FormerModel(config).eval()


@pytest.mark.parametrize("backbone", ["swin", "resnet", "mobilenet_v2"])
def test_any_backbone_fits(backbone):
    with torch.no_grad():
        features = compute_mask_transformer_features(build(backbone), torch.randn(2, 3, 64, 96))
    assert [tuple(queries.shape) for queries in features.query_embeds] == [(2, NUM_QUERIES, HIDDEN_DIM)] * 3
    assert [tuple(masks.shape) for masks in features.mask_logits] == [(2, NUM_QUERIES, 16, 24)] * 3
    assert features.pixel_embeds.shape == (2, HIDDEN_DIM, 16, 24)


def test_queries_are_layer_normed_and_read_the_masks():
    model = build("resnet")
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = compute_mask_transformer_features(model, pixel_values)
        outputs = model(pixel_values, output_hidden_states=True)
        decoder = model.transformer_module.decoder
        normed = decoder.layernorm(outputs.transformer_decoder_last_hidden_state)
        if normed.shape[0] == NUM_QUERIES:
            normed = normed.transpose(0, 1)
        embedder = decoder.mask_predictor.mask_embedder
        masks = torch.einsum("bqc,bchw->bqhw", embedder(features.query_embeds[-1]), features.pixel_embeds)
    torch.testing.assert_close(features.query_embeds[-1], normed)
    torch.testing.assert_close(features.mask_logits[-1], masks, atol=1e-5, rtol=1e-5)


def test_hidden_states_are_the_queries_before_the_norm_and_attentions_are_shares():
    model = build("resnet")
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = compute_mask_transformer_features(model, pixel_values, output_attentions=True)
        last = model(pixel_values).transformer_decoder_last_hidden_state
        layernorm = model.transformer_module.decoder.layernorm
        assert torch.equal(features.hidden_states[-1], last)
        for state, queries in zip(features.hidden_states, features.query_embeds, strict=True):
            torch.testing.assert_close(layernorm(state), queries)
    assert [tuple(shares.shape) for shares in features.attentions] == [(2, 2, NUM_QUERIES, NUM_QUERIES)] * 2
    for shares in features.attentions:
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 2, NUM_QUERIES))
    assert compute_mask_transformer_features(model, pixel_values).attentions is None


@pytest.fixture
def transformers_messages(caplog):
    """What transformers says at its usual verbosity, whatever other tests have set or already heard."""
    logger = logging.getLogger("transformers")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    transformers_logging.set_verbosity(verbosity)


def test_no_warning_for_other_backbones(transformers_messages):
    backbone = build_backbone_config("resnet")
    Mask2FormerConfig(backbone_config=backbone)
    assert "Backbone resnet is not a supported model" in transformers_messages.text
    transformers_messages.clear()
    transformers_logging.warning_once.cache_clear()
    config = MaskTransformerConfig(backbone_config=backbone)
    assert transformers_messages.text == ""
    assert config.model_type == "mask2former"
