"""Bounds of many masks over blocks and cells of their grid, without interpolating a pixel.

A *cell* is the square between four neighbouring samples, a *block* a square of BLOCK_SIDE² cells. A bilinear
value is a convex combination of the samples around it and sigmoid is monotone, so the extreme samples of a
cell or block bound the mask probability of each of its pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis
from zsseg.postprocessing.query_logits import compute_sigmoid

BLOCK_SIDE = 8
# Slack of the bounds. Float32 sigmoid, product and rounded score are off by 1e-6 at most, subnormals aside;
# to look closer without need costs time, never exactness.
RELATIVE_MARGIN = 1e-5
ABSOLUTE_MARGIN = 1e-30


class MaskSamples:
    """The logits of the competing queries, read in float32 and never copied as a whole."""

    def __init__(self, mask_logits: Tensor, kept: NDArray[np.intp]) -> None:
        """Take (all queries, h, w) logits on any device and the numbers of the Q queries that compete."""
        logits = mask_logits.detach()
        # NumPy reads faster, but has no bfloat16.
        is_numpy = logits.device.type == "cpu" and logits.dtype != torch.bfloat16
        self._logits: Tensor | NDArray[np.floating] = logits.numpy() if is_numpy else logits
        self._kept = kept

    def read_rows(self, first: int, stop: int) -> NDArray[np.float32]:
        """(Q, stop − first, w)."""
        return self._as_float32(self._logits[self._kept, first:stop])

    def read_windows(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """(a, n) rows and (b, n) columns of n windows → (Q, a, b, n)."""
        return self._as_float32(self._logits[self._kept[:, None, None, None], rows[:, None], columns])

    @staticmethod
    def _as_float32(values: "Tensor | NDArray[np.floating]") -> NDArray[np.float32]:
        if isinstance(values, Tensor):
            return values.to("cpu", torch.float32).numpy()
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of the grid, cut into blocks; cells that fill up the last block hold no pixel.

    Attributes:
        nodes: (blocks · BLOCK_SIDE + 1,) the sample at each border of a cell; repeated beyond the ends.
        start: (blocks · BLOCK_SIDE + 1,) the first pixel of each cell.
        pixel_weights: (pixels,) share of the upper sample at each pixel.
        max_pixels: number of pixels in the largest cell.
    """

    nodes: NDArray[np.int64]
    start: NDArray[np.int64]
    pixel_weights: NDArray[np.float64]
    max_pixels: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.start) // BLOCK_SIDE


def build_block_axis(axis: SamplingAxis) -> BlockAxis:
    """Cut the cells of an axis into blocks."""
    padding = (0, -len(axis.lower) % BLOCK_SIDE)
    return BlockAxis(
        nodes=np.pad(np.append(axis.lower[:1], axis.upper), padding, mode="edge"),
        start=np.pad(axis.start, padding, mode="edge"),
        pixel_weights=axis.weight,
        max_pixels=int(axis.pixel_counts.max()),
    )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the extreme samples say of M cells or blocks.

    Attributes:
        pixels: (M,) number of pixels in each.
        largest: (Q, M) float32, upper bound of score × mask probability.
        candidate: (Q, M) whether the query could win a pixel.
        reaching: (Q, M) whether the query's mask could contain a pixel.
        inside: (Q, M) whether it certainly contains every pixel.
        straddling: (Q, M) reaching, but not inside.
        claimed: (M,) whether a candidate is reaching: if not, all pixels are void, whoever wins them.
        is_single: (M,) whether there is one candidate only.
        winner: (M,) int16, the only candidate; meaningless where there are several.
    """

    pixels: NDArray[np.int64]
    largest: NDArray[np.float32]
    candidate: NDArray[np.bool_]
    reaching: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    straddling: NDArray[np.bool_]
    claimed: NDArray[np.bool_]
    is_single: NDArray[np.bool_]
    winner: NDArray[np.int16]


def build_bounds(
    smallest: NDArray[np.float32],
    largest: NDArray[np.float32],
    scores: NDArray[np.float64],
    mask_threshold: float,
    pixels: NDArray[np.int64],
) -> Bounds:
    """Compare (Q, M) bounds of score × mask probability with each other and with the threshold."""
    candidate = largest >= lower_with_margin(smallest.max(0))
    thresholds = (scores * mask_threshold).astype(np.float32)[:, None]
    reaching = largest >= lower_with_margin(thresholds)
    inside = smallest >= thresholds * np.float32(1 + RELATIVE_MARGIN) + np.float32(ABSOLUTE_MARGIN)
    return Bounds(
        pixels=pixels,
        largest=largest,
        candidate=candidate,
        reaching=reaching,
        inside=inside,
        straddling=reaching & ~inside,
        claimed=np.logical_or.reduce(candidate & reaching, 0),
        is_single=candidate.sum(0, dtype=np.int16) == 1,
        winner=(candidate * np.arange(len(scores), dtype=np.int16)[:, None]).max(0),
    )


def lower_with_margin(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A value certainly below what rounding may have made of the exact one."""
    return values * np.float32(1 - RELATIVE_MARGIN) - np.float32(ABSOLUTE_MARGIN)


def compute_block_extremes(
    samples: MaskSamples, rows: BlockAxis, columns: BlockAxis, first: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest logit in each block of some rows: (Q, stop − first, columns of blocks) each."""
    extremes: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    for block_row in range(first, stop):
        nodes = rows.nodes[block_row * BLOCK_SIDE : (block_row + 1) * BLOCK_SIDE + 1]
        band = samples.read_rows(int(nodes[0]), int(nodes[-1]) + 1)
        for extreme, result in zip((np.minimum, np.maximum), extremes, strict=True):
            at_nodes = extreme.reduce(band, axis=1)[:, columns.nodes]
            within = extreme.reduce(at_nodes[:, :-1].reshape(len(band), columns.blocks, BLOCK_SIDE), axis=2)
            result.append(extreme(within, at_nodes[:, BLOCK_SIDE::BLOCK_SIDE]))
    smallest, largest = (np.stack(result, axis=1) for result in extremes)
    return smallest, largest


def compute_weighted(logits: NDArray[np.float32], scores: NDArray[np.float64]) -> NDArray[np.float32]:
    """(Q, …) logits → score × sigmoid, in float32 for bounds."""
    weighted = compute_sigmoid(logits, out=np.empty_like(logits))
    weighted *= scores.astype(np.float32).reshape(-1, *(1,) * (logits.ndim - 1))
    return weighted


def compute_cell_extremes(
    at_corners: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(Q, a + 1, b + 1, n) values at the corners → smallest and largest of each cell, (Q, a, b, n)."""
    results = []
    for extreme in (np.minimum, np.maximum):
        between = extreme(at_corners[:, :-1], at_corners[:, 1:])
        results.append(extreme(between[:, :, :-1], between[:, :, 1:]))
    return results[0], results[1]
