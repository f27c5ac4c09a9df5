"""A converted model against an independent forward pass of the source."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zsseg.conversion.open_clip_layout import build_token_ids
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.models.concat.generator_concat import PrimitiveGenerator
from zsseg.models.scan.contextual_shift import iterate_mask_crops
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation, compute_ensemble_scores

TOLERANCE = 1e-4
"""Largest difference allowed in any number of any output."""

COARSEST_STRIDE = 32
SMALLEST_PICTURE = 96
NUM_CROPS = 6
OUTSIDE, INSIDE = -8.0, 7.0
"""Mask logits, unlike in size: halfway between them lies no threshold anybody would choose."""


def build_picture(model: Any) -> Tensor:
    """A fixed picture of noise, wider than high: (1, 3, H, W) float64.

    It is so large that the coarsest features of a Swin are more than one window, and no multiple of it, so
    that shifts and padding count.
    """
    window_size = getattr(model.config.segmentor_config.backbone_config, "window_size", 0)
    height = max(SMALLEST_PICTURE, COARSEST_STRIDE * (window_size + 1))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, height, height + 2 * COARSEST_STRIDE, generator=generator, dtype=torch.float64)


@torch.no_grad()
def compute_segmentor_outputs(model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """What is compared of a segmentor.

    Args:
        model: converted, of any family around a segmentor, of the dtype of the picture.
        pixel_values: (B, 3, H, W).

    Returns:
        By name: features of the backbone's four levels, "pixel embeddings" (B, d, h, w), and of all decoder
        layers "queries" (L, B, Q, d) and "masks" (L, B, Q, h, w).
    """
    features = model.segmentor.pixel_level_module.encoder(pixel_values).feature_maps
    outputs = compute_mask_transformer_features(model.segmentor, pixel_values)
    return {
        **{f"backbone, level {level}": feature for level, feature in enumerate(features, start=1)},
        "pixel embeddings": outputs.pixel_embeds,
        "queries": torch.stack(outputs.query_embeds),
        "masks": torch.stack(outputs.mask_logits),
    }


@torch.no_grad()
def compute_generator_outputs(generator: PrimitiveGenerator, text_embeds: Tensor) -> dict[str, Tensor]:
    """What is compared of PADing's generator, for (K, D) text vectors, without noise."""
    queries = generator(text_embeds, noise_scale=0.0)
    related, unrelated = generator.related_projection(queries), generator.unrelated_projection(queries)
    return {
        "generated queries": queries,
        "related parts": related,
        "unrelated parts": unrelated,
        "relation logits": generator.compute_relation_logits(related, generator.text_projection(text_embeds)),
        "rebuilt queries": generator.part_decoder(torch.cat([related, unrelated], dim=1)),
    }


def build_scan_inputs(model: ScanForSemanticSegmentation) -> tuple[Tensor, Tensor]:
    """Masks to cut out, and texts, for the picture of :func:`build_picture`.

    Returns:
        (Q, h, w) logits of masks of two rectangles each, a quarter of the picture's size, far from any
        threshold even between their pixels; those behind the first few are empty, as crops take long. And
        three texts (3, L) of random tokens, of different lengths.
    """
    height, width = (edge // 4 for edge in build_picture(model).shape[-2:])
    num_queries = model.config.segmentor_config.num_queries
    generator = torch.Generator().manual_seed(0)
    mask_logits = torch.full((num_queries, height, width), OUTSIDE, dtype=torch.float64)
    for query in range(min(NUM_CROPS, num_queries - 1)):
        for _ in range(2):
            top, left = (int(torch.randint(0, edge - 2, (), generator=generator)) for edge in (height, width))
            rows = int(torch.randint(2, (height - top) // 2 + 2, (), generator=generator))
            columns = int(torch.randint(2, (width - left) // 2 + 2, (), generator=generator))
            mask_logits[query, top : top + rows, left : left + columns] = INSIDE
    text = model.config.text_config
    return mask_logits, build_token_ids(text.vocab_size, text.max_position_embeddings, generator)


@torch.no_grad()
def compute_scan_outputs(
    model: ScanForSemanticSegmentation,
    pixel_values: Tensor,
    mask_logits: Tensor,
    input_ids: Tensor,
    is_shifted: Tensor,
) -> dict[str, Tensor]:
    """What is compared of a SCAN beside its segmentor.

    Args:
        model: converted, of the dtype of the picture.
        pixel_values: (1, 3, H, W), without padding.
        mask_logits: (Q, h, w), the masks to cut out.
        input_ids: (K, L), one text a label.
        is_shifted: (N, layers, G²) bool, of the N masks that are not empty.

    Returns:
        By name: "whole picture" (1, D), "text embeddings" (K, D), "proposal embeddings" (1, Q, D), "class
        logits" (1, Q, K + 1), "crop embeddings" (N, D) and the ensemble's "scores" (Q, K).
    """
    config = model.config
    outputs = compute_segmentor_outputs(model, pixel_values)
    texts = model.text_model(input_ids=input_ids).text_embeds
    predicted = model(pixel_values=pixel_values, text_embeds=texts, mode="in_vocab_only")
    height, width = pixel_values.shape[-2:]
    sizes = [(height, width)]
    clip_pixels = model.normalise_for_clip(pixel_values)
    context = model.encode_context(clip_pixels, sizes)
    crops = list(
        iterate_mask_crops(
            clip_pixels,
            mask_logits[None],
            sizes,
            threshold=config.crop_mask_threshold,
            size=config.vision_config.image_size,
            batch_size=config.crop_batch_size,
        )
    )
    counts = [len(part.query_indices) for part in crops]
    shifted = is_shifted.split(counts) if sum(counts) == len(is_shifted) else [None] * len(counts)
    embeds = torch.cat(
        [model.encode_crops(part, context, chosen) for part, chosen in zip(crops, shifted, strict=True)]
    )
    queries = torch.cat([part.query_indices for part in crops])
    clip_logits = torch.zeros(1, len(mask_logits), len(texts), dtype=embeds.dtype)
    clip_logits[0, queries] = config.logit_scale * F.normalize(embeds, dim=-1) @ F.normalize(texts, dim=-1).T
    is_valid = torch.zeros(1, len(mask_logits), dtype=torch.bool)
    is_valid[0, queries] = True
    scores = compute_ensemble_scores(
        predicted.class_queries_logits, clip_logits, is_valid, clip_weight=config.ensemble_weight
    )
    return {
        **outputs,
        "whole picture": context.image_embeds,
        "text embeddings": texts,
        "proposal embeddings": predicted.semantic_embeds,
        "class logits": predicted.class_queries_logits,
        "crop embeddings": embeds,
        "scores": scores[0],
    }


@torch.no_grad()
def compute_differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each output.

    Raises:
        ValueError: if outputs or their shapes differ.
    """
    if expected.keys() != found.keys():
        raise ValueError(f"the outputs have other names: {sorted(expected)} and {sorted(found)}")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise ValueError(
                f"{name}: the source gives {tuple(tensor.shape)}, the converted model "
                f"{tuple(found[name].shape)}; the conversion is wrong"
            )
    return {name: float((tensor - found[name]).abs().max()) for name, tensor in expected.items()}


def check_differences(differences: Mapping[str, float]) -> None:
    """Make sure that all are within the tolerance.

    Raises:
        ValueError: if one is not, or is no number.
    """
    # A NaN compares as neither smaller nor larger.
    if wrong := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
        raise ValueError(
            "the converted model computes something else than the source: "
            + ", ".join(f"{name} differ by {value:.2g}" for name, value in wrong.items())
            + f" (allowed: {TOLERANCE:g}). Nothing was written; either the file is of an architecture that "
            "this conversion does not know, or the conversion is wrong"
        )


def format_differences(differences: Mapping[str, float]) -> str:
    """Lines for reading, one for each output; or that nothing was compared."""
    if not differences:
        return "not compared with a forward pass of the source (--verify does)"
    return "\n".join(f"verified {value:8.1e}  {name}" for name, value in differences.items())
