"""PADing's weights beside its Mask2Former → CONCAT's generator "primitives" (arXiv:2306.11087)."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zsseg.conversion.mask2former_layout import MARKER as SEGMENTOR_MARKER
from zsseg.conversion.mask2former_layout import OTHER_KINDS, PADING_PATTERN
from zsseg.conversion.source_weights import SourceWeights, read_source_weights
from zsseg.models.concat.generator_concat import PrimitiveGenerator

TEXT_PROJECTION = "fc_projection"
MARKER = f"{TEXT_PROJECTION}.weight"
GENERATOR_PATTERN = r"(fc_projection|dict_feature|generator|projection_(un)?related|relation|decoder)\..*"
"""Everything of PADing that is neither its segmentor nor its classifier."""

AFFINE = ("weight", "bias")
RENAMED = {
    TEXT_PROJECTION: "text_projection",
    "generator.norm": "norm",
    "projection_related.encoder.0": "related_projection.0",
    "projection_related.encoder.1": "related_projection.1",
    "projection_unrelated.encoder.0": "unrelated_projection.0",
    "projection_unrelated.encoder.1": "unrelated_projection.1",
    "relation.fc2": "relation_score",
    "decoder.decoder.0": "part_decoder.0",
    "decoder.decoder.3": "part_decoder.3",
}
LAYER_RENAMED = {
    "multihead_attn.out_proj": "cross_attention.out_proj",
    "norm1": "self_projection_norm",
    "norm2": "cross_attention_norm",
    "linear1": "perceptron.0",
    "linear2": "perceptron.3",
    "norm3": "perceptron_norm",
}


def read_pading_weights(path: Path, prefix: str = "") -> SourceWeights:
    """The weights of a file by PADing, without a prefix of their names.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if they are of another kind.
    """
    weights = read_source_weights(path, prefix)
    weights.check_marker(SEGMENTOR_MARKER, "PADing", OTHER_KINDS)
    if not any(re.match(PADING_PATTERN, name) for name in weights.tensors):
        raise ValueError(
            "these are the weights of a Mask2Former alone, as PADing starts from: use "
            "convert_mask2former_detectron2_to_zsseg.py"
        )
    return weights


def drop_classifier(weights: SourceWeights) -> None:
    """Drop PADing's classifier, which CONCAT has no place for."""
    weights.drop(r"new_fc\..*", "PADing's classifier of a fixed list; CONCAT names queries by text")


def drop_generator(weights: SourceWeights) -> None:
    """Drop the generator and what its losses need, for who wants the segmentor alone."""
    weights.drop(GENERATOR_PATTERN, "PADing's generator, left out as asked")


@dataclass(frozen=True)
class GeneratorSizes:
    """Those of PADing's generator.

    Attributes:
        embed_dim: width of the text vectors it was trained with, 512 for CLIP ViT-B/16, 300 for word2vec.
        query_dim: width of the queries it makes.
        hidden_dim: of its perceptrons.
        num_primitives: learned primitives.
    """

    embed_dim: int
    query_dim: int
    hidden_dim: int
    num_primitives: int


def read_generator_sizes(weights: SourceWeights) -> GeneratorSizes:
    """Read the sizes from the shapes.

    Raises:
        ValueError: if weights are missing, or there is another number of layers than CONCAT's generator has.
    """
    if MARKER not in weights:
        raise ValueError(
            "this file of PADing holds no generator, as before it is trained: convert the segmentor alone "
            "(--without-generator)"
        )
    query_dim, embed_dim = weights.get_shape(MARKER)
    num_layers = weights.count("generator.layers.{}.linear1.weight")
    if num_layers != PrimitiveGenerator.NUM_LAYERS:
        raise ValueError(
            f"PADing's generator has {num_layers} layers in this file, CONCAT's of the kind 'primitives' "
            f"{PrimitiveGenerator.NUM_LAYERS}: convert the segmentor alone (--without-generator)"
        )
    return GeneratorSizes(
        embed_dim=embed_dim,
        query_dim=query_dim,
        hidden_dim=weights.get_shape("generator.layers.0.linear1.weight")[0],
        num_primitives=weights.get_shape("dict_feature.weight")[0],
    )


def convert_generator(weights: SourceWeights) -> dict[str, Tensor]:
    """The weights of ``PrimitiveGenerator``, by the names of CONCAT's state dict.

    PADing's self-attention sees one token at a time, so each token attends to itself alone: value and output
    projection are one linear map, and queries and keys do nothing. The relation network's first layer reads
    a pair side by side; CONCAT's sums a map of each side.

    Args:
        weights: of PADing; every one of the generator is used.

    Raises:
        ValueError: if weights are missing.
    """
    converted: dict[str, Tensor] = {}
    pairs = [
        (f"{source}.{name}", f"{target}.{name}") for source, target in RENAMED.items() for name in AFFINE
    ]
    pairs.append(("dict_feature.weight", "primitives.weight"))
    for index in range(PrimitiveGenerator.NUM_LAYERS):
        layer, new_layer = f"generator.layers.{index}", f"layers.{index}"
        pairs += [
            (f"{layer}.{source}.{name}", f"{new_layer}.{target}.{name}")
            for source, target in LAYER_RENAMED.items()
            for name in AFFINE
        ]
        attention = "in_proj_weight", "in_proj_bias"
        pairs += [
            (f"{layer}.multihead_attn.{name}", f"{new_layer}.cross_attention.{name}") for name in attention
        ]
    weights.check_present(source for source, _ in pairs)
    for source, target in pairs:
        converted[f"generator.{target}"] = weights.take(source, f"generator.{target}")
    for index in range(PrimitiveGenerator.NUM_LAYERS):
        converted |= _fold_self_attention(weights, f"generator.layers.{index}")
    return converted | _split_relation(weights)


def _fold_self_attention(weights: SourceWeights, layer: str) -> dict[str, Tensor]:
    # The layers bear the same names in both.
    targets = [f"{layer}.self_projection.{name}" for name in AFFINE]
    in_weight, out_weight, in_bias, out_bias = (
        weights.take(f"{layer}.self_attn.{name}", *targets).double()
        for name in ("in_proj_weight", "out_proj.weight", "in_proj_bias", "out_proj.bias")
    )
    value_weight, value_bias = in_weight.chunk(3)[2], in_bias.chunk(3)[2]
    folded = out_weight @ value_weight, out_weight @ value_bias + out_bias
    return {target: tensor.float() for target, tensor in zip(targets, folded, strict=True)}


def _split_relation(weights: SourceWeights) -> dict[str, Tensor]:
    of_queries = [f"generator.relation_query_projection.{name}" for name in AFFINE]
    of_texts = "generator.relation_text_projection.weight"
    both = weights.take("relation.fc1.weight", of_queries[0], of_texts)
    query_side, text_side = torch.chunk(both, 2, dim=1)
    bias = weights.take("relation.fc1.bias", of_queries[1])
    return {of_queries[0]: query_side, of_queries[1]: bias, of_texts: text_side}
