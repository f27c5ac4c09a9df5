"""SCAN's forward pass on weights by its own names, to check conversions against.

Written from the paper (arXiv:2312.04089), that of CLIP (arXiv:2103.00020) and the published layout; shares
no code with zsseg or transformers. Plain and slow: the Fourier transforms are sums, crops are cut one by one,
and attention over a single key is written as what it is, a linear map.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reference_mask2former import Weights, fused_attention, layer_norm, linear, run_mask2former
from torch import Tensor
from torch.nn import functional as F

HEAD_WIDTH = 64
"""Of both towers of every CLIP that SCAN was trained with."""
INTEGRATION_HEADS = 8
LOGIT_SCALE = 100.0
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PADDED_TO = 32
FINE_TUNED, FROZEN = "clip_adapter.clip_model", "clip_adapter.original_clip"


@dataclass(frozen=True)
class ScanSettings:
    """What SCAN's weights do not say.

    Attributes:
        taps: blocks of the frozen CLIP, counted from 1, whose tokens are integrated.
        sigmas: of the low-frequency enhancement of each.
        shift_layers: blocks, counted from 1, after which background patches are overwritten.
        shift_ratio: share of them.
        mask_threshold: probability above which a pixel belongs to a crop.
        clip_weight: w of the ensemble.
    """

    taps: Sequence[int]
    sigmas: Sequence[float]
    shift_layers: Sequence[int]
    shift_ratio: float
    mask_threshold: float
    clip_weight: float


class InDtype(Mapping[str, Tensor]):
    """Tensors by name, made of the dtype when they are asked for: two CLIPs at once are large."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.tensors = tensors
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def fuse_fine_tuned_clip(tensors: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SCAN's weights with those of a fine-tuned CLIP, whose names begin with "module.clip_model."."""
    beginning = "module.clip_model."
    renamed = {
        f"{FINE_TUNED}.{name.removeprefix(beginning)}": tensor
        for name, tensor in clip.items()
        if name.startswith(beginning)
    }
    return {**tensors, **renamed}


# CLIP


def run_block(weights: Weights, hidden: Tensor, barrier: Tensor | None = None) -> Tensor:
    """One block of a tower: (B, N, width) → the same shape."""
    normalised = layer_norm(weights, "ln_1", hidden)
    num_heads = hidden.shape[-1] // HEAD_WIDTH
    hidden = hidden + fused_attention(
        weights.below("attn"), normalised, normalised, normalised, num_heads, barrier
    )
    widened = F.gelu(linear(weights, "mlp.c_fc", layer_norm(weights, "ln_2", hidden)))
    return hidden + linear(weights, "mlp.c_proj", widened)


def run_vision_tower(
    weights: Weights,
    pictures: Tensor,
    shift_layers: Sequence[int] = (),
    context_cls: Mapping[int, Tensor] | None = None,
    is_shifted: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Tokens before the first block and behind each, and the embedding.

    Args:
        weights: of one tower.
        pictures: (B, 3, S, S), normalised.
        shift_layers: blocks counted from 1.
        context_cls: block → (C,), what the chosen patches become behind it.
        is_shifted: (B, layers, G²) bool, the chosen patches.
    """
    patches = F.conv2d(pictures, weights["conv1.weight"], stride=weights["conv1.weight"].shape[-1])
    tokens = [
        torch.cat([weights["class_embedding"][None], picture.flatten(1).T]) + weights["positional_embedding"]
        for picture in patches
    ]
    hidden = layer_norm(weights, "ln_pre", torch.stack(tokens))
    states = [hidden]
    for index in weights.indices("transformer.resblocks"):
        hidden = run_block(weights.below(f"transformer.resblocks.{index}"), hidden)
        if index + 1 in shift_layers and context_cls is not None and is_shifted is not None:
            hidden = hidden.clone()
            for picture, chosen in enumerate(is_shifted[:, list(shift_layers).index(index + 1)]):
                for patch in chosen.nonzero()[:, 0].tolist():
                    hidden[picture, 1 + patch] = context_cls[index + 1]
        states.append(hidden)
    return states, layer_norm(weights, "ln_post", hidden[:, 0]) @ weights["proj"]


def run_text_tower(weights: Weights, input_ids: Tensor) -> Tensor:
    """(T, L) ids, <end> the largest of them → (T, D), not normalised."""
    length = input_ids.shape[1]
    hidden = weights["token_embedding.weight"][input_ids] + weights["positional_embedding"][:length]
    barrier = torch.full((length, length), -math.inf, dtype=hidden.dtype).triu(1)
    for index in weights.indices("transformer.resblocks"):
        hidden = run_block(weights.below(f"transformer.resblocks.{index}"), hidden, barrier)
    ends = input_ids.argmax(dim=1)
    last = layer_norm(weights, "ln_final", hidden)[torch.arange(len(input_ids)), ends]
    return last @ weights["text_projection"]


# Semantic integration


def compute_gains(side: int, sigma: float, dtype: torch.dtype) -> Tensor:
    """(side, side), of the spectrum with its zero frequency in the corner."""
    centre = side // 2
    rows = [
        [1 - math.exp(-((y - centre) ** 2 + (x - centre) ** 2) / (2 * sigma**2)) for x in range(side)]
        for y in range(side)
    ]
    return torch.tensor(rows, dtype=dtype)


def enhance(weights: Weights, grid: Tensor, sigma: float) -> Tensor:
    """(B, C, G, G) → the same shape, the Fourier transform written as a sum over rows and columns."""
    channels, side = grid.shape[1], grid.shape[-1]
    steps = torch.arange(side, dtype=grid.dtype)
    angles = 2 * math.pi * (steps[:, None] * steps) / side
    cosine, sine = angles.cos(), angles.sin()
    # (cos − i·sin) on both axes.
    real = cosine @ grid @ cosine - sine @ grid @ sine
    imaginary = -(sine @ grid @ cosine + cosine @ grid @ sine)
    gains = compute_gains(side, sigma, grid.dtype)
    spectrum = torch.cat([real * gains, imaginary * gains], dim=1).permute(0, 2, 3, 1)

    def mix(name: str, values: Tensor) -> Tensor:
        layer = weights.below(name)
        return F.linear(values, layer["weight"][:, :, 0, 0], layer["bias"])

    mixed = mix("conv2", F.relu(mix("conv1", spectrum))).permute(0, 3, 1, 2)
    real, imaginary = mixed[:, :channels], mixed[:, channels:]
    # Real part of (cos + i·sin) on both axes, over side².
    back = cosine @ real @ cosine - sine @ real @ sine - sine @ imaginary @ cosine - cosine @ imaginary @ sine
    return grid + back / side**2


def integrate(
    weights: Weights,
    proposals: Tensor,
    states: Sequence[Tensor],
    picture_embeds: Tensor,
    settings: ScanSettings,
) -> Tensor:
    """Proposal embeddings (B, Q, D), calibrated by the frozen CLIP's tokens and embedding of the picture."""
    levels = []
    for tap, sigma in zip(settings.taps, settings.sigmas, strict=True):
        patches = states[tap][:, 1:]
        side = math.isqrt(patches.shape[1])
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        levels.append(enhance(weights.below("LFM"), grid, sigma).flatten(2).transpose(1, 2))
    memory = linear(weights, "oriclip_mlp.fc2", linear(weights, "oriclip_mlp.fc1", torch.cat(levels, dim=1)))
    steps = weights.indices("fusion_decoder.multiattn")
    for step in steps:
        attention = weights.below(f"fusion_decoder.multiattn.{step}")
        proposals = proposals + fused_attention(attention, proposals, memory, memory, INTEGRATION_HEADS)
        if step < len(steps) - 1:
            proposals = layer_norm(weights, f"fusion_decoder.ln.{step}", proposals)
    direction = picture_embeds / picture_embeds.norm(dim=-1, keepdim=True)
    proposals = proposals + weights["learnable_weight"].reshape(()) * direction[:, None]
    return refine(weights, proposals)


def refine(weights: Weights, proposals: Tensor) -> Tensor:
    """Each proposal embedding (…, D) by itself, through layers in which it attends to nothing but itself."""
    for index in weights.indices("lightweight_transformer.layers"):
        layer = weights.below(f"lightweight_transformer.layers.{index}")
        own = layer.below("self_attn")
        value = F.linear(proposals, own["in_proj_weight"].chunk(3)[2], own["in_proj_bias"].chunk(3)[2])
        proposals = layer_norm(layer, "norm1", proposals + linear(own, "out_proj", value))
        widened = linear(layer, "linear2", F.relu(linear(layer, "linear1", proposals)))
        proposals = layer_norm(layer, "norm2", proposals + widened)
    return proposals


def compute_cosines(first: Tensor, second: Tensor) -> Tensor:
    """(…, D) and (K, D) → (…, K)."""
    first = first / first.norm(dim=-1, keepdim=True)
    return first @ (second / second.norm(dim=-1, keepdim=True)).T


# Crops


@dataclass(frozen=True)
class Crops:
    """Masks of one picture that are not empty.

    Attributes:
        pictures: (N, 3, S, S), normalised for CLIP.
        masks: (N, S, S) bool.
        queries: their queries.
    """

    pictures: Tensor
    masks: Tensor
    queries: list[int]


def cut_crops(pixels: Tensor, mask_logits: Tensor, threshold: float, size: int) -> Crops:
    """Cut masks (Q, h, w), before the sigmoid, out of (3, H, W) pixels in [0, 1]."""
    mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    pictures, masks, queries = [], [], []
    for query, logits in enumerate(mask_logits):
        raised = F.interpolate(logits[None, None], pixels.shape[1:], mode="bilinear", align_corners=False)
        mask = raised[0, 0].sigmoid() > threshold
        places = mask.nonzero()
        if not len(places):
            continue
        (top, left), (bottom, right) = places.amin(dim=0).tolist(), (places.amax(dim=0) + 1).tolist()
        inner = mask[top:bottom, left:right]
        crop = torch.where(inner, pixels[:, top:bottom, left:right], mean)
        crop = F.interpolate(crop[None], (size, size), mode="bicubic", align_corners=False)[0]
        pictures.append((crop - mean) / std)
        rows = torch.arange(size) * inner.shape[0] // size
        columns = torch.arange(size) * inner.shape[1] // size
        masks.append(inner[rows][:, columns])
        queries.append(query)
    return Crops(torch.stack(pictures), torch.stack(masks), queries)


def choose_patches(masks: Tensor, patch_size: int, num_layers: int, ratio: float, seed: int) -> Tensor:
    """⌊ratio · n⌋ of each crop's n background patches, anew for every layer: (N, layers, G²) bool."""
    generator = torch.Generator().manual_seed(seed)
    shares = F.avg_pool2d(masks[:, None].double(), patch_size).ceil().flatten(1)
    chosen = torch.zeros(len(masks), num_layers, shares.shape[1], dtype=torch.bool)
    for crop, share in enumerate(shares):
        background = (share == 0).nonzero()[:, 0]
        for layer in range(num_layers):
            order = torch.randperm(len(background), generator=generator)
            chosen[crop, layer, background[order[: math.floor(ratio * len(background))]]] = True
    return chosen


@torch.no_grad()
def run_scan(
    tensors: Mapping[str, Tensor],
    pixel_values: Tensor,
    mask_logits: Tensor,
    input_ids: Tensor,
    settings: ScanSettings,
) -> dict[str, Any]:
    """The whole forward pass on one picture, in its dtype.

    Args:
        tensors: by SCAN's names.
        pixel_values: (1, 3, H, W), ImageNet's normalisation, H and W multiples of 32.
        mask_logits: (Q, h, w), the masks that are cut out in place of the proposed ones: a pixel at the
            threshold would tell roundings apart.
        input_ids: (K, L), one text a label.
        settings: of SCAN.

    Returns:
        By name what is compared; beside it "is shifted" (N, layers, G²) bool, the patches that were chosen in
        the N masks that are not empty.
    """
    if any(edge % PADDED_TO for edge in pixel_values.shape[-2:]):
        raise ValueError(f"give a picture that needs no padding to {PADDED_TO}")
    dtype = pixel_values.dtype
    proposer = {
        name: tensor for name, tensor in tensors.items() if name.startswith(("backbone.", "sem_seg_head."))
    }
    outputs: dict[str, Any] = run_mask2former(proposer, pixel_values)
    # Its values convert themselves, which is all that Weights asks of a dictionary.
    whole = Weights(InDtype(tensors, dtype))  # type: ignore[arg-type]
    fine_tuned, frozen = whole.below(f"{FINE_TUNED}.visual"), whole.below(FROZEN)

    mean, std, clip_mean, clip_std = (
        torch.tensor(values, dtype=dtype)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD)
    )
    pixels = pixel_values[0] * std + mean
    patch_size = frozen["conv1.weight"].shape[-1]
    size = patch_size * math.isqrt(len(frozen["positional_embedding"]) - 1)
    rows = torch.arange(size) * pixels.shape[1] // size
    columns = torch.arange(size) * pixels.shape[2] // size
    whole_picture = ((pixels - clip_mean) / clip_std)[:, rows][:, :, columns]
    states, picture_embeds = run_vision_tower(frozen, whole_picture[None])

    embed = whole.below("sem_seg_head.predictor.class_embed.layers")
    proposals = linear(embed, "1", F.relu(linear(embed, "0", outputs["queries"][-1])))
    integrated = integrate(whole, proposals, states, picture_embeds, settings)
    texts = run_text_tower(whole.below(FINE_TUNED), input_ids)
    no_object = whole["clip_adapter.non_object_embedding"].reshape(1, -1)
    class_logits = LOGIT_SCALE * compute_cosines(integrated, torch.cat([texts, no_object]))

    crops = cut_crops(pixels, mask_logits, settings.mask_threshold, size)
    is_shifted = choose_patches(
        crops.masks, patch_size, len(settings.shift_layers), settings.shift_ratio, seed=0
    )
    context_cls = {layer: states[layer][0, 0] for layer in settings.shift_layers}
    _, crop_embeds = run_vision_tower(
        fine_tuned, crops.pictures, settings.shift_layers, context_cls, is_shifted
    )
    crop_cosines = compute_cosines(crop_embeds, texts)
    outside = torch.ones(len(mask_logits), len(texts), dtype=dtype)
    outside[crops.queries] = (LOGIT_SCALE * crop_cosines).softmax(dim=-1)
    inside = class_logits[0].softmax(dim=-1)[:, :-1]
    weight = settings.clip_weight
    return {
        **outputs,
        "whole picture": picture_embeds,
        "text embeddings": texts,
        "proposal embeddings": integrated,
        "class logits": class_logits,
        "crop embeddings": crop_embeds,
        "scores": inside ** (1 - weight) * outside**weight,
        "is shifted": is_shifted,
    }
