"""Patchwork's segment maps by polygons and distances, in float64, one object after the other."""

import numpy as np


def polar(radius, degrees):
    """A point at an angle from straight down."""
    return radius * np.sin(np.radians(degrees)), radius * np.cos(np.radians(degrees))


POLYGONS = {
    "triangle": [(0, -1), (3**0.5 / 2, 0.5), (-(3**0.5) / 2, 0.5)],
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "star": [
        point
        for tip in range(0, 360, 72)
        for point in (
            polar(1, tip),
            polar(np.cos(np.radians(72)) / np.cos(np.radians(36)), tip + 36),
        )
    ],
    "cross": [
        *[(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)],
        *[(0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    ],
    "arrow": [(0, -1), (0.935, 0.1), (0.3, 0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.1), (-0.935, 0.1)],
}


def contains(shape, u, v):
    """Whether points lie in a shape, in its own frame."""
    radius = np.hypot(u, v)
    if shape == "disc":
        return radius <= 0.92**0.5
    if shape == "ring":
        return (radius >= 0.5) & (radius <= 1)
    if shape == "crescent":
        return (radius <= 1) & (np.hypot(u - 0.48, v) >= 0.58**0.5)
    inside = np.zeros(np.broadcast(u, v).shape, dtype=bool)
    corners = POLYGONS[shape]
    for (u0, v0), (u1, v1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if v0 != v1:
            # A ray to the right crosses this edge: once more or less, and inside turns to outside.
            inside ^= ((v0 > v) != (v1 > v)) & (u < (u1 - u0) * (v - v0) / (v1 - v0) + u0)
    return inside


def shape_area(shape):
    """Area in the shape's own frame."""
    if shape == "disc":
        return np.pi * 0.92
    if shape == "ring":
        return np.pi * 0.75
    if shape == "crescent":
        bite, distance = 0.58**0.5, 0.48
        first = np.arccos((distance**2 + 1 - bite**2) / (2 * distance))
        second = np.arccos((distance**2 + bite**2 - 1) / (2 * distance * bite))
        lens = first + bite**2 * second - distance * np.sin(first)
        return np.pi - lens
    corners = np.array(POLYGONS[shape])
    following = np.roll(corners, -1, axis=0)
    return abs((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum()) / 2


def fine_grid(size):
    """x and y of four points in every pixel, 0 to 1 over the canvas."""
    positions = (np.arange(2 * size) + 0.5) / (2 * size)
    return np.meshgrid(positions, positions)


def half_covered(fine):
    """Pixels of which two or more of the four points are covered."""
    return sum(fine[row::2, column::2].astype(int) for row in (0, 1) for column in (0, 1)) >= 2


def object_mask(thing, shape, size):
    """One object's pixels, as if it were alone."""
    x, y = fine_grid(size)
    x, y = (x - thing.centre[0]) / thing.radius, (y - thing.centre[1]) / thing.radius
    dx, dy = thing.direction
    return half_covered(contains(shape, x * dx + y * dy, y * dx - x * dy))


def ground_map(layout, count, size):
    """Segment ids of the grounds, from 1."""
    x, y = fine_grid(size)
    if layout.centres:
        regions = np.argmin([np.hypot(x - cx, y - cy) for cx, cy in layout.centres], axis=0)
    else:
        dx, dy = layout.direction
        amplitude, frequency, phase = layout.wave
        turn = 2 * (((y * dx - x * dy) * frequency + phase) % 1) - 1
        position = x * dx + y * dy + amplitude * 4 * turn * (1 - abs(turn))
        regions = np.digitize(position, layout.borders, right=True)
    ids = np.ones((size, size), dtype=int)
    for region in range(1, count):
        ids[half_covered(regions == region)] = region + 1
    return ids


def segment_map(scene, shapes, size):
    """(ids, kept): the map, and which objects stay because enough of them is visible."""
    masks = [object_mask(thing, shape, size) for thing, shape in zip(scene.objects, shapes, strict=True)]
    kept = list(range(len(masks)))
    while kept:
        shares = {}
        for position, number in enumerate(kept):
            hidden = np.zeros((size, size), dtype=bool)
            for later in kept[position + 1 :]:
                hidden |= masks[later]
            area = (masks[number] & ~hidden).sum()
            whole = shape_area(shapes[number]) * (scene.objects[number].radius * size) ** 2
            shares[number] = min(area / (64 / 128**2 * size**2), area / whole / 0.3)
        least = min(kept, key=shares.get)
        if shares[least] >= 1:
            break
        kept.remove(least)
    ids = ground_map(scene.layout, len(scene.grounds), size)
    for segment_id, number in enumerate(kept, start=len(scene.grounds) + 1):
        ids[masks[number]] = segment_id
    return ids, kept
