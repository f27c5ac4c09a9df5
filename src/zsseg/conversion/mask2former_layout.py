"""Mask2Former as detectron2 saves it → the names and the configuration of transformers (arXiv:2112.01527).

All sizes are read from the shapes. Not in a file, and taken as in all published configurations: norms after
each sub-layer, four sampling points per head and level, strides in the 3×3 convolutions of a ResNet, pictures
in RGB.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig, SwinConfig

from zsseg.conversion.source_weights import SourceWeights, read_source_weights
from zsseg.layers.mask_transformer import MaskTransformerConfig

Pair = tuple[str, tuple[str, ...]]
"""A weight of detectron2 and those it becomes, one after the other along its first axis."""

PREDICTOR = "sem_seg_head.predictor"
PIXEL_DECODER = "sem_seg_head.pixel_decoder"
MARKER = f"{PREDICTOR}.query_feat.weight"
EXPECTED = "a Mask2Former by detectron2"
PADING_PATTERN = r"(fc_projection|dict_feature|new_fc)\."
OTHER_KINDS = {
    r"segmentor\.": "they are of a checkpoint of zsseg, which needs no conversion",
    r"model\.(pixel_level_module|transformer_module)\.": "they are of transformers: give its folder to "
    "convert_mask2former_transformers_to_zsseg.py",
    r"sem_seg_head\.predictor\.static_query\.": "they are of a Mask2Former before its release; load "
    "and save it once with the released code",
    r"sem_seg_head\.predictor\.transformer\.": "they are of MaskFormer, the model before Mask2Former",
    r"sem_seg_head\.predictor\.": f"{MARKER!r} is missing; the file may be cut down",
    r"(roi_heads|proposal_generator)\.": "they are of another model of detectron2",
    r"(stem|res2|layers\.0|patch_embed|backbone)\.": "they are of a backbone alone",
}
"""What files of other kinds look like, and what to do with them."""

BACKBONE_STAGES = ["stage1", "stage2", "stage3", "stage4"]
NUM_SAMPLING_POINTS = 4
SWIN_DROP_PATH_RATE = 0.3
"""Of Mask2Former's training, for those who train on; a file does not say it."""

AFFINE = ("weight", "bias")
FOLDED_NORM = (*AFFINE, "running_mean", "running_var")
BATCH_COUNTER = "num_batches_tracked"

FRESH_WEIGHTS = {
    rf".*\.{BATCH_COUNTER}": "counter of batch norm, zero; nothing reads it in a frozen one",
    r".*encoder\.swin\.layernorm\.(weight|bias)": "of transformers' Swin, but unused in a backbone",
}
"""Weights of transformers' model without a counterpart, as of :func:`~.source_weights.fill_module`."""


def read_detectron2_weights(path: Path, prefix: str = "") -> SourceWeights:
    """The weights of a file by detectron2, without a prefix of their names.

    Raises:
        OSError: as of :func:`~.weight_files.load_weight_file`.
        ValueError: likewise, and if they are of another kind.
    """
    weights = read_source_weights(path, prefix)
    weights.check_marker(MARKER, EXPECTED, OTHER_KINDS)
    if any(re.match(PADING_PATTERN, name) for name in weights.tensors):
        raise ValueError(
            "these are weights of PADing, a generator beside a Mask2Former: use "
            "convert_pading_original_to_zsseg.py"
        )
    if any(name.startswith("clip_adapter.") for name in weights.tensors):
        raise ValueError(
            "these are weights of SCAN, two CLIPs beside a Mask2Former: use convert_scan_original_to_zsseg.py"
        )
    return weights


def read_segmentor_config(weights: SourceWeights) -> MaskTransformerConfig:
    """The configuration that the shapes ask for.

    Raises:
        ValueError: if weights are missing, or shapes belong to no Mask2Former that transformers builds.
    """
    num_queries, hidden_dim = weights.get_shape(MARKER)
    feature_size = weights.get_shape(f"{PIXEL_DECODER}.transformer.level_embed")[1]
    encoder = f"{PIXEL_DECODER}.transformer.encoder.layers"
    num_levels = weights.get_shape(f"{PREDICTOR}.level_embed.weight")[0]
    attention_rows = weights.get_shape(f"{encoder}.0.self_attn.attention_weights.weight")[0]
    num_heads, rest = divmod(attention_rows, num_levels * NUM_SAMPLING_POINTS)
    if rest:
        raise ValueError(
            f"the pixel decoder weighs {attention_rows} sampling points, which are not {num_levels} levels × "
            f"{NUM_SAMPLING_POINTS} points × a number of heads: transformers builds no such model"
        )
    return MaskTransformerConfig(
        backbone_config=_read_backbone_config(weights),
        feature_size=feature_size,
        mask_feature_size=weights.get_shape(f"{PIXEL_DECODER}.mask_features.weight")[0],
        hidden_dim=hidden_dim,
        encoder_layers=weights.count(f"{encoder}.{{}}.linear1.weight"),
        encoder_feedforward_dim=weights.get_shape(f"{encoder}.0.linear1.weight")[0],
        # transformers builds one layer less.
        decoder_layers=weights.count(f"{PREDICTOR}.transformer_ffn_layers.{{}}.linear1.weight") + 1,
        dim_feedforward=weights.get_shape(f"{PREDICTOR}.transformer_ffn_layers.0.linear1.weight")[0],
        num_attention_heads=num_heads,
        num_queries=num_queries,
        enforce_input_projection=_has_input_projection(weights),
    )


def _has_input_projection(weights: SourceWeights) -> bool:
    return f"{PREDICTOR}.input_proj.0.weight" in weights


def _read_backbone_config(weights: SourceWeights) -> PreTrainedConfig:
    if "backbone.patch_embed.proj.weight" in weights:
        return _read_swin_config(weights)
    if "backbone.stem.conv1.weight" in weights:
        return _read_resnet_config(weights)
    raise ValueError(
        "the backbone is neither a ResNet of detectron2 (backbone.stem.conv1) nor a Swin "
        "(backbone.patch_embed.proj): no other is known"
    )


def _read_resnet_config(weights: SourceWeights) -> ResNetConfig:
    stages = [f"backbone.res{stage}" for stage in range(2, 6)]
    return ResNetConfig(
        embedding_size=weights.get_shape("backbone.stem.conv1.weight")[0],
        hidden_sizes=[weights.get_shape(f"{stage}.0.conv3.weight")[0] for stage in stages],
        depths=[weights.count(f"{stage}.{{}}.conv1.weight") for stage in stages],
        layer_type="bottleneck",
        out_features=BACKBONE_STAGES,
    )


def _read_swin_config(weights: SourceWeights) -> SwinConfig:
    if "backbone.absolute_pos_embed" in weights:
        raise ValueError(
            "this Swin has absolute position embeddings (backbone.absolute_pos_embed), which transformers "
            "resizes in another way than detectron2: it cannot be converted"
        )
    embed_dim, _, patch_size, _ = weights.get_shape("backbone.patch_embed.proj.weight")
    stages = [f"backbone.layers.{stage}.blocks" for stage in range(4)]
    tables = [weights.get_shape(f"{stage}.0.attn.relative_position_bias_table") for stage in stages]
    window_size = (math.isqrt(tables[0][0]) + 1) // 2
    return SwinConfig(
        embed_dim=embed_dim,
        patch_size=patch_size,
        depths=[weights.count(f"{stage}.{{}}.norm1.weight") for stage in stages],
        num_heads=[heads for _, heads in tables],
        window_size=window_size,
        mlp_ratio=weights.get_shape(f"{stages[0]}.0.mlp.fc1.weight")[0] / embed_dim,
        qkv_bias=f"{stages[0]}.0.attn.qkv.bias" in weights,
        drop_path_rate=SWIN_DROP_PATH_RATE,
        out_features=BACKBONE_STAGES,
    )


def convert_segmentor(
    weights: SourceWeights, config: MaskTransformerConfig, *, has_classifier: bool = True
) -> dict[str, Tensor]:
    """The weights of transformers' ``Mask2FormerModel``, by the names of its state dict.

    Args:
        weights: of detectron2; every one of the segmentor is used or dropped.
        config: of :func:`read_segmentor_config`.
        has_classifier: whether ``class_embed`` classifies, and is dropped.

    Raises:
        ValueError: if weights are missing.
    """
    pairs = [
        *_list_backbone(weights, config),
        *_list_pixel_decoder(config),
        *_list_transformer(weights, config),
    ]
    weights.check_present(source for source, _ in pairs)
    converted: dict[str, Tensor] = {}
    for source, targets in pairs:
        new_names = [f"segmentor.{target}" for target in targets]
        tensor = weights.take(source, *new_names)
        if len(new_names) == 1:
            converted[new_names[0]] = tensor
            continue
        if tensor.ndim == 0 or len(tensor) % len(new_names):
            raise ValueError(
                f"{source} should hold {len(new_names)} weights of as many rows, one after the other, but "
                f"its shape is {tuple(tensor.shape)}: the file is damaged, or of another version of the model"
            )
        converted.update(zip(new_names, tensor.chunk(len(new_names)), strict=True))
    if has_classifier:
        weights.drop(
            rf"{PREDICTOR}\.class_embed\..*", "classifier of a fixed list; CONCAT names queries by text"
        )
    weights.drop(r"criterion\.empty_weight", "weights of the training's loss")
    weights.drop(r"backbone\..*\.relative_position_index", "counted anew from the window's size")
    return converted


def _list_backbone(weights: SourceWeights, config: MaskTransformerConfig) -> Iterator[Pair]:
    backbone: Any = config.backbone_config
    target = "pixel_level_module.encoder"
    if backbone.model_type == "swin":
        yield from _list_swin(backbone, target)
    else:
        yield from _list_resnet(weights, backbone, target)


def _list_resnet(weights: SourceWeights, config: Any, target: str) -> Iterator[Pair]:
    yield from _list_folded(weights, "backbone.stem.conv1", f"{target}.embedder.embedder")
    for stage, depth in enumerate(config.depths):
        for layer in range(depth):
            block, new_block = (
                f"backbone.res{stage + 2}.{layer}",
                f"{target}.encoder.stages.{stage}.layers.{layer}",
            )
            for convolution in range(3):
                new = f"{new_block}.layer.{convolution}"
                yield from _list_folded(weights, f"{block}.conv{convolution + 1}", new)
            if f"{block}.shortcut.weight" in weights:
                yield from _list_folded(weights, f"{block}.shortcut", f"{new_block}.shortcut")


def _list_folded(weights: SourceWeights, source: str, target: str) -> Iterator[Pair]:
    """A convolution with its batch norm."""
    yield f"{source}.weight", (f"{target}.convolution.weight",)
    for name in FOLDED_NORM:
        yield f"{source}.norm.{name}", (f"{target}.normalization.{name}",)
    if f"{source}.norm.{BATCH_COUNTER}" in weights:  # frozen ones have none
        yield f"{source}.norm.{BATCH_COUNTER}", (f"{target}.normalization.{BATCH_COUNTER}",)


def _list_swin(config: Any, target: str) -> Iterator[Pair]:
    yield from _list_affine(
        "backbone.patch_embed.proj", f"{target}.swin.embeddings.patch_embeddings.projection"
    )
    yield from _list_affine("backbone.patch_embed.norm", f"{target}.swin.embeddings.norm")
    for stage, depth in enumerate(config.depths):
        layer, new_layer = f"backbone.layers.{stage}", f"{target}.swin.encoder.layers.{stage}"
        for index in range(depth):
            block, new_block = f"{layer}.blocks.{index}", f"{new_layer}.blocks.{index}"
            attention = f"{new_block}.attention"
            for name in AFFINE if config.qkv_bias else ("weight",):
                yield f"{block}.attn.qkv.{name}", tuple(f"{attention}.{part}_proj.{name}" for part in "qkv")
            table = "relative_position_bias_table"
            yield f"{block}.attn.{table}", (f"{attention}.relative_position_bias.{table}",)
            yield from _list_affine(f"{block}.attn.proj", f"{attention}.o_proj")
            yield from _list_affine(f"{block}.norm1", f"{new_block}.layernorm_before")
            yield from _list_affine(f"{block}.norm2", f"{new_block}.layernorm_after")
            yield from _list_affine(f"{block}.mlp.fc1", f"{new_block}.mlp.fc1")
            yield from _list_affine(f"{block}.mlp.fc2", f"{new_block}.mlp.fc2")
        if stage < len(config.depths) - 1:
            yield f"{layer}.downsample.reduction.weight", (f"{new_layer}.downsample.reduction.weight",)
            yield from _list_affine(f"{layer}.downsample.norm", f"{new_layer}.downsample.norm")
        yield from _list_affine(f"backbone.norm{stage}", f"{target}.hidden_states_norms.stage{stage + 1}")


def _list_pixel_decoder(config: MaskTransformerConfig) -> Iterator[Pair]:
    decoder = "pixel_level_module.decoder"
    for name in ("adapter_1", "layer_1"):
        yield f"{PIXEL_DECODER}.{name}.weight", (f"{decoder}.{name}.0.weight",)
        yield from _list_affine(f"{PIXEL_DECODER}.{name}.norm", f"{decoder}.{name}.1")
    for level in range(3):
        for part in range(2):
            yield from _list_affine(
                f"{PIXEL_DECODER}.input_proj.{level}.{part}", f"{decoder}.input_projections.{level}.{part}"
            )
    yield f"{PIXEL_DECODER}.transformer.level_embed", (f"{decoder}.level_embed",)
    for index in range(config.encoder_layers):
        layer, new_layer = (
            f"{PIXEL_DECODER}.transformer.encoder.layers.{index}",
            f"{decoder}.encoder.layers.{index}",
        )
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            yield from _list_affine(f"{layer}.self_attn.{name}", f"{new_layer}.self_attn.{name}")
        for name, new_name in (
            ("norm1", "self_attn_layer_norm"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm2", "final_layer_norm"),
        ):
            yield from _list_affine(f"{layer}.{name}", f"{new_layer}.{new_name}")
    yield from _list_affine(f"{PIXEL_DECODER}.mask_features", f"{decoder}.mask_projection")


def _list_transformer(weights: SourceWeights, config: MaskTransformerConfig) -> Iterator[Pair]:
    transformer = "transformer_module"
    for index in range(config.decoder_layers - 1):
        layer = f"{transformer}.decoder.layers.{index}"
        cross = f"{PREDICTOR}.transformer_cross_attention_layers.{index}"
        own = f"{PREDICTOR}.transformer_self_attention_layers.{index}"
        feedforward = f"{PREDICTOR}.transformer_ffn_layers.{index}"
        for name in AFFINE:
            yield f"{cross}.multihead_attn.in_proj_{name}", (f"{layer}.cross_attn.in_proj_{name}",)
            yield (
                f"{own}.self_attn.in_proj_{name}",
                tuple(f"{layer}.self_attn.{part}_proj.{name}" for part in "qkv"),
            )
        for source, target in (
            (f"{cross}.multihead_attn.out_proj", "cross_attn.out_proj"),
            (f"{cross}.norm", "cross_attn_layer_norm"),
            (f"{own}.self_attn.out_proj", "self_attn.out_proj"),
            (f"{own}.norm", "self_attn_layer_norm"),
            (f"{feedforward}.linear1", "fc1"),
            (f"{feedforward}.linear2", "fc2"),
            (f"{feedforward}.norm", "final_layer_norm"),
        ):
            yield from _list_affine(source, f"{layer}.{target}")
    yield from _list_affine(f"{PREDICTOR}.decoder_norm", f"{transformer}.decoder.layernorm")
    embedder = f"{transformer}.decoder.mask_predictor.mask_embedder"
    for index in range(3):
        yield from _list_affine(f"{PREDICTOR}.mask_embed.layers.{index}", f"{embedder}.{index}.0")
    yield f"{PREDICTOR}.query_embed.weight", (f"{transformer}.queries_embedder.weight",)
    yield f"{PREDICTOR}.query_feat.weight", (f"{transformer}.queries_features.weight",)
    yield f"{PREDICTOR}.level_embed.weight", (f"{transformer}.level_embed.weight",)
    if _has_input_projection(weights):
        for level in range(3):
            yield from _list_affine(
                f"{PREDICTOR}.input_proj.{level}", f"{transformer}.input_projections.{level}"
            )


def _list_affine(source: str, target: str) -> Iterator[Pair]:
    for name in AFFINE:
        yield f"{source}.{name}", (f"{target}.{name}",)
