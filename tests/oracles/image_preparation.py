"""Resize, rescale, normalise and pad a picture, written out in float64."""

import numpy as np


def resize_weights(size, target):
    """(target, size): the triangle filter, widened when shrinking, at pixel centres, cut off at the edges."""
    scale = size / target
    support = max(scale, 1.0)
    weights = np.zeros((target, size))
    for out in range(target):
        centre = (out + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))
        for pixel in range(first, last):
            weights[out, pixel] = max(0.0, 1.0 - abs(pixel + 0.5 - centre) / support)
        weights[out] /= weights[out].sum()
    return weights


def resize(picture, height, width):
    """(H, W, 3) levels → (height, width, 3) levels, not rounded."""
    rows, columns = resize_weights(picture.shape[0], height), resize_weights(picture.shape[1], width)
    return np.einsum("kl,ilc->ikc", columns, np.einsum("ij,jlc->ilc", rows, np.float64(picture)))


def normalise(levels, mean, std):
    """(H, W, 3) levels → (3, H, W)."""
    return ((levels / 255.0 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
