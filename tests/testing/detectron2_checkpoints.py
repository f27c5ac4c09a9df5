"""Random weights by the names that detectron2 and PADing save, tiny but complete."""

import math
import pickle
from dataclasses import dataclass

import torch

DIM, MASK_DIM, FEEDFORWARD, NUM_QUERIES, NUM_HEADS = 64, 32, 24, 5, 2
NUM_CLASSES = 3
TEXT_WIDTH = 12
NUM_PRIMITIVES = 6


@dataclass(frozen=True)
class HeadSizes:
    """Of pixel decoder and transformer decoder."""

    dim: int = DIM
    mask_dim: int = MASK_DIM
    encoder_feedforward: int = FEEDFORWARD
    feedforward: int = FEEDFORWARD
    num_queries: int = NUM_QUERIES
    num_heads: int = NUM_HEADS
    encoder_layers: int = 2
    decoder_layers: int = 4  # more than levels


TINY_HEAD = HeadSizes()


class Layout:
    """Collects tensors by name; scales keep numbers of the size of one through the network."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}

    def normal(self, name, *shape, scale=1.0, mean=0.0):
        self.tensors[name] = mean + scale * torch.randn(shape, generator=self.generator)

    def weight(self, name, *shape, gain=1.0):
        self.normal(name, *shape, scale=gain / math.sqrt(math.prod(shape[1:])))

    def affine(self, name, *shape, gain=1.0, suffixes=(".weight", ".bias")):
        self.weight(f"{name}{suffixes[0]}", *shape, gain=gain)
        self.normal(f"{name}{suffixes[1]}", shape[0], scale=0.2)

    def norm(self, name, width):
        self.normal(f"{name}.weight", width, scale=0.2, mean=1.0)
        self.normal(f"{name}.bias", width, scale=0.2)

    def convolution(self, name, width, input_width, size, *, counts_batches):
        self.weight(f"{name}.weight", width, input_width, size, size, gain=1.4)
        self.norm(f"{name}.norm", width)
        self.normal(f"{name}.norm.running_mean", width, scale=0.2)
        self.tensors[f"{name}.norm.running_var"] = 0.5 + torch.rand(width, generator=self.generator)
        if counts_batches:
            self.tensors[f"{name}.norm.num_batches_tracked"] = torch.tensor(7)

    def attention(self, name, width=DIM):
        self.affine(name, 3 * width, width, gain=2.0, suffixes=(".in_proj_weight", ".in_proj_bias"))
        self.affine(f"{name}.out_proj", width, width)


def add_resnet(layout, *, counts_batches=False):
    """Widths 16, 32, 48, 64; the second stage has two blocks. Returns the widths."""
    layout.convolution("backbone.stem.conv1", 8, 3, 7, counts_batches=counts_batches)
    input_width, widths = 8, (16, 32, 48, 64)
    for stage, width in enumerate(widths):
        for block in range(2 if stage == 1 else 1):
            name = f"backbone.res{stage + 2}.{block}"
            if block == 0:
                layout.convolution(f"{name}.shortcut", width, input_width, 1, counts_batches=counts_batches)
            for index, (output, size) in enumerate(((width // 4, 1), (width // 4, 3), (width, 1)), start=1):
                layout.convolution(
                    f"{name}.conv{index}", output, input_width, size, counts_batches=counts_batches
                )
                input_width = output
    return widths


def add_swin(layout, *, window_size=3, embed_dim=8, heads=(1, 2, 2, 4), depths=(2, 2, 1, 1)):
    """By default of depths with shifted windows. Returns the widths."""
    widths = tuple(embed_dim * 2**stage for stage in range(4))
    layout.affine("backbone.patch_embed.proj", embed_dim, 3, 4, 4)
    layout.norm("backbone.patch_embed.norm", embed_dim)
    for stage, (width, num_heads) in enumerate(zip(widths, heads, strict=True)):
        for block in range(depths[stage]):
            name = f"backbone.layers.{stage}.blocks.{block}"
            layout.norm(f"{name}.norm1", width)
            layout.normal(f"{name}.attn.relative_position_bias_table", (2 * window_size - 1) ** 2, num_heads)
            layout.tensors[f"{name}.attn.relative_position_index"] = torch.zeros(
                window_size**2, window_size**2, dtype=torch.int64
            )
            layout.affine(f"{name}.attn.qkv", 3 * width, width, gain=2.0)
            layout.affine(f"{name}.attn.proj", width, width)
            layout.norm(f"{name}.norm2", width)
            layout.affine(f"{name}.mlp.fc1", 4 * width, width)
            layout.affine(f"{name}.mlp.fc2", width, 4 * width)
        if stage < 3:
            layout.weight(f"backbone.layers.{stage}.downsample.reduction.weight", 2 * width, 4 * width)
            layout.norm(f"backbone.layers.{stage}.downsample.norm", 4 * width)
        layout.norm(f"backbone.norm{stage}", width)
    return widths


def add_head(layout, widths, *, projects_input=False, sizes=TINY_HEAD):
    decoder, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    dim, num_heads = sizes.dim, sizes.num_heads
    hidden = dim // 2 if projects_input else dim
    for level, width in enumerate(reversed(widths[1:])):
        layout.affine(f"{decoder}.input_proj.{level}.0", dim, width, 1, 1)
        layout.norm(f"{decoder}.input_proj.{level}.1", dim)
    layout.normal(f"{decoder}.transformer.level_embed", 3, dim)
    for index in range(sizes.encoder_layers):
        layer = f"{decoder}.transformer.encoder.layers.{index}"
        layout.affine(f"{layer}.self_attn.sampling_offsets", num_heads * 3 * 4 * 2, dim, gain=2.0)
        layout.affine(f"{layer}.self_attn.attention_weights", num_heads * 3 * 4, dim)
        layout.affine(f"{layer}.self_attn.value_proj", dim, dim)
        layout.affine(f"{layer}.self_attn.output_proj", dim, dim)
        layout.norm(f"{layer}.norm1", dim)
        layout.affine(f"{layer}.linear1", sizes.encoder_feedforward, dim)
        layout.affine(f"{layer}.linear2", dim, sizes.encoder_feedforward)
        layout.norm(f"{layer}.norm2", dim)
    layout.affine(f"{decoder}.mask_features", sizes.mask_dim, dim, 1, 1)
    layout.weight(f"{decoder}.adapter_1.weight", dim, widths[0], 1, 1)
    layout.norm(f"{decoder}.adapter_1.norm", dim)
    layout.weight(f"{decoder}.layer_1.weight", dim, dim, 3, 3)
    layout.norm(f"{decoder}.layer_1.norm", dim)

    for index in range(sizes.decoder_layers):
        own = f"{predictor}.transformer_self_attention_layers.{index}"
        cross = f"{predictor}.transformer_cross_attention_layers.{index}"
        feedforward = f"{predictor}.transformer_ffn_layers.{index}"
        layout.attention(f"{own}.self_attn", hidden)
        layout.norm(f"{own}.norm", hidden)
        layout.attention(f"{cross}.multihead_attn", hidden)
        layout.norm(f"{cross}.norm", hidden)
        layout.affine(f"{feedforward}.linear1", sizes.feedforward, hidden)
        layout.affine(f"{feedforward}.linear2", hidden, sizes.feedforward)
        layout.norm(f"{feedforward}.norm", hidden)
    layout.norm(f"{predictor}.decoder_norm", hidden)
    layout.normal(f"{predictor}.query_feat.weight", sizes.num_queries, hidden)
    layout.normal(f"{predictor}.query_embed.weight", sizes.num_queries, hidden)
    layout.normal(f"{predictor}.level_embed.weight", 3, hidden)
    if projects_input:
        for level in range(3):
            layout.affine(f"{predictor}.input_proj.{level}", hidden, dim, 1, 1)
    layout.affine(f"{predictor}.class_embed", NUM_CLASSES + 1, hidden)
    for index, width in enumerate((hidden, hidden, sizes.mask_dim)):
        layout.affine(f"{predictor}.mask_embed.layers.{index}", width, hidden)
    layout.tensors["criterion.empty_weight"] = torch.tensor([1.0] * NUM_CLASSES + [0.1])


def build_mask2former(backbone="resnet", *, seed=0, counts_batches=False, projects_input=False):
    """Complete weights of a Mask2Former by detectron2."""
    layout = Layout(seed)
    widths = add_swin(layout) if backbone == "swin" else add_resnet(layout, counts_batches=counts_batches)
    add_head(layout, widths, projects_input=projects_input)
    return layout.tensors


def build_pading(*, seed=0, text_width=TEXT_WIDTH, num_layers=3):
    """Complete weights of PADing, whose generator has 8 heads."""
    layout = Layout(seed)
    add_head(layout, add_resnet(layout))
    layout.affine("new_fc", NUM_CLASSES + 1, DIM)
    layout.affine("fc_projection", DIM, text_width)
    layout.normal("dict_feature.weight", NUM_PRIMITIVES, DIM)
    for index in range(num_layers):
        layer = f"generator.layers.{index}"
        layout.attention(f"{layer}.self_attn")
        layout.attention(f"{layer}.multihead_attn")
        layout.affine(f"{layer}.linear1", FEEDFORWARD, DIM)
        layout.affine(f"{layer}.linear2", DIM, FEEDFORWARD)
        for norm in (1, 2, 3):
            layout.norm(f"{layer}.norm{norm}", DIM)
    layout.norm("generator.norm", DIM)
    for part in ("related", "unrelated"):
        for index in (0, 1):
            layout.affine(f"projection_{part}.encoder.{index}", DIM, DIM)
    layout.affine("relation.fc1", DIM, 2 * DIM)
    layout.affine("relation.fc2", 1, DIM)
    layout.affine("decoder.decoder.0", DIM, 2 * DIM)
    layout.affine("decoder.decoder.3", DIM, DIM)
    return layout.tensors


def save_pth(tensors, path):
    """As detectron2's trainer saves it, with an optimizer's state beside the weights."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"model": tensors, "optimizer": optimizer, "iteration": 7}, path)


def save_pkl(tensors, path, protocol=2):
    """As detectron2's model zoo publishes it: NumPy's arrays in a pickle."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    with path.open("wb") as file:
        pickle.dump(
            {"model": arrays, "__author__": "Mask2Former", "matching_heuristics": True}, file, protocol
        )
