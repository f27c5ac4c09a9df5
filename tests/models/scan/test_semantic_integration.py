import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oracles import low_frequency_enhancement, query_refinement
from zsseg.models.scan.semantic_integration import (
    LowFrequencyEnhancement,
    SemanticIntegration,
    build_low_frequency_gains,
)

TOKEN_DIM, EMBED_DIM, GRID, LEVELS = 6, 8, 4, 3


def build_sim(seed=0, **changes):
    torch.manual_seed(seed)
    sim = SemanticIntegration(
        TOKEN_DIM,
        EMBED_DIM,
        **{"sigmas": (9.0, 7.0, 3.0), "num_steps": 3, "num_heads": 2, "num_encoder_layers": 2}
        | {"feedforward_dim": 10}
        | changes,
    )
    # Norms and biases that do nothing would hide that they were left out.
    with torch.no_grad():
        for parameter in sim.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return sim.eval()


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_tokens(batch=2):
    return [draw(batch, TOKEN_DIM, GRID, GRID, seed=level) for level in range(LEVELS)]


def to_arrays(module):
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def get_conv(conv):
    return conv.weight.detach().double().numpy()[:, :, 0, 0], conv.bias.detach().double().numpy()


@pytest.mark.parametrize(
    ("size", "sigma", "constant", "mean"),
    [
        (16, 9, 0.546, 0.222),
        (16, 7, 0.729, 0.331),
        (16, 3, 0.999, 0.783),
        (14, 9, 0.454, 0.178),
        (14, 7, 0.632, 0.270),
        (14, 3, 0.996, 0.723),
    ],
)
def test_gains_are_those_of_the_official_model(size, sigma, constant, mean):
    gains = build_low_frequency_gains(size, sigma)
    assert gains[0, 0].item() == pytest.approx(constant, abs=6e-4)
    assert gains.mean().item() == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize("size", [3, 4, 7, 14])
def test_gains_against_the_oracle(size):
    for sigma in (0.5, 3.0, 9):
        expected = low_frequency_enhancement.gains(size, sigma)
        np.testing.assert_allclose(build_low_frequency_gains(size, sigma).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("size", [4, 5])
def test_enhancement_against_the_oracle(size):
    torch.manual_seed(0)
    module, features = LowFrequencyEnhancement(TOKEN_DIM), draw(2, TOKEN_DIM, size, size)
    with torch.no_grad():
        found = module(features, 1.5)
    for picture, expected_input in zip(found, features.double().numpy(), strict=True):
        expected = low_frequency_enhancement.enhance(
            expected_input, 1.5, get_conv(module.conv1), get_conv(module.conv2)
        )
        np.testing.assert_allclose(picture.numpy(), expected, atol=1e-4)


def test_enhancement_is_float32_under_autocast():
    torch.manual_seed(0)
    module, features = LowFrequencyEnhancement(TOKEN_DIM), draw(1, TOKEN_DIM, GRID, GRID)
    expected = module(features, 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(features, 3.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_enhancement_with_bfloat16_weights_transforms_in_float32():
    torch.manual_seed(0)
    module, features = LowFrequencyEnhancement(TOKEN_DIM), draw(1, TOKEN_DIM, GRID, GRID)
    expected = module(features, 3.0)
    found = module.bfloat16()(features.bfloat16(), 3.0)
    assert found.dtype == torch.float32
    # Weights and inputs keep eight bits.
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_the_module_step_by_step():
    sim, proposals, tokens, image = build_sim(), draw(2, 5, EMBED_DIM), draw_tokens(), draw(2, EMBED_DIM)
    with torch.no_grad():
        found = sim(proposals, tokens, image)
    weights = to_arrays(sim)
    convs = get_conv(sim.lfe.conv1), get_conv(sim.lfe.conv2)
    for row in range(2):
        levels = [
            low_frequency_enhancement.enhance(level[row].double().numpy(), sigma, *convs)
            for level, sigma in zip(tokens, (9.0, 7.0, 3.0), strict=True)
        ]
        memory = np.concatenate([level.reshape(TOKEN_DIM, -1).T for level in levels])
        assert memory.shape == (LEVELS * GRID**2, TOKEN_DIM)
        for name in ("fc1", "fc2"):
            memory = memory @ weights[f"token_proj.{name}.weight"].T + weights[f"token_proj.{name}.bias"]
        queries = proposals[row].double().numpy()
        for step in range(3):
            queries = query_refinement.cross_attend(queries, memory, to_arrays(sim.cross_attn[step]), 2)
            if step < 2:
                norm = weights[f"cross_norm.{step}.weight"], weights[f"cross_norm.{step}.bias"]
                queries = np.stack([query_refinement.layer_norm(query, *norm) for query in queries])
        context = image[row].double().numpy()
        queries = queries + weights["cls_scale"] * context / np.linalg.norm(context)
        layers = [to_arrays(layer) for layer in sim.encoder.layers]
        expected = np.stack([query_refinement.refine(query, layers) for query in queries])
        assert expected.std(axis=0).mean() > 0.1  # else any query would do for another
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-3)


def test_tokens_as_they_are_without_enhancement():
    sim, tokens = build_sim(has_low_frequency_enhancement=False), draw_tokens()
    assert sim.lfe is None
    with torch.no_grad():
        memory = sim.build_memory(tokens)
        expected = sim.token_proj(tokens[1].flatten(2).transpose(1, 2))
    assert memory.shape == (2, LEVELS * GRID**2, EMBED_DIM)
    torch.testing.assert_close(memory[:, GRID**2 : 2 * GRID**2], expected)


# With gradients PyTorch takes the layers apart, without it runs each in one kernel.
@pytest.mark.parametrize("with_gradients", [False, True])
def test_encoder_layers_over_one_query_are_a_residual_mlp(with_gradients):
    sim, queries = build_sim(), draw(7, 1, EMBED_DIM)
    layers = [to_arrays(layer) for layer in sim.encoder.layers]
    with torch.set_grad_enabled(with_gradients):
        found = sim.encoder(queries).detach()[:, 0].numpy()
    expected = [query_refinement.refine(query, layers) for query in queries[:, 0].double().numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_queries_never_mix():
    sim, tokens, image = build_sim(), draw_tokens(1), draw(1, EMBED_DIM)
    proposals = draw(1, 5, EMBED_DIM).requires_grad_()
    whole = sim(proposals, tokens, image)
    for query in range(5):
        alone = sim(proposals[:, query : query + 1], tokens, image)
        torch.testing.assert_close(alone[:, 0], whole[:, query], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(whole[0, 2].square().sum(), proposals)
    is_reached = gradient[0].abs().amax(dim=-1) > 0
    assert is_reached.tolist() == [False, False, True, False, False]


def test_pictures_never_mix():
    sim, proposals, tokens, image = build_sim(), draw(2, 5, EMBED_DIM), draw_tokens(), draw(2, EMBED_DIM)
    with torch.no_grad():
        both = sim(proposals, tokens, image)
        for row in range(2):
            part = slice(row, row + 1)
            alone = sim(proposals[part], [level[part] for level in tokens], image[part])
            torch.testing.assert_close(both[part], alone, atol=1e-5, rtol=1e-5)


def test_the_norm_of_the_picture_embedding_does_not_matter_and_its_direction_does():
    sim, proposals, tokens, image = build_sim(), draw(2, 5, EMBED_DIM), draw_tokens(), draw(2, EMBED_DIM)
    with torch.no_grad():
        sim.cls_scale.fill_(0.7)
        expected = sim(proposals, tokens, image)
        torch.testing.assert_close(sim(proposals, tokens, 7 * image), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(sim(proposals, tokens, -image), expected, atol=1e-2)
        sim.cls_scale.zero_()
        torch.testing.assert_close(sim(proposals, tokens, image), sim(proposals, tokens, -image))


def test_dropout_is_of_training_only():
    sim, proposals, tokens = build_sim(dropout=0.5), draw(1, 5, EMBED_DIM), draw_tokens(1)
    image = F.normalize(draw(1, EMBED_DIM), dim=-1)
    assert torch.equal(sim(proposals, tokens, image), sim(proposals, tokens, image))
    sim.train()
    assert not torch.equal(sim(proposals, tokens, image), sim(proposals, tokens, image))
