"""Masks cut out of a picture, pixel by pixel, and what lies outside them."""

import math

import numpy as np


def box(mask):
    """(H, W) bool → top, bottom, left, right; bottom and right are behind the last."""
    places = [(y, x) for y, x in np.ndindex(*mask.shape) if mask[y, x]]
    rows, columns = zip(*places, strict=True)
    return min(rows), max(rows) + 1, min(columns), max(columns) + 1


def cut(pixels, mask, fill):
    """(C, H, W) → the box of the mask, with ``fill`` (C,) wherever the mask is not."""
    top, bottom, left, right = box(mask)
    crop = np.empty((len(pixels), bottom - top, right - left))
    for y, x in np.ndindex(bottom - top, right - left):
        crop[:, y, x] = pixels[:, top + y, left + x] if mask[top + y, left + x] else fill
    return crop


def resize_nearest(picture, size):
    """(..., h, w) → (..., *size): each pixel takes the one at ⌊its place · the ratio of sizes⌋."""
    height, width = picture.shape[-2:]
    rows = [y * height // size[0] for y in range(size[0])]
    columns = [x * width // size[1] for x in range(size[1])]
    return picture[..., rows, :][..., columns]


def is_background(mask, patch):
    """(S, S) bool → (G²,) bool: ceil of the mask's mean over each patch is 0."""
    side = len(mask) // patch
    means = [
        mask[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].mean()
        for y in range(side)
        for x in range(side)
    ]
    return np.array([math.ceil(mean) == 0 for mean in means])


def choose(background, ratio, priorities):
    """(P,) bool, (P,) random numbers → the ⌊ratio · n⌋ background patches with the lowest, as a set."""
    patches = [patch for patch in range(len(background)) if background[patch]]
    count = math.floor(ratio * len(patches))
    return set(sorted(patches, key=lambda patch: priorities[patch])[:count])
