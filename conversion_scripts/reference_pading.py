"""The forward pass of PADing's generator on weights by its own names, to check conversions against.

Written from the paper (arXiv:2306.11087) and the published layout; shares no code with zsseg.
"""

import torch
from reference_mask2former import Weights, fused_attention, layer_norm, linear
from torch import Tensor
from torch.nn import functional as F

NUM_HEADS = 8


@torch.no_grad()
def run_generator(tensors: dict[str, Tensor], text_embeds: Tensor) -> dict[str, Tensor]:
    """Without noise and dropout, in the dtype of the texts.

    Args:
        tensors: by PADing's names.
        text_embeds: (K, D).

    Returns:
        By name: "generated queries", their "related parts" and "unrelated parts" and the "rebuilt queries",
        all (K, d); "relation logits" (K, K) of related parts and texts, before the sigmoid.
    """
    weights = Weights(
        {name: value.to(text_embeds.dtype) for name, value in tensors.items() if value.is_floating_point()}
    )
    texts = linear(weights, "fc_projection", text_embeds)
    # Every text is a sequence of one token.
    hidden = texts[:, None]
    primitives = weights["dict_feature.weight"].expand(len(texts), -1, -1)
    for index in weights.indices("generator.layers"):
        layer = weights.below(f"generator.layers.{index}")
        hidden = layer_norm(
            layer,
            "norm1",
            hidden + fused_attention(layer.below("self_attn"), hidden, hidden, hidden, NUM_HEADS),
        )
        attended = fused_attention(layer.below("multihead_attn"), hidden, primitives, primitives, NUM_HEADS)
        hidden = layer_norm(layer, "norm2", hidden + attended)
        widened = linear(layer, "linear2", F.relu(linear(layer, "linear1", hidden)))
        hidden = layer_norm(layer, "norm3", hidden + widened)
    queries = layer_norm(weights, "generator.norm", hidden)[:, 0]

    related, unrelated = (
        run_encoder(weights.below(f"projection_{kind}"), queries) for kind in ("related", "unrelated")
    )
    pairs = torch.cat([related[:, None].expand(-1, len(texts), -1), texts.expand(len(texts), -1, -1)], dim=-1)
    logits = linear(weights, "relation.fc2", F.relu(linear(weights, "relation.fc1", pairs)))[..., 0]
    rebuilt = torch.cat([related, unrelated], dim=1)
    for index in (0, 3):
        rebuilt = F.leaky_relu(linear(weights, f"decoder.decoder.{index}", rebuilt), 0.2)
    return {
        "generated queries": queries,
        "related parts": related,
        "unrelated parts": unrelated,
        "relation logits": logits,
        "rebuilt queries": rebuilt,
    }


def run_encoder(weights: Weights, queries: Tensor) -> Tensor:
    """Two linear layers and a leaky ReLU."""
    return F.leaky_relu(linear(weights, "encoder.1", linear(weights, "encoder.0", queries)), 0.2)
