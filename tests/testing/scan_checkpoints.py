"""Random weights by the names that SCAN's authors save, tiny but complete; what goes with them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from testing.detectron2_checkpoints import DIM, FEEDFORWARD, Layout, add_head, add_swin
from zsseg.conversion.scan_layout import ScanSettings, ScanSize

EMBED, VISION, TEXT = 64, 128, 64
VISION_LAYERS, TEXT_LAYERS = 4, 2
PATCH, GRID = 8, 5
CONTEXT = 12
VOCABULARY = ["a", "photo", "of", "road", "car", "scene", "<start>", "<end>"]
NUM_STEPS, NUM_LAYERS, PROPOSAL_WIDTH = 3, 2, 40
CLIP_MODEL, FROZEN_TOWER = "clip_adapter.clip_model", "clip_adapter.original_clip"
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TAPS, SHIFT_LAYERS, SIGMAS = (2, 3, 4), (1, 3), (2.0, 1.5, 1.0)
CLIPS = ("clip_adapter.clip_model.", "clip_adapter.original_clip.")


def add_blocks(layout, prefix, width, num_layers):
    for index in range(num_layers):
        block = f"{prefix}transformer.resblocks.{index}"
        layout.norm(f"{block}.ln_1", width)
        layout.attention(f"{block}.attn", width)
        layout.norm(f"{block}.ln_2", width)
        layout.affine(f"{block}.mlp.c_fc", 2 * width, width)
        layout.affine(f"{block}.mlp.c_proj", width, 2 * width)


def add_vision_tower(layout, prefix):
    layout.normal(f"{prefix}class_embedding", VISION)
    layout.normal(f"{prefix}positional_embedding", GRID**2 + 1, VISION)
    layout.normal(f"{prefix}proj", VISION, EMBED, scale=VISION**-0.5)
    layout.weight(f"{prefix}conv1.weight", VISION, 3, PATCH, PATCH)
    layout.norm(f"{prefix}ln_pre", VISION)
    add_blocks(layout, prefix, VISION, VISION_LAYERS)
    layout.norm(f"{prefix}ln_post", VISION)


def add_text_tower(layout, prefix):
    layout.normal(f"{prefix}positional_embedding", CONTEXT, TEXT)
    layout.normal(f"{prefix}text_projection", TEXT, EMBED, scale=TEXT**-0.5)
    layout.tensors[f"{prefix}logit_scale"] = torch.tensor(4.6052)
    add_blocks(layout, prefix, TEXT, TEXT_LAYERS)
    layout.normal(f"{prefix}token_embedding.weight", len(VOCABULARY), TEXT)
    layout.norm(f"{prefix}ln_final", TEXT)


def add_integration(layout):
    layout.affine("LFM.conv1", 2 * VISION, 2 * VISION, 1, 1)
    layout.affine("LFM.conv2", 2 * VISION, 2 * VISION, 1, 1)
    layout.affine("oriclip_mlp.fc1", EMBED, VISION)
    layout.affine("oriclip_mlp.fc2", EMBED, EMBED)
    for step in range(NUM_STEPS):
        layout.attention(f"fusion_decoder.multiattn.{step}", EMBED)
        if step < NUM_STEPS - 1:
            layout.norm(f"fusion_decoder.ln.{step}", EMBED)
    layout.tensors["learnable_weight"] = torch.tensor([0.37])
    for index in range(NUM_LAYERS):
        layer = f"lightweight_transformer.layers.{index}"
        layout.attention(f"{layer}.self_attn", EMBED)
        layout.affine(f"{layer}.linear1", FEEDFORWARD, EMBED)
        layout.affine(f"{layer}.linear2", EMBED, FEEDFORWARD)
        layout.norm(f"{layer}.norm1", EMBED)
        layout.norm(f"{layer}.norm2", EMBED)


def build_scan(*, seed=0, is_fine_tuned=True):
    """Complete weights; without fine-tuning both vision towers are one, as before the second stage."""
    layout = Layout(seed)
    add_head(layout, add_swin(layout))
    head = "sem_seg_head.predictor.class_embed"
    for name in ("weight", "bias"):
        del layout.tensors[f"{head}.{name}"]
    layout.affine(f"{head}.layers.0", PROPOSAL_WIDTH, DIM)
    layout.affine(f"{head}.layers.1", EMBED, PROPOSAL_WIDTH)
    add_integration(layout)
    layout.normal("clip_adapter.non_object_embedding", 1, EMBED)
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        layout.tensors[f"clip_adapter.{name}"] = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
    add_text_tower(layout, f"{CLIP_MODEL}.")
    add_vision_tower(layout, f"{CLIP_MODEL}.visual.")
    if is_fine_tuned:
        layout.normal(f"{CLIP_MODEL}.visual.learnable_weight", 1)
        layout.affine(f"{CLIP_MODEL}.visual.cxt_decoder.layers.0", 4, 4)
        add_vision_tower(layout, f"{FROZEN_TOWER}.")
    else:
        beginning = f"{CLIP_MODEL}.visual."
        layout.tensors |= {
            name.replace(beginning, f"{FROZEN_TOWER}."): tensor.clone()
            for name, tensor in layout.tensors.items()
            if name.startswith(beginning)
        }
    return layout.tensors


def build_cs_clip(scan, *, seed=1, prefix="module."):
    """The CLIP of weights before fine-tuning, its vision tower fine-tuned, as its training saves it."""
    layout = Layout(seed)
    add_vision_tower(layout, "visual.")
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


def build_size(scan, **changes):
    """What the script would know of a published model of these weights."""
    unused = (
        "criterion.empty_weight",
        "clip_adapter.pixel_",
        f"{CLIP_MODEL}.visual.cxt_decoder",
        f"{CLIP_MODEL}.visual.learnable_weight",
    )
    counted = {
        name: tensor.numel()
        for name, tensor in scan.items()
        if not name.startswith(unused) and not name.endswith("relative_position_index")
    }
    fields = {
        "name": "SCAN-tiny",
        "clip": {
            "embed_dim": EMBED,
            "vision_cfg": {
                "image_size": PATCH * GRID,
                "layers": VISION_LAYERS,
                "width": VISION,
                "patch_size": PATCH,
            },
            "text_cfg": {
                "width": TEXT,
                "heads": 1,
                "layers": TEXT_LAYERS,
                "context_length": CONTEXT,
                "vocab_size": len(VOCABULARY),
            },
        },
        "integration_layers": TAPS,
        "shift_layers": SHIFT_LAYERS,
        "low_frequency_sigmas": SIGMAS,
        "num_trained_parameters": sum(
            number for name, number in counted.items() if not name.startswith(CLIPS)
        ),
        "num_parameters": sum(counted.values()),
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
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT, **specials)
    tokenizer.save_pretrained(folder)
