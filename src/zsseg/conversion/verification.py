"""A converted model against an independent forward pass of the source."""

from collections.abc import Mapping

import torch
from torch import Tensor

from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.models.concat.generator_concat import PrimitiveGenerator
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation

TOLERANCE = 1e-4
"""Largest difference allowed in any number of any output."""

COARSEST_STRIDE = 32
SMALLEST_PICTURE = 96


def build_picture(model: ConcatForPanopticSegmentation) -> Tensor:
    """A fixed picture of noise, wider than high: (1, 3, H, W) float64.

    It is so large that the coarsest features of a Swin are more than one window, and no multiple of it, so
    that shifts and padding count.
    """
    window_size = getattr(model.config.segmentor_config.backbone_config, "window_size", 0)
    height = max(SMALLEST_PICTURE, COARSEST_STRIDE * (window_size + 1))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, height, height + 2 * COARSEST_STRIDE, generator=generator, dtype=torch.float64)


@torch.no_grad()
def compute_segmentor_outputs(
    model: ConcatForPanopticSegmentation, pixel_values: Tensor
) -> dict[str, Tensor]:
    """What is compared of a segmentor.

    Args:
        model: converted, of the dtype of the picture.
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
