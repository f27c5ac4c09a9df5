"""Contrastive losses between pictures and texts."""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_image_text_contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, text_indices: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """Symmetric InfoNCE between pictures and the distinct texts of a batch.

    Pictures may share a text: none of them is then a negative of the others, unlike in CLIP's own loss, where
    every other row is one.

    Args:
        image_embeds: (B, D), any norm.
        text_embeds: (T, D), any norm, each text once.
        text_indices: (B,) int64, the text of each picture; every text has at least one.
        logit_scale: inverse temperature.

    Returns:
        Scalar: the mean of picture → text and text → picture cross-entropy.

    Reference:
        CLIP, Sec. 2.3 (arXiv:2103.00020); several positives as in supervised contrastive learning
        (arXiv:2004.11362).
    """
    # (B, T)
    logits = logit_scale * F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T
    image_to_text = F.cross_entropy(logits, text_indices)
    is_positive = F.one_hot(text_indices, num_classes=len(text_embeds)).T.to(logits.dtype)
    log_probabilities = torch.log_softmax(logits.T, dim=-1)
    positives_per_text = is_positive.sum(dim=-1)
    text_to_image = -(log_probabilities * is_positive).sum(dim=-1) / positives_per_text
    return (image_to_text + text_to_image.mean()) / 2
