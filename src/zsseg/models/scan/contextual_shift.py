"""CLIP's view of a picture and of its masks cut out, with the picture's context put into their background."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection


@dataclass(frozen=True)
class PictureContext:
    """The frozen CLIP's view of whole pictures.

    Attributes:
        hidden_states: the tokens (B, 1 + G², C) before the first block and behind each, CLS first.
        image_embeds: (B, D), not normalised.
    """

    hidden_states: tuple[Tensor, ...]
    image_embeds: Tensor

    def select_grids(self, layers: Sequence[int]) -> list[Tensor]:
        """The patch tokens behind some blocks, counted from 1, each as (B, C, G, G)."""
        return [_to_grid(self.hidden_states[layer][:, 1:]) for layer in layers]

    def select_cls(self, layers: Sequence[int]) -> Tensor:
        """The CLS tokens behind some blocks, counted from 1: (B, layers, C)."""
        return torch.stack([self.hidden_states[layer][:, 0] for layer in layers], dim=1)


@dataclass(frozen=True)
class MaskCrops:
    """Masks of pictures, cut out.

    Attributes:
        pixel_values: (N, 3, S, S), CLIP's normalisation; 0, which is its mean, outside the mask.
        masks: (N, S, S) bool.
        image_indices: (N,) int64, the picture of each.
        query_indices: (N,) int64, the query of each.
    """

    pixel_values: Tensor
    masks: Tensor
    image_indices: Tensor
    query_indices: Tensor


def encode_context(tower: CLIPVisionModelWithProjection, pixel_values: Tensor) -> PictureContext:
    """Run the frozen tower on whole pictures: (B, 3, S, S), CLIP's normalisation."""
    outputs = tower(pixel_values.to(tower.visual_projection.weight.dtype), output_hidden_states=True)
    return PictureContext(outputs.hidden_states, outputs.image_embeds)


def find_sizes(pixel_mask: Tensor) -> list[tuple[int, int]]:
    """Per picture the (height, width) that (B, H, W) marks as picture, at the top left."""
    rows, columns = (pixel_mask.bool().any(dim=axis).sum(dim=1) for axis in (2, 1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def resize_whole_pictures(
    clip_pixels: Tensor, sizes: Sequence[tuple[int, int]], size: int, *, size_divisor: int = 32
) -> Tensor:
    """Whole pictures as the context CLIP takes them: nearest neighbour, aspect ignored, padding included.

    Args:
        clip_pixels: (B, 3, H, W), CLIP's normalisation.
        sizes: per picture its (height, width) without padding.
        size: S.
        size_divisor: a picture is resized with padding up to a multiple of it, whatever padding it comes
            with: a larger picture in the batch changes nothing.

    Returns:
        (B, 3, S, S).
    """
    resized = []
    for picture, (height, width) in zip(clip_pixels, sizes, strict=True):
        margin = (0, -width % size_divisor, 0, -height % size_divisor)
        padded = F.pad(picture[None, :, :height, :width], margin)
        resized.append(F.interpolate(padded, (size, size), mode="nearest"))
    return torch.cat(resized)


def iterate_mask_crops(
    clip_pixels: Tensor,
    mask_logits: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    threshold: float,
    size: int,
    batch_size: int,
    is_wanted: Tensor | None = None,
) -> Iterator[MaskCrops]:
    """Cut every mask that is not empty out of its picture, a batch at a time.

    Args:
        clip_pixels: (B, 3, H, W), CLIP's normalisation, 0 on padding.
        mask_logits: (B, Q, h, w) before the sigmoid; they cover (H, W), padding included.
        sizes: per picture its (height, width) without padding; masks end there.
        threshold: probability above which a pixel belongs to a mask.
        size: S, of a crop.
        batch_size: masks that are looked at, and so crops at most, in one batch.
        is_wanted: (B, Q) bool, the masks to cut out; None cuts all.

    Reference:
        SCAN, Sec. 3.3 (arXiv:2312.04089): masks bilinear to the picture's size, a tight box, CLIP's mean
        outside the mask, pixels bicubic and mask nearest to CLIP's size.
    """
    for image, (height, width) in enumerate(sizes):
        picture = clip_pixels[image, :, :height, :width]
        picture = picture.to(torch.promote_types(picture.dtype, torch.float32))
        wanted = torch.arange(mask_logits.shape[1], device=mask_logits.device)
        if is_wanted is not None:
            wanted = wanted[is_wanted[image]]
        for queries in wanted.split(batch_size) if len(wanted) else ():
            logits = mask_logits[image : image + 1, queries].float()
            probabilities = F.interpolate(logits, clip_pixels.shape[-2:], mode="bilinear").sigmoid()
            masks = probabilities[0, :, :height, :width] > threshold
            crops = cut_out(picture, masks, size)
            if len(crops.query_indices):
                yield MaskCrops(
                    crops.pixel_values,
                    crops.masks,
                    torch.full_like(crops.query_indices, image),
                    queries[crops.query_indices],
                )


def cut_out(clip_pixels: Tensor, masks: Tensor, size: int) -> MaskCrops:
    """Cut the masks of one picture out; empty ones are left out.

    Args:
        clip_pixels: (3, H, W), CLIP's normalisation.
        masks: (Q, H, W) bool.
        size: S.
    """
    has_row, has_column = masks.any(dim=2), masks.any(dim=1)
    kept = has_row.any(dim=1).nonzero()[:, 0]
    pixel_values = clip_pixels.new_zeros(len(kept), 3, size, size)
    crop_masks = torch.zeros(len(kept), size, size, dtype=torch.bool, device=masks.device)
    boxes = zip(*(_find_extent(has[kept]) for has in (has_row, has_column)), strict=True)
    for crop, (query, ((top, bottom), (left, right))) in enumerate(zip(kept.tolist(), boxes, strict=True)):
        mask = masks[query, top:bottom, left:right][None, None].to(clip_pixels.dtype)
        pixels = clip_pixels[None, :, top:bottom, left:right] * mask
        pixel_values[crop] = F.interpolate(pixels, (size, size), mode="bicubic")[0]
        crop_masks[crop] = F.interpolate(mask, (size, size), mode="nearest")[0, 0] > 0
    return MaskCrops(pixel_values, crop_masks, torch.zeros_like(kept), kept)


def _find_extent(is_used: Tensor) -> list[list[int]]:
    """First used index and the one behind the last, of each row of (N, n) bool."""
    length = is_used.shape[1]
    first = is_used.int().argmax(dim=1)
    last = length - is_used.flip(1).int().argmax(dim=1)
    return torch.stack([first, last], dim=1).tolist()


def find_background_patches(masks: Tensor, patch_size: int) -> Tensor:
    """(N, S, S) bool masks → (N, G²) bool: the patches in which no pixel belongs to the mask."""
    foreground = F.max_pool2d(masks[:, None].float(), patch_size)
    return foreground.flatten(1) == 0


def choose_shifted_patches(is_background: Tensor, ratio: float, priorities: Tensor) -> Tensor:
    """Choose ⌊ratio · n⌋ of each crop's n background patches, without replacement.

    Args:
        is_background: (N, P) bool.
        ratio: in [0, 1].
        priorities: (N, layers, P) random numbers; the lowest are taken.

    Returns:
        (N, layers, P) bool.
    """
    counts = (ratio * is_background.sum(dim=-1).double()).floor().long()
    ranks = priorities.masked_fill(~is_background[:, None], torch.inf).argsort(dim=-1).argsort(dim=-1)
    return ranks < counts[:, None, None]


def encode_shifted(
    tower: CLIPVisionModelWithProjection,
    pixel_values: Tensor,
    *,
    shift_layers: Sequence[int] = (),
    context_cls: Tensor | None = None,
    is_shifted: Tensor | None = None,
) -> Tensor:
    """Embed crops; behind some blocks, chosen patches become the CLS token of the whole picture.

    All other tokens, the unchosen background among them, stay as they are.

    Args:
        tower: of the crops.
        pixel_values: (N, 3, S, S), CLIP's normalisation.
        shift_layers: blocks counted from 1.
        context_cls: (N, layers, C), of the picture of each crop, by the frozen tower behind the same blocks.
        is_shifted: (N, layers, G²) bool.

    Returns:
        (N, D), not normalised.

    Reference:
        SCAN, Sec. 3.3 (arXiv:2312.04089).
    """
    vision: Any = tower.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values.to(tower.visual_projection.weight.dtype)))
    for number, block in enumerate(vision.encoder.layers, start=1):
        hidden = block(hidden, None)
        if number in shift_layers and context_cls is not None and is_shifted is not None:
            place = tuple(shift_layers).index(number)
            patches = torch.where(
                is_shifted[:, place, :, None], context_cls[:, place, None].to(hidden.dtype), hidden[:, 1:]
            )
            hidden = torch.cat([hidden[:, :1], patches], dim=1)
    return tower.visual_projection(vision.post_layernorm(hidden[:, 0]))


def _to_grid(tokens: Tensor) -> Tensor:
    """(B, G², C) → (B, C, G, G)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))
