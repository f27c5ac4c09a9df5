"""What the families need from transformers' public ``Mask2FormerModel`` (arXiv:2112.01527)."""

from dataclasses import dataclass

import torch
from transformers import Mask2FormerConfig, Mask2FormerModel


class MaskTransformerConfig(Mask2FormerConfig):
    """A :class:`~transformers.Mask2FormerConfig` for any backbone.

    Transformers logs a warning for every backbone but Swin, although each ``AutoBackbone`` with four feature
    maps works; this class leaves the warning out and changes nothing else.
    """

    def validate_architecture(self) -> None:
        """Accept every backbone that ``AutoBackbone`` can build."""


@dataclass(frozen=True)
class MaskTransformerFeatures:
    """One forward pass of the mask transformer.

    Attributes:
        query_embeds: per decoder layer (first entry: before any layer) the layer-normed queries (B, Q, d).
        mask_logits: per decoder layer the masks (B, Q, h, w) before the sigmoid.
        pixel_embeds: (B, d, h, w), the pixel decoder's finest features.
        hidden_states: per decoder layer (first entry: before any layer) the queries (B, Q, d) as the next
            layer takes them.
        attentions: per decoder layer the queries' attention to each other (B, heads, Q, Q); only on request.
    """

    query_embeds: tuple[torch.Tensor, ...]
    mask_logits: tuple[torch.Tensor, ...]
    pixel_embeds: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...] | None


def compute_mask_transformer_features(
    mask_transformer: Mask2FormerModel, pixel_values: torch.Tensor, *, output_attentions: bool = False
) -> MaskTransformerFeatures:
    """Run the model once.

    Its ``last_hidden_state`` is not layer-normed, so the queries are taken from the intermediate states,
    which are.

    Args:
        mask_transformer: the public model.
        pixel_values: (B, 3, H, W), normalised.
        output_attentions: return the attentions too.
    """
    outputs = mask_transformer(
        pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True
    )
    return MaskTransformerFeatures(
        query_embeds=tuple(
            state.transpose(0, 1) for state in outputs.transformer_decoder_intermediate_states
        ),
        mask_logits=tuple(outputs.masks_queries_logits),
        pixel_embeds=outputs.pixel_decoder_last_hidden_state,
        hidden_states=tuple(state.transpose(0, 1) for state in outputs.transformer_decoder_hidden_states),
        attentions=outputs.attentions,
    )
