import numpy as np
import pytest
import torch

from oracles.contrastive import image_text_contrastive_loss
from zsseg.losses.contrastive import compute_image_text_contrastive_loss


def draw(seed, pictures=7, texts=4, width=5):
    generator = np.random.default_rng(seed)
    indices = np.concatenate([np.arange(texts), generator.integers(0, texts, pictures - texts)])
    return (
        generator.normal(size=(pictures, width)),
        generator.normal(size=(texts, width)),
        generator.permutation(indices),
    )


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loss_written_out_pair_by_pair(seed):
    images, texts, indices = draw(seed)
    loss = compute_image_text_contrastive_loss(
        torch.from_numpy(images), torch.from_numpy(texts), torch.from_numpy(indices), 7.0
    )
    assert float(loss) == pytest.approx(image_text_contrastive_loss(images, texts, indices, 7.0))


def test_pictures_of_one_text_do_not_repel_each_other():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = compute_image_text_contrastive_loss(images, text, torch.tensor([0, 0, 1]), 50.0)
    # Two pictures share one text's probability: ln 2 for that text, nothing for the other.
    assert float(loss) == pytest.approx(np.log(2) / 4, abs=1e-6)


def test_the_order_of_pictures_and_their_norm_do_not_matter():
    images, texts, indices = (torch.from_numpy(values) for values in draw(3))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    loss = compute_image_text_contrastive_loss(images, texts, indices, 5.0)
    permuted = compute_image_text_contrastive_loss(images[order] * 3.0, texts * 0.5, indices[order], 5.0)
    torch.testing.assert_close(permuted, loss)
