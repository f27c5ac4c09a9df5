"""SCAN's low-frequency enhancement, frequency by frequency in complex128."""

import numpy as np


def gains(size, sigma):
    centre = size // 2
    return np.array(
        [
            [1 - np.exp(-((y - centre) ** 2 + (x - centre) ** 2) / (2 * sigma**2)) for x in range(size)]
            for y in range(size)
        ]
    )


def transform(grid, sign):
    """Two-dimensional DFT by its definition: Σ grid · exp(sign · 2πi (uy + vx) / G), without a factor."""
    size = len(grid)
    waves = np.exp(sign * 2j * np.pi * np.outer(range(size), range(size)) / size)
    return waves @ grid @ waves


def enhance(features, sigma, first, second):
    """(C, G, G) → (C, G, G); ``first``, ``second``: weight (2C, 2C), bias (2C,) of the 1×1 convolutions."""
    channels, size, _ = features.shape
    spectrum = np.stack([transform(channel, -1) for channel in features]) * gains(size, sigma)
    enhanced = np.empty_like(features, dtype=np.float64)
    parts = np.empty((2 * channels, size, size))
    for y in range(size):
        for x in range(size):
            numbers = np.concatenate([spectrum[:, y, x].real, spectrum[:, y, x].imag])
            hidden = np.maximum(first[0] @ numbers + first[1], 0)
            parts[:, y, x] = second[0] @ hidden + second[1]
    for channel in range(channels):
        mixed = parts[channel] + 1j * parts[channels + channel]
        enhanced[channel] = features[channel] + transform(mixed, 1).real / size**2
    return enhanced
