"""Weights by the names that SCAN's authors save, tiny and random or of full size without memory."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from testing.detectron2_checkpoints import TINY_HEAD, HeadSizes, Layout, add_head, add_swin
from zsseg.conversion.scan_layout import ScanSettings, ScanSize

VOCABULARY = ["a", "photo", "of", "road", "car", "scene", "<start>", "<end>"]
CLIP_MODEL, FROZEN_TOWER = "clip_adapter.clip_model", "clip_adapter.original_clip"
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ScanShape:
    """All sizes in a file."""

    head: HeadSizes
    swin: dict
    embed: int
    proposal_hidden: int
    vision: int
    vision_layers: int
    patch: int
    grid: int
    text: int
    text_layers: int
    context: int
    vocabulary: int
    mlp_ratio: int
    steps: int
    layers: int
    feedforward: int


TINY = ScanShape(
    head=TINY_HEAD,
    swin={},
    embed=64,
    proposal_hidden=40,
    vision=128,
    vision_layers=4,
    patch=8,
    grid=5,
    text=64,
    text_layers=2,
    context=12,
    vocabulary=len(VOCABULARY),
    mlp_ratio=2,
    steps=3,
    layers=2,
    feedforward=24,
)


def build_full_shape(*, embed, vision, vision_layers, patch, text):
    """Those of a published size: a Swin-B, ten decoder layers, a CLIP for pictures of 224 pixels."""
    return ScanShape(
        head=HeadSizes(256, 256, 1024, 2048, 100, 8, 6, 10),
        swin={"window_size": 12, "embed_dim": 128, "heads": (4, 8, 16, 32), "depths": (2, 2, 18, 2)},
        embed=embed,
        proposal_hidden=1024,
        vision=vision,
        vision_layers=vision_layers,
        patch=patch,
        grid=224 // patch,
        text=text,
        text_layers=12,
        context=77,
        vocabulary=49408,
        mlp_ratio=4,
        steps=5,
        layers=5,
        feedforward=2048,
    )


SHAPE_L = build_full_shape(embed=768, vision=1024, vision_layers=24, patch=14, text=768)
SHAPE_B = build_full_shape(embed=512, vision=768, vision_layers=12, patch=16, text=512)


class ConstantLayout(Layout):
    """Each tensor one number everywhere, which takes no memory; no two the same."""

    def normal(self, name, *shape, **_):
        self.tensors[name] = torch.tensor(float(len(self.tensors))).expand(shape)


def add_blocks(layout, prefix, width, num_layers, shape):
    for index in range(num_layers):
        block = f"{prefix}transformer.resblocks.{index}"
        layout.norm(f"{block}.ln_1", width)
        layout.attention(f"{block}.attn", width)
        layout.norm(f"{block}.ln_2", width)
        layout.affine(f"{block}.mlp.c_fc", shape.mlp_ratio * width, width)
        layout.affine(f"{block}.mlp.c_proj", width, shape.mlp_ratio * width)


def add_vision_tower(layout, prefix, shape):
    width = shape.vision
    layout.normal(f"{prefix}class_embedding", width)
    layout.normal(f"{prefix}positional_embedding", shape.grid**2 + 1, width)
    layout.normal(f"{prefix}proj", width, shape.embed, scale=width**-0.5)
    layout.weight(f"{prefix}conv1.weight", width, 3, shape.patch, shape.patch)
    layout.norm(f"{prefix}ln_pre", width)
    add_blocks(layout, prefix, width, shape.vision_layers, shape)
    layout.norm(f"{prefix}ln_post", width)


def add_text_tower(layout, prefix, shape):
    layout.normal(f"{prefix}positional_embedding", shape.context, shape.text)
    layout.normal(f"{prefix}text_projection", shape.text, shape.embed, scale=shape.text**-0.5)
    layout.tensors[f"{prefix}logit_scale"] = torch.tensor(4.6052)
    add_blocks(layout, prefix, shape.text, shape.text_layers, shape)
    layout.normal(f"{prefix}token_embedding.weight", shape.vocabulary, shape.text)
    layout.norm(f"{prefix}ln_final", shape.text)


def add_integration(layout, shape):
    embed = shape.embed
    layout.affine("LFM.conv1", 2 * shape.vision, 2 * shape.vision, 1, 1)
    layout.affine("LFM.conv2", 2 * shape.vision, 2 * shape.vision, 1, 1)
    layout.affine("oriclip_mlp.fc1", embed, shape.vision)
    layout.affine("oriclip_mlp.fc2", embed, embed)
    for step in range(shape.steps):
        layout.attention(f"fusion_decoder.multiattn.{step}", embed)
        if step < shape.steps - 1:
            layout.norm(f"fusion_decoder.ln.{step}", embed)
    layout.normal("learnable_weight", 1, scale=0.1, mean=0.4)
    for index in range(shape.layers):
        layer = f"lightweight_transformer.layers.{index}"
        layout.attention(f"{layer}.self_attn", embed)
        layout.affine(f"{layer}.linear1", shape.feedforward, embed)
        layout.affine(f"{layer}.linear2", embed, shape.feedforward)
        layout.norm(f"{layer}.norm1", embed)
        layout.norm(f"{layer}.norm2", embed)


def build_scan(*, shape=TINY, layout=None, is_fine_tuned=True):
    """Complete weights; without fine-tuning both vision towers are one, as before the second stage."""
    layout = Layout(0) if layout is None else layout
    add_head(layout, add_swin(layout, **shape.swin), sizes=shape.head)
    head = "sem_seg_head.predictor.class_embed"
    for name in ("weight", "bias"):
        del layout.tensors[f"{head}.{name}"]
    layout.affine(f"{head}.layers.0", shape.proposal_hidden, shape.head.dim)
    layout.affine(f"{head}.layers.1", shape.embed, shape.proposal_hidden)
    add_integration(layout, shape)
    layout.normal("clip_adapter.non_object_embedding", 1, shape.embed)
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        layout.tensors[f"clip_adapter.{name}"] = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
    add_text_tower(layout, f"{CLIP_MODEL}.", shape)
    add_vision_tower(layout, f"{CLIP_MODEL}.visual.", shape)
    if is_fine_tuned:
        layout.normal(f"{CLIP_MODEL}.visual.learnable_weight", 1)
        layout.affine(f"{CLIP_MODEL}.visual.cxt_decoder.layers.0", 4, 4)
        add_vision_tower(layout, f"{FROZEN_TOWER}.", shape)
    else:
        beginning = f"{CLIP_MODEL}.visual."
        layout.tensors |= {
            name.replace(beginning, f"{FROZEN_TOWER}."): tensor.clone()
            for name, tensor in layout.tensors.items()
            if name.startswith(beginning)
        }
    return layout.tensors


def build_cs_clip(scan, *, prefix="module."):
    """The tiny CLIP of weights before fine-tuning, its vision tower fine-tuned, as its training saves it."""
    layout = Layout(1)
    add_vision_tower(layout, "visual.", TINY)
    layout.tensors["visual.learnable_weight"] = torch.ones(1)
    clip = {
        name.removeprefix(f"{CLIP_MODEL}."): tensor.clone()
        for name, tensor in scan.items()
        if name.startswith(f"{CLIP_MODEL}.")
    }
    frozen = {
        name.replace(FROZEN_TOWER, "original_clip_visual"): tensor.clone()
        for name, tensor in scan.items()
        if name.startswith(FROZEN_TOWER)
    }
    tensors = {f"clip_model.{name}": tensor for name, tensor in (clip | layout.tensors).items()} | frozen
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def save_cs_clip(tensors, path):
    """As open_clip's training saves it."""
    torch.save({"epoch": 10, "name": "run", "state_dict": tensors}, path)


def count_parameters(scan):
    """Those outside the CLIPs, and all; no buffers, nor what only the CLIP's fine-tuning reads."""
    no_parameters = ("criterion.", "clip_adapter.pixel_", f"{CLIP_MODEL}.visual.cxt_decoder")
    no_parameters += (f"{CLIP_MODEL}.visual.learnable_weight",)
    numbers = {
        name: tensor.numel()
        for name, tensor in scan.items()
        if not name.startswith(no_parameters) and not name.endswith("relative_position_index")
    }
    frozen = [number for name, number in numbers.items() if name.startswith((CLIP_MODEL, FROZEN_TOWER))]
    return sum(numbers.values()) - sum(frozen), sum(numbers.values())


def build_size(scan, **changes):
    """What the script would know of a published model of these tiny weights."""
    trained, total = count_parameters(scan)
    vision = {"layers": TINY.vision_layers, "width": TINY.vision, "patch_size": TINY.patch}
    text = {"width": TINY.text, "heads": 1, "layers": TINY.text_layers}
    fields = {
        "name": "SCAN-tiny",
        "clip": {
            "embed_dim": TINY.embed,
            "vision_cfg": {**vision, "image_size": TINY.patch * TINY.grid},
            "text_cfg": {**text, "context_length": TINY.context, "vocab_size": TINY.vocabulary},
        },
        "integration_layers": (2, 3, 4),
        "shift_layers": (1, 3),
        "low_frequency_sigmas": (2.0, 1.5, 1.0),
        "num_trained_parameters": trained,
        "num_parameters": total,
        "settings": {
            "A-150": ScanSettings(0.4, 0.7, 0.3),
            "A-847": ScanSettings(0.25, 0.6, 0.2, has_void_renormalization=True),
        },
    }
    return ScanSize(**fields | changes)


def save_tokenizer(folder):
    """A token per word, <end> the last, as in CLIP's."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(token, ids[token]) for token in ("<start>", "<end>")]
    )
    specials = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=TINY.context, **specials)
    tokenizer.save_pretrained(folder)
