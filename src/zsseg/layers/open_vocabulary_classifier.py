"""Classification by cosine similarity with text embeddings, and a learned embedding for "no object"."""

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_cosine_class_logits(
    semantic_embeds: Tensor,
    text_embeds: Tensor,
    *,
    logit_scale: float,
    text_label_ids: Tensor | None = None,
    no_object_embedding: Tensor | None = None,
) -> Tensor:
    """γ · cos(s, [t_1 … t_K, ∅]), the largest over the texts of a label (arXiv:2402.13697, Sec. 3).

    Computed in float32 whatever the inputs' dtype, also under autocast: a scale of 100 leaves bfloat16 two
    significant digits.

    Args:
        semantic_embeds: (..., D), any norm.
        text_embeds: (T, D), any norm; T ≥ K texts.
        logit_scale: γ, the inverse temperature.
        text_label_ids: (T,) label of each text, covering 0..K-1; None when text i is label i.
        no_object_embedding: (D,), appended as column K; None leaves that column out.

    Returns:
        (..., K + 1) float32 logits, or (..., K) without a no-object embedding.

    Raises:
        ValueError: if the widths differ or ``text_label_ids`` does not fit.
    """
    if (
        text_embeds.ndim != 2
        or text_embeds.shape[0] == 0
        or text_embeds.shape[-1] != semantic_embeds.shape[-1]
    ):
        raise ValueError(
            f"text_embeds must be (texts, {semantic_embeds.shape[-1]}), one text or more, to match the "
            f"semantic projector, got {tuple(text_embeds.shape)}: use the text tower (or vectors) that the "
            "checkpoint was trained with"
        )
    with torch.autocast(semantic_embeds.device.type, enabled=False):
        semantic = F.normalize(semantic_embeds.float(), dim=-1)
        text_logits = semantic @ F.normalize(text_embeds.float(), dim=-1).T
        logits = text_logits if text_label_ids is None else _max_over_texts(text_logits, text_label_ids)
        if no_object_embedding is not None:
            no_object = semantic @ F.normalize(no_object_embedding.float(), dim=-1)
            logits = torch.cat([logits, no_object[..., None]], dim=-1)
        return logit_scale * logits


def _max_over_texts(text_logits: Tensor, text_label_ids: Tensor) -> Tensor:
    """(..., T) similarities → (..., K): the largest over each label's texts."""
    if text_label_ids.shape != text_logits.shape[-1:]:
        raise ValueError(
            f"text_label_ids must give one label per text, expected {text_logits.shape[-1]}, "
            f"got {tuple(text_label_ids.shape)}"
        )
    num_labels = int(text_label_ids.max()) + 1
    if len(torch.unique(text_label_ids)) != num_labels or int(text_label_ids.min()) < 0:
        raise ValueError(f"text_label_ids must cover every label from 0 to {num_labels - 1}")
    if num_labels == len(text_label_ids):
        order = torch.argsort(text_label_ids)
        return text_logits[..., order.to(text_logits.device)]
    index = text_label_ids.to(text_logits.device).expand_as(text_logits)
    lowest = text_logits.new_full((*text_logits.shape[:-1], num_labels), -torch.inf)
    return lowest.scatter_reduce(-1, index, text_logits, reduce="amax")
