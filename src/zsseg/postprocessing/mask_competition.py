"""Which query wins each pixel, at a cost that follows the boundaries instead of pixels × queries.

A bilinear value is a convex combination of the four samples around it, and sigmoid is monotone. So the
samples at a cell's corners bound every query's weighted probability over all pixels of the cell. Where one
query's lower bound beats all other upper bounds, it wins the cell and no pixel is computed. Only the pixels
of contested cells are interpolated, and only for the queries that could win there. The bounds are taken in
float32 with a margin far above its rounding, the pixels in float64: the result is that of comparing every
query at every pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsseg.postprocessing.bilinear import SamplingAxis
from zsseg.postprocessing.query_logits import compute_sigmoid

NOBODY = -1
# Slack of the bounds. Float32 sigmoid, product and rounded score are off by 1e-6 at most, subnormals aside; a
# cell called contested without need costs time, never exactness.
RELATIVE_MARGIN = 1e-5
ABSOLUTE_MARGIN = 1e-30
# Values in one work array: float32 bounds (1 MiB), float64 pixels (1 MiB).
BOUNDS_PER_STRIP = 1 << 18
PIXELS_PER_CHUNK = 1 << 17
# The cells of a strongly enlarged mask are taken in tiles of at most this many pixels a side.
TILE_SIDE = 16


@dataclass(frozen=True, slots=True)
class ContestedPixels:
    """Pixels decided one by one: one tile of n cells.

    Attributes:
        rows: (a, n) rows of the map; a cell with fewer than a rows repeats its last one.
        columns: (b, n) columns, likewise.
        owner: (a, b, n) int32, the query that wins the pixel and whose mask contains it, or -1.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    owner: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Strip:
    """Some rows of cells and what the bounds say of them.

    Attributes:
        first_row: number of its first row of cells.
        corners: (Q, rows + 1, columns + 1) float32, the logits at the corners of the cells.
        pixels: (rows, columns) number of pixels in each cell.
        largest: (Q, rows, columns) float32, upper bound of score × mask probability.
        candidate: (Q, rows, columns) whether the query could win a pixel.
        reaching: likewise, whether the query's mask could contain a pixel.
        inside: whether it certainly contains every pixel.
        straddling: reaching, but not inside.
    """

    first_row: int
    corners: NDArray[np.float32]
    pixels: NDArray[np.int64]
    largest: NDArray[np.float32]
    candidate: NDArray[np.bool_]
    reaching: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    straddling: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """(cell, query) pairs of n cells, those with most queries first.

    The pairs run by rank: first the lowest query of every cell, then the second of every cell that has two …
    So the pairs of one rank belong to the first cells, in order.

    Attributes:
        rows: (n,) row of each cell in its strip.
        columns: (n,) column of each cell.
        place: (pairs,) number of the pair's cell among the n.
        query: (pairs,) int32.
        widths: number of pairs in each rank, descending.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    place: NDArray[np.intp]
    query: NDArray[np.int32]
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


class MaskCompetition:
    """Per-pixel argmax of score × sigmoid(mask), and the areas that follow from it.

    Queries are numbered 0..Q-1 here; a tie goes to the lower number. Areas are in pixels.

    Attributes:
        cell_owner: (cell rows, cell columns) int32: the query that wins the whole cell and whose mask
            contains all of it; -1 where there is none.
        contested: the pixels of the cells that need a closer look.
        own_areas: (Q,) pixels of each query's own binary mask, sigmoid(mask) ≥ ``mask_threshold``.
        won_areas: (Q,) pixels where the query is the argmax, whether its own mask contains them or not; a
            lower bound until :meth:`settle_won_areas`.
        owned_areas: (Q,) pixels where it is the argmax and its own mask contains them.
        unsettled_area: pixels that no mask contains and whose argmax is not known yet.
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
        self._masks = [mask_logits[query].detach() for query in kept.tolist()]
        self._scores = scores
        self._rows = rows
        self._columns = columns
        self._mask_threshold = mask_threshold
        self.cell_owner = np.full((len(rows.lower), len(columns.lower)), NOBODY, np.int32)
        self.contested: list[ContestedPixels] = []
        self.own_areas = np.zeros(len(kept), np.int64)
        self.won_areas = np.zeros(len(kept), np.int64)
        self.owned_areas = np.zeros(len(kept), np.int64)
        self.unsettled_area = 0
        for strip in self._strips():
            self._decide(strip)

    def settle_won_areas(self, queries: NDArray[np.bool_]) -> None:
        """Count what is missing in the won areas of some queries: pixels that no mask contains.

        They are void whoever wins them, so they are looked at only if a query's fate hangs on them.

        Args:
            queries: (Q,) whose won areas are to be exact afterwards.
        """
        for strip in self._strips():
            claimed = (strip.candidate & strip.reaching).any(0)
            several = _count_queries(strip.candidate) > 1
            asked = strip.candidate[queries].any(0) & several & ~claimed & (strip.pixels > 0)
            rows, columns = np.nonzero(asked)
            for _, pairs in self._pair(rows, columns, strip.candidate[:, rows, columns]):
                for tile in self._tiles(strip, pairs):
                    _, winner, _ = self._compete(self._probabilities(strip, tile, pairs), pairs)
                    self.won_areas += self._count(winner[tile.valid])
        self.unsettled_area = 0

    def _strips(self) -> Iterator[_Strip]:
        """Bounds of every cell, a few rows at a time; the arrays of a strip are overwritten by the next."""
        queries, width = len(self._scores), len(self._columns.lower)
        columns = np.append(self._columns.lower[:1], self._columns.upper)
        scores = self._scores.astype(np.float32)[:, None, None]
        thresholds = scores * np.float32(self._mask_threshold)
        low_threshold = thresholds * (1 - RELATIVE_MARGIN) - ABSOLUTE_MARGIN
        high_threshold = thresholds * (1 + RELATIVE_MARGIN) + ABSOLUTE_MARGIN
        strip_height = min(len(self._rows.lower), max(1, BOUNDS_PER_STRIP // (queries * width)))
        # Fresh memory would cost more than the arithmetic, so every strip works in the same arrays.
        corners, weighted = np.empty((2, queries, strip_height + 1, width + 1), np.float32)
        between = np.empty((queries, strip_height + 1, width), np.float32)
        smallest, largest = np.empty((2, queries, strip_height, width), np.float32)
        flags = np.empty((4, queries, strip_height, width), np.bool_)
        for first in range(0, len(self._rows.lower), strip_height):
            part = slice(first, first + strip_height)
            rows = np.append(self._rows.lower[part][:1], self._rows.upper[part])
            if len(rows) <= strip_height:  # the last strip, with fewer rows
                corners, weighted, between = (array[:, : len(rows)] for array in (corners, weighted, between))
                smallest, largest = smallest[:, : len(rows) - 1], largest[:, : len(rows) - 1]
                flags = flags[:, :, : len(rows) - 1]
            _gather_corners(self._masks, rows, columns, corners)
            compute_sigmoid(corners, out=weighted)
            np.multiply(weighted, scores, out=weighted)
            for extreme, result in ((np.minimum, smallest), (np.maximum, largest)):
                extreme(weighted[:, :, :-1], weighted[:, :, 1:], out=between)
                extreme(between[:, :-1], between[:, 1:], out=result)
            to_beat = smallest.max(0) * (1 - RELATIVE_MARGIN) - ABSOLUTE_MARGIN
            candidate, reaching, inside, straddling = flags
            np.greater_equal(largest, to_beat, out=candidate)
            np.greater_equal(largest, low_threshold, out=reaching)
            np.greater_equal(smallest, high_threshold, out=inside)
            np.greater(reaching, inside, out=straddling)
            yield _Strip(
                first_row=first,
                corners=corners,
                pixels=np.outer(self._rows.pixel_counts[part], self._columns.pixel_counts),
                largest=largest,
                candidate=candidate,
                reaching=reaching,
                inside=inside,
                straddling=straddling,
            )

    def _decide(self, strip: _Strip) -> None:
        """Settle the cells of one strip that the bounds decide, and compute the pixels of the others."""
        claiming = strip.candidate & strip.reaching
        claimed = claiming.any(0)
        single = _count_queries(strip.candidate) == 1
        decided = single & ~(claiming & strip.straddling).any(0)
        numbers = np.arange(len(self._scores), dtype=np.int16)[:, None, None]
        winner = np.where(decided, (strip.candidate * numbers).max(0), np.int16(NOBODY))
        owner = np.where(claimed, winner, np.int16(NOBODY))

        self.cell_owner[strip.first_row : strip.first_row + len(owner)] = owner
        self.own_areas += np.einsum("qrc,rc->q", strip.inside, strip.pixels)
        self.won_areas += self._count(winner, strip.pixels)
        self.owned_areas += self._count(owner, strip.pixels)
        self.unsettled_area += int(strip.pixels[~claimed & ~single].sum())

        contested = ~decided & claimed & (strip.pixels > 0)
        rows, columns = np.nonzero(contested)
        members = (claiming | strip.straddling)[:, rows, columns]
        self._resolve(strip, rows, columns, members, measures=True)
        rows, columns = np.nonzero(strip.straddling.any(0) & ~contested & (strip.pixels > 0))
        for _, pairs in self._pair(rows, columns, strip.straddling[:, rows, columns]):
            for tile in self._tiles(strip, pairs):
                self._measure(strip, tile, pairs, self._probabilities(strip, tile, pairs))

    def _resolve(
        self,
        strip: _Strip,
        rows: NDArray[np.intp],
        columns: NDArray[np.intp],
        members: NDArray[np.bool_],
        *,
        measures: bool,
    ) -> None:
        """Find the owner of every pixel of n cells.

        The bounds of a cell that two masks share are weak: each is low at one of its corners, so every other
        query looks like a rival. Hence the queries whose masks may contain a pixel go first. The least that
        their best reaches at any pixel rules out the others; if not, the cell is decided again with those left.

        Args:
            strip: the strip of the cells.
            rows: (n,) row of each cell in the strip.
            columns: (n,) column of each cell.
            members: (Q, n) which queries go first.
            measures: whether the members' own areas are still to be counted here.
        """
        for part, pairs in self._pair(rows, columns, members):
            least = np.full(len(part), np.inf)
            outcomes = []
            for tile in self._tiles(strip, pairs):
                probabilities = self._probabilities(strip, tile, pairs)
                if measures:
                    self._measure(strip, tile, pairs, probabilities)
                best, winner, contained = self._compete(probabilities, pairs)
                np.minimum(least, best.min((0, 1)), out=least)
                outcomes.append((tile, winner, np.where(contained, winner, np.int32(NOBODY))))
            cells = (slice(None), pairs.rows, pairs.columns)
            to_beat = least * (1 - RELATIVE_MARGIN) - ABSOLUTE_MARGIN
            rivals = strip.candidate[cells] & ~members[:, part] & (strip.largest[cells] >= to_beat)
            late = rivals.any(0)
            for tile, winner, owner in outcomes:
                valid = tile.valid & ~late
                self.won_areas += self._count(winner[valid])
                self.owned_areas += self._count(owner[valid])
                # Cells decided again are painted again, after this.
                self.contested.append(ContestedPixels(tile.rows, tile.columns, owner))
            rivals |= members[:, part]
            self._resolve(strip, pairs.rows[late], pairs.columns[late], rivals[:, late], measures=False)

    def _pair(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], members: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.intp], _Pairs]]:
        """Pair n cells with their queries (Q, n), as many cells at a time as the work arrays hold.

        Yields:
            Which of the n cells, in the order of the pairs' cells, and the pairs.
        """
        if not len(rows):
            return
        counts = _count_queries(members).astype(np.intp)
        order = np.argsort(-counts, kind="stable")
        tile_sides = [min(TILE_SIDE, int(axis.pixel_counts.max())) for axis in (self._rows, self._columns)]
        chunk = np.cumsum(counts[order]) * tile_sides[0] * tile_sides[1] // PIXELS_PER_CHUNK
        for part in np.split(order, np.flatnonzero(np.diff(chunk)) + 1):
            place, query = np.nonzero(members[:, part].T)
            rank = np.arange(len(place)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            by_rank = np.argsort(rank, kind="stable")
            yield part, _Pairs(
                rows=rows[part],
                columns=columns[part],
                place=place[by_rank],
                query=query[by_rank].astype(np.int32),
                widths=np.bincount(rank).tolist(),
            )

    def _tiles(self, strip: _Strip, pairs: _Pairs) -> Iterator[_Tile]:
        """The pixels of the cells, in tiles."""
        row_sets = list(_pixel_sets(self._rows, pairs.rows + strip.first_row))
        for columns, column_valid in _pixel_sets(self._columns, pairs.columns):
            for rows, row_valid in row_sets:
                yield _Tile(rows, columns, row_valid[:, None] & column_valid[None])

    def _probabilities(self, strip: _Strip, tile: _Tile, pairs: _Pairs) -> NDArray[np.float64]:
        """(a, b, pairs) sigmoid of the interpolated mask logits."""
        row, column = pairs.rows[pairs.place], pairs.columns[pairs.place]
        column_weight = self._columns.weight[tile.columns][:, pairs.place]
        row_weight = self._rows.weight[tile.rows][:, None, pairs.place]

        def interpolate_along(row: NDArray[np.intp]) -> NDArray[np.float64]:
            left = strip.corners[pairs.query, row, column].astype(np.float64)
            right = strip.corners[pairs.query, row, column + 1].astype(np.float64)
            return left + (right - left) * column_weight

        upper = interpolate_along(row)
        logits = (interpolate_along(row + 1) - upper) * row_weight
        logits += upper
        return compute_sigmoid(logits, out=logits)

    def _compete(
        self, probabilities: NDArray[np.float64], pairs: _Pairs
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.bool_]]:
        """Maximum over each cell's queries: (a, b, n) its value, whose it is, whether that mask contains it."""
        shape = (*probabilities.shape[:2], len(pairs.rows))
        best = np.full(shape, -1.0)
        winner = np.empty(shape, np.int32)
        contained = np.empty(shape, np.bool_)
        first = 0
        for width in pairs.widths:
            rank = slice(first, first + width)
            weighted = probabilities[:, :, rank] * self._scores[pairs.query[rank]]
            better = weighted > best[:, :, :width]
            np.copyto(best[:, :, :width], weighted, where=better)
            np.copyto(winner[:, :, :width], pairs.query[rank], where=better)
            inside = probabilities[:, :, rank] >= self._mask_threshold
            np.copyto(contained[:, :, :width], inside, where=better)
            first += width
        return best, winner, contained

    def _measure(self, strip: _Strip, tile: _Tile, pairs: _Pairs, probabilities: NDArray[np.float64]) -> None:
        """Add the pixels of the pairs' own binary masks, but for pairs that the bounds have counted."""
        uncounted = ~strip.inside[pairs.query, pairs.rows[pairs.place], pairs.columns[pairs.place]]
        contained = (probabilities >= self._mask_threshold) & tile.valid[:, :, pairs.place]
        self.own_areas += self._count(pairs.query, contained.sum((0, 1)) * uncounted)

    def _count(
        self, queries: NDArray[np.signedinteger], pixels: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """(Q,) how often each query occurs, or the pixels it collects; -1 counts for nobody."""
        weights = None if pixels is None else pixels.ravel()
        counts = np.bincount(queries.ravel() + 1, weights=weights, minlength=len(self._scores) + 1)
        return counts[1:].astype(np.int64)


def _gather_corners(
    masks: list[Tensor],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    corners: NDArray[np.float32],
) -> None:
    """Copy the samples at ascending rows and columns, repeated only at the ends, to (Q, rows, columns)."""
    top, left = (int((index == index[0]).sum()) - 1 for index in (rows, columns))
    bottom, right = top + int(rows[-1] - rows[0]) + 1, left + int(columns[-1] - columns[0]) + 1
    for query, mask in enumerate(masks):
        samples = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        corners[query, top:bottom, left:right] = samples.to("cpu", torch.float32).numpy()
    corners[:, :top] = corners[:, top, None]
    corners[:, bottom:] = corners[:, bottom - 1, None]
    corners[:, :, :left] = corners[:, :, left, None]
    corners[:, :, right:] = corners[:, :, right - 1, None]


def _pixel_sets(
    axis: SamplingAxis, cells: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Pixels of some cells along one axis, at most TILE_SIDE at a time: (a, n) pixels and which are valid."""
    starts, ends = axis.start[cells], axis.start[cells + 1]
    longest = int((ends - starts).max())
    for first in range(0, longest, TILE_SIDE):
        pixels = starts + np.arange(first, min(first + TILE_SIDE, longest))[:, None]
        valid = pixels < ends
        yield np.minimum(pixels, ends - 1), valid


def _count_queries(members: NDArray[np.bool_]) -> NDArray[np.int16]:
    """(Q, M) → (M,) number of queries."""
    return members.sum(0, dtype=np.int16)
