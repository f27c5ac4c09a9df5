"""Which query wins each pixel, at a cost that follows the boundaries instead of pixels × queries.

Where the bounds of one query's score × mask probability lie above those of all others, it wins a whole block
of cells, and no pixel is computed. Only blocks that the bounds leave open are looked at cell by cell, only
open cells pixel by pixel, and there only the queries that could win. The bounds are taken in float32 with a
margin far above its rounding, the pixels in float64: the result is that of comparing every query at every
pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis
from zsseg.postprocessing.mask_bounds import (
    BLOCK_SIDE,
    BlockAxis,
    Bounds,
    MaskSamples,
    build_block_axis,
    build_bounds,
    compute_block_extremes,
    compute_cell_extremes,
    compute_weighted,
    lower_with_margin,
)
from zsseg.postprocessing.query_logits import compute_sigmoid

NOBODY = -1
# Values in one work array: float32 bounds, float64 pixels.
BOUNDS_PER_CHUNK = 1 << 18
PIXELS_PER_CHUNK = 1 << 18
# The cells of a strongly enlarged mask are taken in tiles of at most this many pixels a side.
TILE_SIDE = 16


@dataclass(frozen=True, slots=True)
class ContestedPixels:
    """Pixels decided one by one: one tile of n cells.

    Attributes:
        rows: (a, n) rows of the map; a cell with fewer than a rows repeats its last one.
        columns: (b, n) columns, likewise.
        owner: (a, b, n) int16, the query that wins the pixel and whose mask contains it, or -1.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    owner: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of n blocks, M = BLOCK_SIDE² · n in all, flattened from (row, column, block).

    Attributes:
        corners: (Q, BLOCK_SIDE + 1, BLOCK_SIDE + 1, n) float32 logits.
        block_rows: (n,) row of each block.
        block_columns: (n,) column of each block.
        bounds: of the M cells.
    """

    corners: NDArray[np.float32]
    block_rows: NDArray[np.intp]
    block_columns: NDArray[np.intp]
    bounds: Bounds

    def locate(self, cells: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column in the whole grid of some of the M cells."""
        row, column, block = np.unravel_index(cells, (BLOCK_SIDE, BLOCK_SIDE, len(self.block_rows)))
        return self.block_rows[block] * BLOCK_SIDE + row, self.block_columns[block] * BLOCK_SIDE + column


@dataclass(frozen=True, slots=True)
class _Pairs:
    """(cell, query) pairs of n cells, those with most queries first.

    The pairs run by rank: first the lowest query of every cell, then the second of every cell that has two …
    So the pairs of one rank belong to the first cells, in order.

    Attributes:
        cells: (n,) which of the M cells.
        place: (pairs,) number of the pair's cell among the n.
        query: (pairs,) int16.
        widths: number of pairs in each rank, descending.
    """

    cells: NDArray[np.intp]
    place: NDArray[np.intp]
    query: NDArray[np.int16]
    widths: list[int]


@dataclass(frozen=True, slots=True)
class _Tile:
    """Up to TILE_SIDE² pixels of each of n cells.

    Attributes:
        rows: (a, n) rows of the map; a cell with fewer than a rows repeats its last one.
        columns: (b, n) columns, likewise.
        valid: (a, b, n) False for the repeated ones.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _UnsettledBlocks:
    """n blocks with pixels that no mask contains and that several queries could win.

    Attributes:
        block_rows: (n,) row of each block.
        block_columns: (n,) column of each block.
        candidate: (Q, n) whether the query could win such a pixel.
        is_whole: whether the blocks consist of such pixels, and none has been counted; else the cells with
            several candidates are meant.
    """

    block_rows: NDArray[np.intp]
    block_columns: NDArray[np.intp]
    candidate: NDArray[np.bool_]
    is_whole: bool


class MaskCompetition:
    """Per-pixel argmax of score × sigmoid(mask), and the areas that follow from it.

    Queries are numbered 0..Q-1 here; a tie goes to the lower number. Areas are in pixels.

    Attributes:
        cell_owner: (cell rows, cell columns) int16: the query that wins the whole cell and whose mask
            contains all of it; -1 where there is none.
        contested: the pixels of the cells that need a closer look.
        own_areas: (Q,) pixels of each query's own binary mask, sigmoid(mask) ≥ ``mask_threshold``.
        won_areas: (Q,) pixels where the query is the argmax, whether its own mask contains them or not; a
            lower bound until :meth:`settle_won_areas`.
        owned_areas: (Q,) pixels where it is the argmax and its own mask contains them.
        unsettled_areas: (Q,) pixels that may still be missing in ``won_areas``.
    """

    def __init__(
        self,
        mask_logits: Tensor,
        kept: NDArray[np.intp],
        scores: NDArray[np.float64],
        rows: SamplingAxis,
        columns: SamplingAxis,
        mask_threshold: float,
    ) -> None:
        """Run the competition.

        Args:
            mask_logits: (all queries, h, w), read in float32.
            kept: (Q,) the queries that compete, Q ≥ 1.
            scores: (Q,) positive.
            rows: sampling of the map's rows on h.
            columns: sampling of the map's columns on w.
            mask_threshold: in [0, 1].
        """
        self._samples = MaskSamples(mask_logits, kept)
        self._scores = scores
        self._rows = build_block_axis(rows)
        self._columns = build_block_axis(columns)
        self._mask_threshold = mask_threshold
        self._owner = np.full(
            (self._rows.blocks, BLOCK_SIDE, self._columns.blocks, BLOCK_SIDE), NOBODY, np.int16
        )
        self.cell_owner = self._owner.reshape(self._rows.blocks * BLOCK_SIDE, -1)
        self.contested: list[ContestedPixels] = []
        self.own_areas, self.won_areas, self.owned_areas, self.unsettled_areas = np.zeros(
            (4, len(kept)), np.int64
        )
        self._unsettled: list[_UnsettledBlocks] = []
        band = max(1, BOUNDS_PER_CHUNK // (len(kept) * self._columns.blocks))
        for first in range(0, self._rows.blocks, band):
            open_blocks = self._decide_blocks(first, min(first + band, self._rows.blocks))
            for cells in self._look_closer(*open_blocks):
                self._decide_cells(cells)

    def settle_won_areas(self, queries: NDArray[np.bool_]) -> None:
        """Count what is missing in the won areas of some queries: pixels that no mask contains.

        They are void whoever wins them, so they are looked at only if a query's fate hangs on them. To be
        called once.

        Args:
            queries: (Q,) whose won areas are to be exact afterwards.
        """
        for blocks in self._unsettled:
            asked = np.flatnonzero(blocks.candidate[queries].any(0))
            for cells in self._look_closer(blocks.block_rows[asked], blocks.block_columns[asked]):
                bounds = cells.bounds
                missing = ~bounds.claimed & (bounds.pixels > 0) & bounds.candidate[queries].any(0)
                if not blocks.is_whole:
                    missing &= ~bounds.is_single
                chosen = np.flatnonzero(missing)
                for _, pairs in self._pair(chosen, bounds.candidate[:, chosen]):
                    for tile in self._tiles(cells, pairs):
                        _, winner, _ = self._compete(self._probabilities(cells, tile, pairs), pairs)
                        self.won_areas += self._count(winner[tile.valid])

    def _decide_blocks(self, first: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Settle what the bounds decide of some rows of blocks: rows and columns of the other blocks."""
        extremes = compute_block_extremes(self._samples, self._rows, self._columns, first, stop)
        smallest, largest = (
            compute_weighted(extreme, self._scores).reshape(len(self._scores), -1) for extreme in extremes
        )
        edges_of_blocks = (self._rows.start[::BLOCK_SIDE], self._columns.start[::BLOCK_SIDE])
        row_pixels, column_pixels = (np.diff(start) for start in edges_of_blocks)
        pixels = np.outer(row_pixels[first:stop], column_pixels).ravel()
        bounds = build_bounds(smallest, largest, self._scores, self._mask_threshold, pixels)

        closed = (bounds.is_single | ~bounds.claimed) & ~bounds.straddling.any(0)
        self.own_areas += np.einsum("qm,m->q", bounds.inside, np.where(closed, pixels, 0))
        owner = self._count_decided(bounds, closed & bounds.is_single)
        self._owner[first:stop] = owner.reshape(stop - first, 1, -1, 1)
        block_rows, block_columns = np.divmod(np.arange(len(pixels)), self._columns.blocks)
        block_rows += first
        unsettled = np.flatnonzero(closed & ~bounds.is_single)
        candidate = bounds.candidate[:, unsettled]
        self.unsettled_areas += np.einsum("qm,m->q", candidate, pixels[unsettled])
        self._unsettled.append(
            _UnsettledBlocks(block_rows[unsettled], block_columns[unsettled], candidate, is_whole=True)
        )
        still_open = ~closed & (pixels > 0)
        return block_rows[still_open], block_columns[still_open]

    def _look_closer(self, block_rows: NDArray[np.intp], block_columns: NDArray[np.intp]) -> Iterator[_Cells]:
        """Bounds of the cells of some blocks, as many blocks at a time as the work arrays hold."""
        steps = np.arange(BLOCK_SIDE + 1)[:, None]
        size = max(1, BOUNDS_PER_CHUNK // (len(self._scores) * (BLOCK_SIDE + 1) ** 2))
        for first in range(0, len(block_rows), size):
            chosen_rows, chosen_columns = (
                block_rows[first : first + size],
                block_columns[first : first + size],
            )
            borders = chosen_rows * BLOCK_SIDE + steps, chosen_columns * BLOCK_SIDE + steps
            corners = self._samples.read_windows(
                self._rows.nodes[borders[0]], self._columns.nodes[borders[1]]
            )
            smallest, largest = (
                extreme.reshape(len(self._scores), -1)
                for extreme in compute_cell_extremes(compute_weighted(corners, self._scores))
            )
            row_pixels = np.diff(self._rows.start[borders[0]], axis=0)
            column_pixels = np.diff(self._columns.start[borders[1]], axis=0)
            pixels = (row_pixels[:, None] * column_pixels).ravel()
            bounds = build_bounds(smallest, largest, self._scores, self._mask_threshold, pixels)
            yield _Cells(corners, chosen_rows, chosen_columns, bounds)

    def _decide_cells(self, cells: _Cells) -> None:
        """Settle what the bounds decide of some cells, and compute the pixels of the others."""
        bounds, shape = cells.bounds, (BLOCK_SIDE, BLOCK_SIDE, len(cells.block_rows))
        claiming = bounds.candidate & bounds.reaching
        decided = bounds.is_single & ~(claiming & bounds.straddling).any(0)
        self.own_areas += np.einsum("qm,m->q", bounds.inside, bounds.pixels)
        owner = self._count_decided(bounds, decided)
        self._owner[cells.block_rows, :, cells.block_columns] = owner.reshape(shape).transpose(2, 0, 1)

        unsettled = ~bounds.claimed & ~bounds.is_single & (bounds.pixels > 0)
        candidate = bounds.candidate & unsettled
        self.unsettled_areas += np.einsum("qm,m->q", candidate, bounds.pixels)
        candidate_of_block = np.logical_or.reduce(candidate.reshape(len(candidate), -1, shape[2]), 1)
        self._unsettled.append(
            _UnsettledBlocks(cells.block_rows, cells.block_columns, candidate_of_block, is_whole=False)
        )

        contested = ~decided & bounds.claimed & (bounds.pixels > 0)
        chosen = np.flatnonzero(contested)
        members = (claiming | bounds.straddling)[:, chosen]
        self._resolve(cells, chosen, members, has_measured=False)
        chosen = np.flatnonzero(bounds.straddling.any(0) & ~contested & (bounds.pixels > 0))
        for _, pairs in self._pair(chosen, bounds.straddling[:, chosen]):
            for tile in self._tiles(cells, pairs):
                self._measure(cells, tile, pairs, self._probabilities(cells, tile, pairs))

    def _count_decided(self, bounds: Bounds, decided: NDArray[np.bool_]) -> NDArray[np.int16]:
        """Count what single candidates win, and name the owners: (M,)."""
        winner = np.where(decided, bounds.winner, np.int16(NOBODY))
        owner = np.where(bounds.claimed, winner, np.int16(NOBODY))
        self.won_areas += self._count(winner, bounds.pixels)
        self.owned_areas += self._count(owner, bounds.pixels)
        return owner

    def _resolve(
        self, cells: _Cells, chosen: NDArray[np.intp], members: NDArray[np.bool_], *, has_measured: bool
    ) -> None:
        """Find the owner of every pixel of n cells.

        The bounds of a cell that two masks share are weak: each is low at one of its corners, so every other
        query looks like a rival. Hence the queries whose masks may contain a pixel go first. The least that
        their best reaches at any pixel rules out the others; if not, the cell is decided again with those
        that are left.

        Args:
            cells: the cells of some blocks.
            chosen: (n,) which of them.
            members: (Q, n) which queries go first.
            has_measured: whether the members' own areas have been counted.
        """
        for part, pairs in self._pair(chosen, members):
            least = np.full(len(part), np.inf)
            outcomes = []
            for tile in self._tiles(cells, pairs):
                probabilities = self._probabilities(cells, tile, pairs)
                if not has_measured:
                    self._measure(cells, tile, pairs, probabilities)
                best, winner, contained = self._compete(probabilities, pairs)
                np.minimum(least, best.min((0, 1)), out=least)
                outcomes.append((tile, winner, np.where(contained, winner, np.int16(NOBODY))))
            rivals = cells.bounds.largest[:, pairs.cells] >= lower_with_margin(least.astype(np.float32))
            rivals &= cells.bounds.candidate[:, pairs.cells] & ~members[:, part]
            is_late = rivals.any(0)
            for tile, winner, owner in outcomes:
                valid = tile.valid & ~is_late
                self.won_areas += self._count(winner[valid])
                self.owned_areas += self._count(owner[valid])
                # Cells decided again are painted again, after this.
                self.contested.append(ContestedPixels(tile.rows, tile.columns, owner))
            rivals |= members[:, part]
            self._resolve(cells, pairs.cells[is_late], rivals[:, is_late], has_measured=True)

    def _pair(
        self, chosen: NDArray[np.intp], members: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.intp], _Pairs]]:
        """Pair n cells with their queries (Q, n), as many cells at a time as the work arrays hold.

        Yields:
            Which of the n cells, in the order of the pairs' cells, and the pairs.
        """
        if not len(chosen):
            return
        counts = members.sum(0, dtype=np.intp)
        order = np.argsort(-counts, kind="stable")
        tile_area = min(TILE_SIDE, self._rows.max_pixels) * min(TILE_SIDE, self._columns.max_pixels)
        chunk = np.cumsum(counts[order]) * tile_area // PIXELS_PER_CHUNK
        for part in np.split(order, np.flatnonzero(np.diff(chunk)) + 1):
            place, query = np.nonzero(members[:, part].T)
            rank = np.arange(len(place)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            by_rank = np.argsort(rank, kind="stable")
            yield (
                part,
                _Pairs(
                    cells=chosen[part],
                    place=place[by_rank],
                    query=query[by_rank].astype(np.int16),
                    widths=np.bincount(rank).tolist(),
                ),
            )

    def _tiles(self, cells: _Cells, pairs: _Pairs) -> Iterator[_Tile]:
        """The pixels of the pairs' cells, in tiles."""
        cell_rows, cell_columns = cells.locate(pairs.cells)
        row_sets = list(_pixel_sets(self._rows, cell_rows))
        for columns, column_valid in _pixel_sets(self._columns, cell_columns):
            for rows, row_valid in row_sets:
                yield _Tile(rows, columns, row_valid[:, None] & column_valid[None])

    def _probabilities(self, cells: _Cells, tile: _Tile, pairs: _Pairs) -> NDArray[np.float64]:
        """(a, b, pairs) sigmoid of the interpolated mask logits."""
        shape = cells.corners.shape
        row, column, block = np.unravel_index(pairs.cells[pairs.place], (BLOCK_SIDE, BLOCK_SIDE, shape[3]))
        corner = np.ravel_multi_index((pairs.query, row, column, block), shape)
        column_weights = self._columns.pixel_weights[tile.columns][:, pairs.place]
        row_weights = self._rows.pixel_weights[tile.rows][:, None, pairs.place]
        values = cells.corners.reshape(-1)

        def interpolate_along(corner: NDArray[np.intp]) -> NDArray[np.float64]:
            left = values[corner].astype(np.float64)
            right = values[corner + shape[3]].astype(np.float64)
            return left + (right - left) * column_weights

        upper = interpolate_along(corner)
        logits = (interpolate_along(corner + shape[2] * shape[3]) - upper) * row_weights
        logits += upper
        return compute_sigmoid(logits, out=logits)

    def _compete(
        self, probabilities: NDArray[np.float64], pairs: _Pairs
    ) -> tuple[NDArray[np.float64], NDArray[np.int16], NDArray[np.bool_]]:
        """Maximum over each cell's queries: (a, b, n) its value, whose it is, whether that mask has it."""
        weighted = probabilities * self._scores[pairs.query]
        inside = probabilities >= self._mask_threshold
        count = len(pairs.cells)
        best, contained = weighted[:, :, :count].copy(), inside[:, :, :count].copy()
        winner = np.broadcast_to(pairs.query[:count], best.shape).copy()
        first = count
        for width in pairs.widths[1:]:
            rank = slice(first, first + width)
            better = weighted[:, :, rank] > best[:, :, :width]
            np.maximum(best[:, :, :width], weighted[:, :, rank], out=best[:, :, :width])
            np.copyto(winner[:, :, :width], pairs.query[rank], where=better)
            np.copyto(contained[:, :, :width], inside[:, :, rank], where=better)
            first += width
        return best, winner, contained

    def _measure(self, cells: _Cells, tile: _Tile, pairs: _Pairs, probabilities: NDArray[np.float64]) -> None:
        """Add the pixels of the pairs' own binary masks, but for pairs that the bounds have counted."""
        uncounted = np.flatnonzero(~cells.bounds.inside[pairs.query, pairs.cells[pairs.place]])
        contained = probabilities[:, :, uncounted] >= self._mask_threshold
        contained &= tile.valid[:, :, pairs.place[uncounted]]
        self.own_areas += self._count(pairs.query[uncounted], contained.sum((0, 1)))

    def _count(
        self, queries: NDArray[np.int16], pixels: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """(Q,) how often each query occurs, or the pixels it collects; -1 counts for nobody."""
        counts = np.bincount(queries + 1, weights=pixels, minlength=len(self._scores) + 1)
        return counts[1:].astype(np.int64)


def _pixel_sets(
    axis: BlockAxis, cells: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Pixels of some cells along one axis, at most TILE_SIDE at a time: (a, n) pixels and which are valid."""
    starts, ends = axis.start[cells], axis.start[cells + 1]
    longest = int((ends - starts).max())
    for first in range(0, longest, TILE_SIDE):
        pixels = starts + np.arange(first, min(first + TILE_SIDE, longest))[:, None]
        yield np.minimum(pixels, ends - 1), pixels < ends
