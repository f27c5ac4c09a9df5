"""Words to embeddings and pictures to logits, for the pipelines and for evaluation alike."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from zsseg.vocabulary import Vocabulary

POST_PROCESSED = ("class_queries_logits", "masks_queries_logits", "query_weights", "valid_fractions")
"""Outputs that maps of segments are made of."""


def encode_vocabulary(
    model: Any, processor: Any, vocabulary: Vocabulary, *, prompt_templates: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Embed all texts of a vocabulary with the checkpoint's text tower, or look them up where it has none.

    Returns:
        ``text_embeds`` (T, D) and ``text_label_ids`` (T,) on the model's device.

    Raises:
        ValueError: if the checkpoint cannot embed a text.
    """
    encoded = processor.encode_labels(vocabulary, prompt_templates=prompt_templates)
    encoded = {name: tensor.to(model.device) for name, tensor in encoded.items()}
    if "text_embeds" not in encoded:
        encoded["text_embeds"] = model.encode_text(encoded.pop("input_ids"), encoded.pop("attention_mask"))
    return encoded


def compute_picture_outputs(
    model: PreTrainedModel, pictures: Sequence[Mapping[str, Tensor]], **text_inputs: Tensor
) -> list[ModelOutput]:
    """Run the model so that each picture gets the result it would get alone.

    A segmentor attends to padding, so padding a picture to a larger one of its batch changes its result; only
    pictures of equal size share a forward pass.

    Args:
        model: of any family.
        pictures: per picture the processor's ``pixel_values`` (1, 3, H, W) and ``pixel_mask`` (1, H, W).
        text_inputs: ``text_embeds`` and ``text_label_ids``, shared by all pictures.

    Returns:
        Per picture a :class:`~transformers.utils.ModelOutput` of batch size 1 with what post-processing
        reads, in the order given.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[tuple(picture["pixel_values"].shape)].append(index)
    results: dict[int, ModelOutput] = {}
    for indices in groups.values():
        outputs: Any = model(
            pixel_values=torch.cat([pictures[index]["pixel_values"] for index in indices]).to(model.dtype),
            pixel_mask=torch.cat([pictures[index]["pixel_mask"] for index in indices]),
            **text_inputs,
        )
        for row, index in enumerate(indices):
            results[index] = ModelOutput(
                **{
                    name: outputs[name][row : row + 1]
                    for name in POST_PROCESSED
                    if outputs.get(name) is not None
                }
            )
    return [results[index] for index in range(len(pictures))]
