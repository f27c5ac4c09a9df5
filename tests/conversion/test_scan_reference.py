"""The reference that SCAN's conversion is checked against is checked itself, where it is no plain layer."""

import pytest
import torch
from reference_mask2former import Weights
from reference_scan import (
    CLIP_MEAN,
    CLIP_STD,
    choose_patches,
    compute_gains,
    cut_crops,
    enhance,
    refine,
    run_block,
)

from testing.detectron2_checkpoints import Layout
from testing.scan_checkpoints import TINY, add_blocks, add_integration

WIDTH = TINY.vision


def build_weights(add, *arguments):
    layout = Layout(3)
    add(layout, *arguments)
    return {name: tensor.double() for name, tensor in layout.tensors.items()}


@pytest.mark.parametrize(
    ("side", "sigma", "first", "mean"),
    [
        (16, 9, 0.546, 0.222),
        (16, 7, 0.729, 0.331),
        (16, 3, 0.999, 0.783),
        (14, 9, 0.454, 0.178),
        (14, 7, 0.632, 0.270),
        (14, 3, 0.996, 0.723),
    ],
)
def test_gains_are_those_measured_of_the_official_code(side, sigma, first, mean):
    gains = compute_gains(side, sigma, torch.float64)
    assert gains[0, 0].item() == pytest.approx(first, abs=1e-3)
    assert gains.mean().item() == pytest.approx(mean, abs=1e-3)
    assert gains[side // 2, side // 2] == 0


@pytest.mark.parametrize("side", [4, 5])
def test_sums_over_rows_and_columns_are_fourier_transforms(side):
    tensors = build_weights(add_integration, TINY)
    grid = torch.randn(2, WIDTH, side, side, generator=torch.Generator().manual_seed(0)).double()
    spectrum = torch.fft.fft2(grid) * compute_gains(side, 1.5, torch.float64)
    parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
    layers = [(tensors[f"LFM.conv{index}.weight"], tensors[f"LFM.conv{index}.bias"]) for index in (1, 2)]
    mixed = torch.conv2d(torch.conv2d(parts, *layers[0]).relu(), *layers[1])
    expected = grid + torch.fft.ifft2(torch.complex(*mixed.chunk(2, dim=1))).real
    found = enhance(Weights(tensors).below("LFM"), grid, 1.5)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_block_is_that_of_a_pre_norm_transformer():
    tensors = build_weights(add_blocks, "", WIDTH, 1, TINY)
    block = Weights(tensors).below("transformer.resblocks.0")
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, WIDTH // 64, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
    renamed = {
        f"{own}.{part}": block[f"{name}.{part}"] for own, name in names.items() for part in ("weight", "bias")
    }
    for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        renamed[f"self_attn.{part}"] = block[f"attn.{part}"]
    layer.load_state_dict(renamed)
    tokens = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(run_block(block, tokens), layer(tokens), atol=1e-10, rtol=0)


def test_refinement_is_that_of_sequences_of_one():
    tensors = build_weights(add_integration, TINY)
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(TINY.embed, 8, TINY.feedforward, 0.0, batch_first=True),
        TINY.layers,
        enable_nested_tensor=False,
    ).double()
    prefix = "lightweight_transformer."
    encoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    )
    proposals = torch.randn(6, TINY.embed, generator=torch.Generator().manual_seed(0)).double()
    found = refine(Weights(tensors), proposals)
    torch.testing.assert_close(found, encoder(proposals[:, None])[:, 0], atol=1e-10, rtol=0)


def test_crops_are_tight_and_mean_outside():
    mean = torch.tensor(CLIP_MEAN).double()[:, None, None]
    pixels = mean + torch.full((3, 8, 12), 0.5).double()
    mask_logits = torch.full((3, 8, 12), -9.0).double()
    mask_logits[0, 2:4, 3:5] = 9.0
    mask_logits[2, 0, 0] = mask_logits[2, 7, 11] = 9.0
    crops = cut_crops(pixels, mask_logits, 0.5, 24)
    assert crops.queries == [0, 2]
    # A mask that fills its box is picture alone; two corners of a picture leave most of it out.
    assert crops.masks[0].all()
    torch.testing.assert_close(
        crops.pictures[0], (0.5 / torch.tensor(CLIP_STD).double())[:, None, None].expand(3, 24, 24)
    )
    assert crops.masks[1].sum() == 2 * 3 * 2
    assert crops.pictures[1][:, 8:16, 8:16].abs().max() < 1e-12


def test_a_share_of_the_background_is_chosen():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :5, :4] = True  # one pixel row of a second patch
    masks[1] = True
    chosen = choose_patches(masks, 4, 3, 0.5, seed=0)
    assert chosen.sum(dim=2).tolist() == [[7, 7, 7], [0, 0, 0]]
    assert not chosen[0, :, [0, 4]].any()
    assert not torch.equal(chosen[0, 0], chosen[0, 1])
