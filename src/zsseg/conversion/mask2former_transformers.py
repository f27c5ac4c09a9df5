"""Mask2Former as transformers saves it → CONCAT."""

from typing import Any

import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from zsseg.conversion.converted_checkpoint import NEW_PARTS, TEXT_TOWER
from zsseg.conversion.source_weights import ConversionBooks, SourceWeights
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.models.base import load_whole
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor


def load_original(checkpoint: str) -> Any:
    """The original model.

    Raises:
        OSError: if nothing is found there, or the file is damaged.
        ValueError: if it is of another kind, lacks weights, or holds weights that the model does not have.
    """
    model_types = (Mask2FormerConfig.model_type,)
    return load_whole(
        Mask2FormerForUniversalSegmentation, checkpoint, model_types, allow_left_over=False
    ).eval()


def convert_mask2former(
    checkpoint: str, *, clip: str, seed: int = 0
) -> tuple[ConcatForPanopticSegmentation, ConcatProcessor, ConversionBooks]:
    """A CONCAT with the segmentor of a Mask2Former, and what became of its weights.

    Args:
        checkpoint: folder or Hub id.
        clip: the text tower's folder or Hub id.
        seed: of what is new.

    Raises:
        OSError: if a checkpoint is not found.
        ValueError: if one is of another kind, or weights are left over.
    """
    source = SourceWeights(load_original(checkpoint).state_dict())
    torch.manual_seed(seed)
    model = ConcatForPanopticSegmentation.from_mask2former(checkpoint, clip=clip).eval()
    target = model.state_dict()
    for name in source.tensors:
        new_name = f"segmentor.{name.removeprefix('model.')}"
        if name.startswith("model.") and torch.equal(source.tensors[name], target[new_name]):
            source.take(name, new_name)
    source.drop(r"class_predictor\..*", "classifier of a fixed list; CONCAT names queries by text")
    source.drop(r"criterion\.empty_weight", "weights of the training's loss")
    source.check_accounted()
    used = {target for targets in source.books.used.values() for target in targets}
    for pattern, reason in (NEW_PARTS | TEXT_TOWER).items():
        part = pattern.partition("\\")[0]
        source.books.fresh |= {name: reason for name in target if name not in used and name.startswith(part)}
    return model, ConcatProcessor.from_mask2former(checkpoint, clip=clip), source.books


@torch.no_grad()
def compute_original_outputs(original: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """What the original class itself returns: masks, class logits, pixel embeddings."""
    outputs = original(pixel_values)
    return {
        "pixel embeddings": outputs.pixel_decoder_last_hidden_state,
        "masks": outputs.masks_queries_logits,
        "class logits": outputs.class_queries_logits,
    }


@torch.no_grad()
def compute_converted_outputs(
    model: ConcatForPanopticSegmentation, classifier: Any, pixel_values: Tensor
) -> dict[str, Tensor]:
    """The same of the converted model, whose queries the original's classifier names."""
    features = compute_mask_transformer_features(model.segmentor, pixel_values)
    return {
        "pixel embeddings": features.pixel_embeds,
        "masks": features.mask_logits[-1],
        "class logits": classifier(features.query_embeds[-1]),
    }
