"""Shapes, surfaces and materials as functions of local coordinates.

All arithmetic is on float32 arrays with operations that IEEE 754 defines to the last bit (no sine, no
exponential), so every machine draws the same picture.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from zsseg.data.patchwork.random_stream import RandomStream

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

COS_72 = (5.0**0.5 - 1.0) / 4.0
SIN_72 = (10.0 + 2.0 * 5.0**0.5) ** 0.5 / 4.0
COS_36 = (5.0**0.5 + 1.0) / 4.0
SIN_36 = (10.0 - 2.0 * 5.0**0.5) ** 0.5 / 4.0


# Shapes: (u, v) → inside or not. u points right, v down; every shape lies within the unit disc.


def _disc(u: Plane, v: Plane) -> Mask:
    return u * u + v * v <= 0.92


def _triangle(u: Plane, v: Plane) -> Mask:
    return (v <= 0.5) & (np.abs(u) * 3.0**0.5 - v <= 1.0)


def _square(u: Plane, v: Plane) -> Mask:
    return np.maximum(np.abs(u), np.abs(v)) <= 0.7


def _star(u: Plane, v: Plane) -> Mask:
    # Inside a pentagram is whatever lies on the inner side of at least four of its five lines.
    normals = ((0.0, 1.0), (SIN_72, COS_72), (-SIN_72, COS_72), (SIN_36, -COS_36), (-SIN_36, -COS_36))
    lines = [u * normal_u + v * normal_v <= COS_72 for normal_u, normal_v in normals]
    return np.asarray(np.sum(lines, axis=0, dtype=np.int8) >= 4)


def _ring(u: Plane, v: Plane) -> Mask:
    squared = u * u + v * v
    return (squared <= 1.0) & (squared >= 0.25)


def _cross(u: Plane, v: Plane) -> Mask:
    across, along = np.abs(u), np.abs(v)
    return (np.minimum(across, along) <= 0.3) & (np.maximum(across, along) <= 0.95)


def _crescent(u: Plane, v: Plane) -> Mask:
    shifted = u - 0.48
    return (u * u + v * v <= 1.0) & (shifted * shifted + v * v >= 0.58)


def _arrow(u: Plane, v: Plane) -> Mask:
    across = np.abs(u)
    shaft = (across <= 0.3) & (v >= -0.1) & (v <= 0.95)
    head = (v <= 0.1) & (across <= (v + 1.0) * 0.85)
    return shaft | head


SHAPE_MASKS: Mapping[str, Callable[[Plane, Plane], Mask]] = {
    "disc": _disc,
    "triangle": _triangle,
    "square": _square,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "arrow": _arrow,
}


# Surfaces: (u, v, repeats across the object, phase) → where the second colour shows.


def _plain(u: Plane, v: Plane, repeats: float, phase: float) -> Mask:
    return np.zeros(u.shape, dtype=np.bool_)


def _striped(u: Plane, v: Plane, repeats: float, phase: float) -> Mask:
    return _fraction(u * (repeats / 2) + phase) < 0.5


def _dotted(u: Plane, v: Plane, repeats: float, phase: float) -> Mask:
    across = _fraction(u * (repeats / 2) + phase) - 0.5
    along = _fraction(v * (repeats / 2) + phase) - 0.5
    return across * across + along * along < 0.1


def _checkered(u: Plane, v: Plane, repeats: float, phase: float) -> Mask:
    return (_fraction(u * (repeats / 2) + phase) < 0.5) ^ (_fraction(v * (repeats / 2) + phase) < 0.5)


def _ringed(u: Plane, v: Plane, repeats: float, phase: float) -> Mask:
    return _fraction(np.sqrt(u * u + v * v) * np.float32(repeats / 2) + np.float32(phase)) < 0.5


SURFACE_MASKS: Mapping[str, Callable[[Plane, Plane, float, float], Mask]] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "ringed": _ringed,
}
SURFACE_REPEATS: Mapping[str, tuple[float, float]] = {
    "plain": (1.0, 1.0),
    "striped": (4.0, 5.5),
    "dotted": (4.0, 5.0),
    "checkered": (3.0, 4.0),
    "ringed": (5.0, 6.5),
}
"""Fewest and most repeats of a surface's pattern over an object's diameter."""


# Materials: (u, v, stream) → lightness, about −1 (dark) to 1 (light). One of u and v is one brick's height.


def _brick(u: Plane, v: Plane, stream: RandomStream) -> Plane:
    row = np.floor(v)
    shift: Plane = row * np.float32(1.1)
    u = (u + shift) / np.float32(2.2)
    column = np.floor(u)
    in_row, in_column = v - row, u - column
    is_mortar = (in_row < 0.2) | (in_column < 0.09)
    lightness = _look_up(stream.table(64), row, column) * 0.7 - 0.6
    return np.where(is_mortar, np.float32(0.9), lightness)


def _gravel(u: Plane, v: Plane, stream: RandomStream) -> Plane:
    row = np.floor(v)
    u = u + _look_up(stream.table(64), row, row)
    column = np.floor(u)
    radius = _look_up(stream.table(64), row, column) * 0.25 + 0.28
    across = u - column - 0.5 - (_look_up(stream.table(64), row, column) - 0.5) * 0.25
    along = v - row - 0.5 - (_look_up(stream.table(64), column, row) - 0.5) * 0.25
    squared = (across * across + along * along) / (radius * radius)
    lightness = _look_up(stream.table(64), column, row) * 0.9 + 0.1 - squared * 0.5
    return np.where(squared < 1.0, lightness, np.float32(-0.9))


def _weave(u: Plane, v: Plane, stream: RandomStream) -> Plane:
    row, column = np.floor(v), np.floor(u)
    is_across = (row + column) * 0.5 == np.floor((row + column) * 0.5)
    across, along = u - column, v - row
    strand = np.where(is_across, along, across)
    end = np.where(is_across, across, along)
    lightness = 4.0 * strand * (1.0 - strand) * 1.5 - 0.9
    is_under = np.minimum(end, 1.0 - end) < 0.12
    return np.where(is_under, lightness - np.float32(0.5), lightness)


def _waves(u: Plane, v: Plane, stream: RandomStream) -> Plane:
    height = v + compute_wave(u * np.float32(0.3) + stream.uniform()) * np.float32(0.45)
    return compute_wave(height * np.float32(0.8)) * np.float32(0.85)


def _planks(u: Plane, v: Plane, stream: RandomStream) -> Plane:
    v = v / np.float32(1.6)
    row = np.floor(v)
    u = u / np.float32(16.0) + _look_up(stream.table(64), row, row)
    column = np.floor(u)
    is_gap = (v - row < 0.1) | (u - column < 0.012)
    board = _look_up(stream.table(64), row, column) * 0.8 - 0.2
    grain = _look_up(stream.table(64), np.floor(v * 7.0), column) * 0.45 - 0.225
    return np.where(is_gap, np.float32(-1.0), board + grain)


MATERIAL_SHADES: Mapping[str, Callable[[Plane, Plane, RandomStream], Plane]] = {
    "brick": _brick,
    "gravel": _gravel,
    "weave": _weave,
    "waves": _waves,
    "planks": _planks,
}


def compute_wave(position: Plane) -> Plane:
    """A smooth wave of period 1 between −1 and 1, made of parabolas."""
    centred = _fraction(position) * 2.0 - 1.0
    return 4.0 * centred * (1.0 - np.abs(centred))


def _fraction(position: Plane) -> Plane:
    return position - np.floor(position)


def _look_up(table: Plane, row: Plane, column: Plane) -> Plane:
    """A random number for every cell of a grid, (row, column) → [0, 1)."""
    return table[(row * 23.0 + column * 37.0).astype(np.int32) & (len(table) - 1)]
