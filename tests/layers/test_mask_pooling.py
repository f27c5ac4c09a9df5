import numpy as np
import torch

from zsseg.layers.mask_pooling import pool_by_masks


def test_features_are_averaged_over_the_cells_a_mask_covers():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 5, 4, 6, generator=generator)
    masks = [torch.rand(3, 8, 12, generator=generator) < 0.4, torch.rand(1, 8, 12, generator=generator) < 0.4]
    pooled = pool_by_masks(features, masks)
    assert pooled.shape == (4, 5)
    owners = [0, 0, 0, 1]
    for row, owner, mask in zip(pooled, owners, torch.cat(masks).numpy(), strict=True):
        # Each cell is 2 × 2 pixels.
        covered = [[mask[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(6)] for y in range(4)]
        cells = features[owner].numpy()
        expected = sum(covered[y][x] * cells[:, y, x] for y in range(4) for x in range(6)) / np.sum(covered)
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-5)


def test_a_mask_smaller_than_a_cell_still_counts_and_an_empty_one_gives_zero():
    features = torch.arange(4.0).view(1, 1, 2, 2)
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 12, 12] = True
    assert pool_by_masks(features, [masks])[:, 0].tolist() == [3.0, 0.0]


def test_an_image_without_masks_adds_no_row():
    features = torch.ones(2, 3, 2, 2)
    masks = [torch.zeros(0, 4, 4), torch.ones(2, 4, 4)]
    torch.testing.assert_close(pool_by_masks(features, masks), torch.ones(2, 3))
