import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from oracles import mask_crops
from oracles.panoptic_merge import resize, sigmoid
from testing.tiny_models import TEXT_WIDTH, build_clip_vision_config
from zsseg.models.scan.contextual_shift import (
    choose_shifted_patches,
    cut_out,
    encode_context,
    encode_shifted,
    find_background_patches,
    iterate_mask_crops,
    resize_whole_pictures,
)

SIZE, PATCH, GRID = 32, 8, 4


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(build_clip_vision_config()).eval()


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def record_blocks(tower, run):
    """What ``run`` returns, and per block of the tower what came in and what went out."""
    inputs, outputs = [], []
    hooks = []
    for block in tower.vision_model.encoder.layers:
        hooks.append(block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach())))
        hooks.append(block.register_forward_hook(lambda _, args, output: outputs.append(output.detach())))
    try:
        with torch.no_grad():
            return run(), inputs, outputs
    finally:
        for hook in hooks:
            hook.remove()


# --- whole pictures -------------------------------------------------------------------------------------


def test_the_context_is_what_the_blocks_give(tower):
    pictures = draw(2, 3, SIZE, SIZE)
    context, inputs, outputs = record_blocks(tower, lambda: encode_context(tower, pictures))
    assert len(context.hidden_states) == 4
    assert torch.equal(context.hidden_states[0], inputs[0])
    for state, output in zip(context.hidden_states[1:], outputs, strict=True):
        assert torch.equal(state, output)
    with torch.no_grad():
        expected = tower(pictures).image_embeds
        last = tower.visual_projection(tower.vision_model.post_layernorm(outputs[-1][:, 0]))
    assert torch.equal(context.image_embeds, expected)
    torch.testing.assert_close(context.image_embeds, last)


def test_grids_and_cls_tokens_of_blocks(tower):
    context, _, outputs = record_blocks(tower, lambda: encode_context(tower, draw(2, 3, SIZE, SIZE)))
    first, third = context.select_grids([1, 3])
    assert first.shape == third.shape == (2, 16, GRID, GRID)
    for row, column in np.ndindex(GRID, GRID):
        assert torch.equal(third[:, :, row, column], outputs[2][:, 1 + row * GRID + column])
    assert torch.equal(first[0, :, 0, 1], outputs[0][0, 2])
    cls = context.select_cls([3, 1])
    assert torch.equal(cls, torch.stack([outputs[2][:, 0], outputs[0][:, 0]], dim=1))


def test_whole_pictures_are_resized_by_nearest_neighbour_with_padding_to_32():
    picture = draw(1, 3, 50, 70)
    padded = np.zeros((3, 64, 96), np.float32)
    padded[:, :50, :70] = picture[0].numpy()
    expected = mask_crops.resize_nearest(padded, (SIZE, SIZE))
    # As a processor pads it to a multiple of 32, as a larger picture of its batch does, and not at all.
    for height, width in ((64, 96), (128, 192), (50, 70)):
        pixels = F.pad(picture, (0, width - 70, 0, height - 50))
        found = resize_whole_pictures(pixels, [(50, 70)], SIZE)
        np.testing.assert_array_equal(found[0].numpy(), expected)


def test_whole_pictures_of_other_sizes_in_one_batch():
    first, second = draw(1, 3, 64, 96), draw(1, 3, 40, 33, seed=2)
    batch = torch.cat([first, F.pad(second, (0, 96 - 33, 0, 64 - 40))])
    found = resize_whole_pictures(batch, [(64, 96), (40, 33)], SIZE)
    assert torch.equal(found[:1], resize_whole_pictures(first, [(64, 96)], SIZE))
    assert torch.equal(found[1:], resize_whole_pictures(second, [(40, 33)], SIZE))


# --- masks cut out --------------------------------------------------------------------------------------


def draw_masks(height=20, width=30):
    masks = torch.zeros(6, height, width, dtype=torch.bool)
    masks[0, 3:9, 5:25] = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[1, 7, 11] = True  # one pixel
    masks[2] = True  # everything
    masks[4, 0, 4] = masks[4, height - 1, 20] = True  # two pixels far apart
    masks[5, height - 1, width - 1] = True  # the corner
    return masks  # the fourth is empty


def test_masks_cut_out_against_the_oracle():
    picture, masks = draw(3, 20, 30), draw_masks()
    crops = cut_out(picture, masks, SIZE)
    assert crops.query_indices.tolist() == [0, 1, 2, 4, 5]
    for crop, query in enumerate(crops.query_indices.tolist()):
        mask = masks[query].numpy()
        expected = torch.from_numpy(mask_crops.cut(picture.double().numpy(), mask, fill=(0, 0, 0)))
        expected = F.interpolate(expected[None], (SIZE, SIZE), mode="bicubic")[0].float()
        torch.testing.assert_close(crops.pixel_values[crop], expected, atol=1e-5, rtol=0)
        top, bottom, left, right = mask_crops.box(mask)
        expected = mask_crops.resize_nearest(mask[top:bottom, left:right], (SIZE, SIZE))
        np.testing.assert_array_equal(crops.masks[crop].numpy(), expected)


def test_one_pixel_becomes_a_crop_of_its_colour():
    picture, masks = draw(3, 20, 30), draw_masks()
    crops = cut_out(picture, masks[1:2], SIZE)
    torch.testing.assert_close(crops.pixel_values[0], picture[:, 7, 11, None, None].expand(3, SIZE, SIZE))
    assert crops.masks.all()


def test_no_mask_gives_no_crop():
    crops = cut_out(draw(3, 20, 30), torch.zeros(4, 20, 30, dtype=torch.bool), SIZE)
    assert crops.pixel_values.shape == (0, 3, SIZE, SIZE)
    assert crops.masks.shape == (0, SIZE, SIZE)
    assert crops.query_indices.shape == (0,)


def draw_two_pictures():
    """Pictures (2, 3, 64, 96) padded from their sizes, and mask logits (2, 7, 16, 24)."""
    sizes = [(64, 96), (40, 33)]
    pixels = draw(2, 3, 64, 96)
    pixels[1, :, 40:] = 0
    pixels[1, :, :, 33:] = 0
    logits = 3 * draw(2, 7, 16, 24, seed=2)
    logits[0, 2] = -9
    logits[1, 5] = -9
    logits[1, 6] = -9
    logits[1, 6, 12:, 12:] = 9  # on padding alone
    return pixels, logits, sizes


def collect(pixels, logits, sizes, **changes):
    arguments = {"threshold": 0.4, "size": SIZE, "batch_size": 32, **changes}
    return list(iterate_mask_crops(pixels, logits, sizes, **arguments))


def test_crops_of_a_batch_against_the_oracle():
    pixels, logits, sizes = draw_two_pictures()
    expected_rows = []
    crops = collect(pixels, logits, sizes)
    for batch, (image, (height, width)) in zip(crops, enumerate(sizes), strict=True):
        masks = sigmoid(resize(logits[image], (64, 96)))[:, :height, :width] > 0.4
        expected_rows += [(image, query) for query in range(7) if masks[query].any()]
        expected = cut_out(pixels[image, :, :height, :width], torch.from_numpy(masks), SIZE)
        assert torch.equal(batch.masks, expected.masks)
        torch.testing.assert_close(batch.pixel_values, expected.pixel_values)
    found = [
        pair
        for batch in crops
        for pair in zip(batch.image_indices.tolist(), batch.query_indices.tolist(), strict=True)
    ]
    assert found == expected_rows
    assert (0, 2) not in found
    assert (1, 5) not in found
    assert (1, 6) not in found
    assert len(found) == 11


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_crops_in_small_batches_are_the_same_crops(batch_size):
    expected = collect(*draw_two_pictures())
    found = collect(*draw_two_pictures(), batch_size=batch_size)
    assert max(len(batch.masks) for batch in found) == batch_size
    for name in ("pixel_values", "masks", "image_indices", "query_indices"):
        for parts in (expected, found):
            assert all(len(getattr(batch, name)) for batch in parts)
        joined = [torch.cat([getattr(batch, name) for batch in parts]) for parts in (found, expected)]
        assert torch.equal(*joined), name


def test_the_threshold_is_exclusive():
    logits = torch.zeros(1, 1, 4, 4)
    assert not collect(draw(1, 3, 16, 16), logits, [(16, 16)], threshold=0.5)
    (crops,) = collect(draw(1, 3, 16, 16), logits, [(16, 16)], threshold=0.49)
    assert crops.masks.all()


# --- patches --------------------------------------------------------------------------------------------


def test_background_patches_against_the_oracle():
    masks = torch.rand(6, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) > 0.98
    masks[1] = False
    masks[2] = True
    masks[3] = False
    masks[3, 8, 15] = True  # one pixel, at the corner of a patch
    found = find_background_patches(masks, PATCH)
    for row, mask in zip(found.numpy(), masks.numpy(), strict=True):
        np.testing.assert_array_equal(row, mask_crops.is_background(mask, PATCH))
    assert found.sum(dim=1)[1:4].tolist() == [16, 0, 15]
    assert not found[3, 5]
    assert 0 < found[0].sum() < 16


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.15, 0.5, 0.99, 1.0])
def test_chosen_patches_against_the_oracle(ratio):
    generator = torch.Generator().manual_seed(4)
    is_background = torch.rand(20, 49, generator=generator) > torch.linspace(0, 1, 20)[:, None]
    is_background[0], is_background[1] = True, False
    priorities = torch.rand(20, 3, 49, generator=generator)
    chosen = choose_shifted_patches(is_background, ratio, priorities)
    for crop, layer in np.ndindex(20, 3):
        expected = mask_crops.choose(is_background[crop].numpy(), ratio, priorities[crop, layer].tolist())
        assert set(chosen[crop, layer].nonzero()[:, 0].tolist()) == expected
    assert chosen[0, 0].sum() == int(ratio * 49)
    assert not chosen[1].any()


def test_every_background_patch_is_as_likely():
    is_background = torch.zeros(4000, 16, dtype=torch.bool)
    is_background[:, 4:12] = True
    priorities = torch.rand(4000, 1, 16, generator=torch.Generator().manual_seed(5))
    shares = choose_shifted_patches(is_background, 0.5, priorities)[:, 0].float().mean(dim=0)
    assert shares[:4].tolist() == shares[12:].tolist() == [0.0] * 4
    # Half of them; 4000 draws have a standard deviation of 0.008.
    assert (shares[4:12] - 0.5).abs().max() < 0.04


def test_chosen_patches_become_the_frozen_cls_and_no_other_token_changes(tower):
    torch.manual_seed(1)
    shifted = CLIPVisionModelWithProjection(build_clip_vision_config()).eval()
    context, _, context_outputs = record_blocks(tower, lambda: encode_context(tower, draw(2, 3, SIZE, SIZE)))
    crops, images = draw(3, 3, SIZE, SIZE, seed=6), torch.tensor([0, 1, 1])
    layers = (1, 3)
    is_shifted = torch.rand(3, 2, GRID**2, generator=torch.Generator().manual_seed(7)) > 0.6
    found, inputs, outputs = record_blocks(
        shifted,
        lambda: encode_shifted(
            shifted,
            crops,
            shift_layers=layers,
            context_cls=context.select_cls(layers)[images],
            is_shifted=is_shifted,
        ),
    )
    # Behind block 1: what block 2 takes is what it gave, but for the chosen patches.
    for crop, patch in np.ndindex(3, GRID**2):
        is_chosen = is_shifted[crop, 0, patch]
        expected = context_outputs[0][images[crop], 0] if is_chosen else outputs[0][crop, 1 + patch]
        assert torch.equal(inputs[1][crop, 1 + patch], expected)
    assert torch.equal(inputs[1][:, 0], outputs[0][:, 0])
    # Behind block 2, which is not in the list, nothing happens.
    assert torch.equal(inputs[2], outputs[1])
    # Behind the last block only CLS is read, which the shift leaves alone.
    with torch.no_grad():
        expected = shifted.visual_projection(shifted.vision_model.post_layernorm(outputs[2][:, 0]))
    assert found.shape == (3, TEXT_WIDTH)
    torch.testing.assert_close(found, expected)


def test_without_a_shift_it_is_clip(tower):
    crops = draw(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = tower(crops).image_embeds
        torch.testing.assert_close(encode_shifted(tower, crops), expected)
        none = encode_shifted(
            tower,
            crops,
            shift_layers=(1, 2),
            context_cls=draw(3, 2, 16),
            is_shifted=torch.zeros(3, 2, GRID**2, dtype=torch.bool),
        )
        some = encode_shifted(
            tower,
            crops,
            shift_layers=(1, 2),
            context_cls=draw(3, 2, 16),
            is_shifted=torch.ones(3, 2, GRID**2, dtype=torch.bool),
        )
    torch.testing.assert_close(none, expected)
    assert (some - expected).abs().max() > 0.01
