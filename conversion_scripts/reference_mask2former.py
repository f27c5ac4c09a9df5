"""Mask2Former's forward pass on weights by detectron2's names, to check conversions against.

Written from the papers and the published layout: Mask2Former (arXiv:2112.01527), Deformable DETR
(arXiv:2010.04159), ResNet (arXiv:1512.03385), Swin (arXiv:2103.14030). It shares no code with zsseg or
transformers and looks for sizes in the shapes by itself. Plain and slow: attention over the windows of a Swin
is a loop, and shifted windows are cut from the plane instead of rolled.
"""

import itertools
import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLING_POINTS = 4
NORM_GROUPS = 32
PREDICTOR = "sem_seg_head.predictor."
PIXEL_DECODER = "sem_seg_head.pixel_decoder."


class Weights:
    """Tensors by name, seen from one place in the hierarchy of names."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        self.tensors = tensors
        self.prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(self.prefix + name)

    def below(self, name: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def indices(self, name: str) -> range:
        pattern = re.compile(rf"{re.escape(self.prefix + name)}\.(\d+)\.")
        found = [int(match[1]) for match in map(pattern.match, self.tensors) if match]
        return range(max(found) + 1)


def linear(weights: Weights, name: str, values: Tensor) -> Tensor:
    layer = weights.below(name)
    return F.linear(values, layer["weight"], layer.get("bias"))


def layer_norm(weights: Weights, name: str, values: Tensor) -> Tensor:
    layer = weights.below(name)
    return F.layer_norm(values, values.shape[-1:], layer["weight"], layer["bias"], 1e-5)


def group_norm(weights: Weights, name: str, values: Tensor) -> Tensor:
    layer = weights.below(name)
    return F.group_norm(values, NORM_GROUPS, layer["weight"], layer["bias"], 1e-5)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """Multi-head attention: (B, N, d) queries, (B, M, d) keys and values, (…, N, M) added to the scores."""
    queries, keys, values = (
        part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (queries, keys, values)
    )
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)


def fused_attention(
    weights: Weights,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_heads: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention whose three input projections lie in one tensor, as of ``torch.nn.MultiheadAttention``."""
    projected = (
        F.linear(values_in, weight, bias_in)
        for values_in, weight, bias_in in zip(
            (queries, keys, values),
            weights["in_proj_weight"].chunk(3),
            weights["in_proj_bias"].chunk(3),
            strict=True,
        )
    )
    return linear(weights, "out_proj", attend(*projected, num_heads, bias))


def compute_sine_positions(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """(dim, H, W): rows in the first half of the channels, columns in the second (arXiv:2005.12872)."""
    channels = torch.arange(dim // 2, dtype=like.dtype)
    periods = 10000 ** (2 * (channels // 2) / (dim // 2))
    halves = []
    for length in (height, width):
        steps = torch.arange(1, length + 1, dtype=like.dtype) / (length + 1e-6) * 2 * math.pi
        angles = steps[:, None] / periods
        halves.append(torch.where(channels % 2 == 0, angles.sin(), angles.cos()))
    rows = halves[0].T[:, :, None].expand(-1, -1, width)
    columns = halves[1].T[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])


# Backbones: (B, 3, H, W) → features of strides 4, 8, 16 and 32


def convolve_and_normalise(weights: Weights, name: str, values: Tensor, stride: int, padding: int) -> Tensor:
    layer = weights.below(name)
    values = F.conv2d(values, layer["weight"], None, stride, padding)
    norm = layer.below("norm")
    return F.batch_norm(
        values, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"], False, 0.0, 1e-5
    )


def run_resnet(weights: Weights, pixel_values: Tensor) -> list[Tensor]:
    hidden = F.relu(convolve_and_normalise(weights, "stem.conv1", pixel_values, 2, 3))
    hidden = F.max_pool2d(hidden, 3, 2, 1)
    features = []
    for stage in range(2, 6):
        for index in weights.indices(f"res{stage}"):
            block = weights.below(f"res{stage}.{index}")
            stride = 2 if index == 0 and stage > 2 else 1
            residual = hidden
            if "shortcut.weight" in block:
                residual = convolve_and_normalise(block, "shortcut", hidden, stride, 0)
            hidden = F.relu(convolve_and_normalise(block, "conv1", hidden, 1, 0))
            hidden = F.relu(convolve_and_normalise(block, "conv2", hidden, stride, 1))
            hidden = F.relu(convolve_and_normalise(block, "conv3", hidden, 1, 0) + residual)
        features.append(hidden)
    return features


def cut_windows(length: int, window: int, shift: int) -> list[tuple[int, int]]:
    """First and last+1 position of the windows along one axis; shifted ones are cut at both borders."""
    edges = sorted({0, *range(shift, length, window), length})
    return list(itertools.pairwise(edges))


def attend_in_windows(weights: Weights, plane: Tensor, window: int, shift: int) -> Tensor:
    """(B, H, W, d), H and W multiples of the window → the same shape."""
    table = weights["relative_position_bias_table"]
    num_heads = table.shape[1]
    mixed = torch.empty_like(plane)
    for top, bottom in cut_windows(plane.shape[1], window, shift):
        for left, right in cut_windows(plane.shape[2], window, shift):
            tokens = plane[:, top:bottom, left:right].flatten(1, 2)
            rows, columns = torch.meshgrid(
                torch.arange(bottom - top), torch.arange(right - left), indexing="ij"
            )
            rows, columns = rows.flatten(), columns.flatten()
            row_offset = rows[:, None] - rows + window - 1
            column_offset = columns[:, None] - columns + window - 1
            bias = table[row_offset * (2 * window - 1) + column_offset].permute(2, 0, 1)
            queries, keys, values = linear(weights, "qkv", tokens).chunk(3, dim=-1)
            attended = linear(weights, "proj", attend(queries, keys, values, num_heads, bias))
            mixed[:, top:bottom, left:right] = attended.unflatten(1, (bottom - top, right - left))
    return mixed


def run_swin_block(weights: Weights, plane: Tensor, *, is_shifted: bool) -> Tensor:
    """(B, H, W, d) → the same shape."""
    window = (math.isqrt(len(weights["attn.relative_position_bias_table"])) + 1) // 2
    _, height, width, _ = plane.shape
    padded = F.pad(layer_norm(weights, "norm1", plane), (0, 0, 0, -width % window, 0, -height % window))
    mixed = attend_in_windows(weights.below("attn"), padded, window, window // 2 if is_shifted else 0)
    plane = plane + mixed[:, :height, :width]
    widened = F.gelu(linear(weights, "mlp.fc1", layer_norm(weights, "norm2", plane)))
    return plane + linear(weights, "mlp.fc2", widened)


def run_swin(weights: Weights, pixel_values: Tensor) -> list[Tensor]:
    patches = weights.below("patch_embed.proj")
    side = patches["weight"].shape[-1]
    _, _, height, width = pixel_values.shape
    padded = F.pad(pixel_values, (0, -width % side, 0, -height % side))
    plane = F.conv2d(padded, patches["weight"], patches["bias"], side).permute(0, 2, 3, 1)
    plane = layer_norm(weights, "patch_embed.norm", plane)
    features = []
    for stage in range(4):
        layer = weights.below(f"layers.{stage}")
        for index in layer.indices("blocks"):
            plane = run_swin_block(layer.below(f"blocks.{index}"), plane, is_shifted=index % 2 == 1)
        features.append(layer_norm(weights, f"norm{stage}", plane).permute(0, 3, 1, 2))
        if stage < 3:
            plane = F.pad(plane, (0, 0, 0, plane.shape[2] % 2, 0, plane.shape[1] % 2))
            corners = [plane[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            merged = layer_norm(layer, "downsample.norm", torch.cat(corners, dim=-1))
            plane = linear(layer, "downsample.reduction", merged)
    return features


# Pixel decoder


def sample_deformably(
    weights: Weights, queries: Tensor, memory: Tensor, sizes: list[tuple[int, int]]
) -> Tensor:
    """Multi-scale deformable attention, in which every position of every level is a query.

    Args:
        weights: of one attention.
        queries: (B, N, d), positions added.
        memory: (B, N, d), N positions of all levels, one after the other.
        sizes: (H, W) of the levels.
    """
    batch_size, num_positions, dim = memory.shape
    num_levels = len(sizes)
    num_heads = len(weights["attention_weights.bias"]) // (num_levels * SAMPLING_POINTS)
    shape = (batch_size, num_positions, num_heads, num_levels, SAMPLING_POINTS)
    offsets = linear(weights, "sampling_offsets", queries).view(*shape, 2)
    shares = linear(weights, "attention_weights", queries).view(*shape[:3], -1).softmax(dim=-1).view(shape)
    values = linear(weights, "value_proj", memory).split([height * width for height, width in sizes], dim=1)
    # Centres of all positions as (x, y) shares of the picture.
    centres = torch.cat(
        [
            torch.stack(
                [
                    ((torch.arange(width, dtype=memory.dtype) + 0.5) / width).expand(height, width),
                    ((torch.arange(height, dtype=memory.dtype) + 0.5) / height)[:, None].expand(
                        height, width
                    ),
                ],
                dim=-1,
            ).view(-1, 2)
            for height, width in sizes
        ]
    )
    attended = memory.new_zeros(batch_size, num_heads, dim // num_heads, num_positions)
    for level, (height, width) in enumerate(sizes):
        extent = torch.tensor([width, height], dtype=memory.dtype)
        places = centres[None, :, None, None] + offsets[:, :, :, level] / extent
        grid = (2 * places - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        plane = values[level].transpose(1, 2).reshape(batch_size * num_heads, -1, height, width)
        sampled = F.grid_sample(plane, grid, align_corners=False).unflatten(0, (batch_size, num_heads))
        attended += (sampled * shares[:, :, :, level].transpose(1, 2)[:, :, None]).sum(dim=-1)
    return linear(weights, "output_proj", attended.flatten(1, 2).transpose(1, 2))


def run_pixel_decoder(weights: Weights, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Four features → (B, d, H/4, W/4) pixel embeddings and three encoded levels, coarsest first."""
    sizes, tokens, positions = [], [], []
    for level, feature in enumerate(reversed(features[1:])):
        projection = weights.below(f"input_proj.{level}")
        projected = F.conv2d(feature, projection["0.weight"], projection["0.bias"])
        projected = group_norm(weights, f"input_proj.{level}.1", projected)
        _, dim, height, width = projected.shape
        sizes.append((height, width))
        tokens.append(projected.flatten(2).transpose(1, 2))
        sines = compute_sine_positions(height, width, dim, feature).flatten(1).T
        positions.append(sines + weights["transformer.level_embed"][level])
    memory, position = torch.cat(tokens, dim=1), torch.cat(positions)
    for index in weights.indices("transformer.encoder.layers"):
        layer = weights.below(f"transformer.encoder.layers.{index}")
        sampled = sample_deformably(layer.below("self_attn"), memory + position, memory, sizes)
        memory = layer_norm(layer, "norm1", memory + sampled)
        widened = linear(layer, "linear2", F.relu(linear(layer, "linear1", memory)))
        memory = layer_norm(layer, "norm2", memory + widened)
    levels = [
        level.transpose(1, 2).unflatten(2, size)
        for level, size in zip(memory.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
    ]
    lateral = group_norm(weights, "adapter_1.norm", F.conv2d(features[0], weights["adapter_1.weight"]))
    raised = F.interpolate(levels[-1], lateral.shape[-2:], mode="bilinear", align_corners=False)
    fused = F.conv2d(lateral + raised, weights["layer_1.weight"], padding=1)
    fused = F.relu(group_norm(weights, "layer_1.norm", fused))
    return F.conv2d(fused, weights["mask_features.weight"], weights["mask_features.bias"]), levels


# Transformer decoder


def run_transformer_decoder(
    weights: Weights, pixel_embeds: Tensor, levels: list[Tensor], num_heads: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Normalised queries (B, Q, d) and masks (B, Q, h, w) before the first layer and after each."""
    memories, positions = [], []
    for index, level in enumerate(levels):
        _, dim, height, width = level.shape
        if f"input_proj.{index}.weight" in weights:
            level = F.conv2d(
                level, weights[f"input_proj.{index}.weight"], weights[f"input_proj.{index}.bias"]
            )
            dim = level.shape[1]
        memories.append(level.flatten(2).transpose(1, 2) + weights["level_embed.weight"][index])
        positions.append(compute_sine_positions(height, width, dim, level).flatten(1).T)

    hidden = weights["query_feat.weight"].expand(len(pixel_embeds), -1, -1)
    query_position = weights["query_embed.weight"]
    queries, masks = [], []

    def predict() -> None:
        normalised = layer_norm(weights, "decoder_norm", hidden)
        embeds = normalised
        for index in range(3):
            embeds = linear(weights, f"mask_embed.layers.{index}", embeds)
            embeds = F.relu(embeds) if index < 2 else embeds
        queries.append(normalised)
        masks.append(torch.einsum("bqd,bdhw->bqhw", embeds, pixel_embeds))

    predict()
    for index in weights.indices("transformer_ffn_layers"):
        level = index % len(levels)
        small = F.interpolate(masks[-1], levels[level].shape[-2:], mode="bilinear", align_corners=False)
        is_background = small.flatten(2) < 0
        # A query whose mask is empty looks everywhere.
        is_background &= ~is_background.all(dim=-1, keepdim=True)
        barrier = torch.zeros_like(small.flatten(2)).masked_fill(is_background, -math.inf)[:, None]
        cross = weights.below(f"transformer_cross_attention_layers.{index}")
        attended = fused_attention(
            cross.below("multihead_attn"),
            hidden + query_position,
            memories[level] + positions[level],
            memories[level],
            num_heads,
            barrier,
        )
        hidden = layer_norm(cross, "norm", hidden + attended)
        own = weights.below(f"transformer_self_attention_layers.{index}")
        placed = hidden + query_position
        attended = fused_attention(own.below("self_attn"), placed, placed, hidden, num_heads)
        hidden = layer_norm(own, "norm", hidden + attended)
        feedforward = weights.below(f"transformer_ffn_layers.{index}")
        widened = linear(feedforward, "linear2", F.relu(linear(feedforward, "linear1", hidden)))
        hidden = layer_norm(feedforward, "norm", hidden + widened)
        predict()
    return queries, masks


@torch.no_grad()
def run_mask2former(tensors: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
    """The whole forward pass, in the dtype of the picture.

    Args:
        tensors: by detectron2's names.
        pixel_values: (B, 3, H, W), normalised, RGB.

    Returns:
        By name: features of the backbone's four levels, "pixel embeddings" (B, d, h, w), and of all decoder
        layers "queries" (L, B, Q, d) and "masks" (L, B, Q, h, w).
    """
    dtype = pixel_values.dtype
    whole = Weights(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    )
    backbone = whole.below("backbone")
    run_backbone = run_swin if "patch_embed.proj.weight" in backbone else run_resnet
    features = run_backbone(backbone, pixel_values)
    pixel_decoder = Weights(whole.tensors, PIXEL_DECODER)
    pixel_embeds, levels = run_pixel_decoder(pixel_decoder, features)
    rows = len(pixel_decoder["transformer.encoder.layers.0.self_attn.attention_weights.bias"])
    num_heads = rows // (len(levels) * SAMPLING_POINTS)
    queries, masks = run_transformer_decoder(
        Weights(whole.tensors, PREDICTOR), pixel_embeds, levels, num_heads
    )
    return {
        **{f"backbone, level {level}": feature for level, feature in enumerate(features, start=1)},
        "pixel embeddings": pixel_embeds,
        "queries": torch.stack(queries),
        "masks": torch.stack(masks),
    }
