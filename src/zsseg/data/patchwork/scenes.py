"""What is in a scene, decided before a pixel is drawn: a pure function of preset, seed and index."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES
from zsseg.data.patchwork.patterns import SURFACE_REPEATS, Plane, compute_wave
from zsseg.data.patchwork.presets import PRESETS, PatchworkPreset
from zsseg.data.patchwork.random_stream import RandomStream

Color = tuple[float, float, float]

BASE_COLORS: dict[str, Color] = {
    "red": (0.66, 0.20, 0.16),
    "green": (0.22, 0.50, 0.20),
    "blue": (0.18, 0.34, 0.66),
    "grey": (0.48, 0.48, 0.48),
}
SCENE_KEY = 0x9A7C
CATEGORY_KEY = 0xCA7E
PLACEMENT_TRIES = 40
PLAIN_COLOR: Color = (0.5, 0.5, 0.5)
PLAIN_GROUND_ID = next(i for i, category in enumerate(PATCHWORK_CATEGORIES) if category.name == "grey gravel")
"""What is drawn without contrast where nothing but one thing is to be seen."""


@dataclass(frozen=True, slots=True)
class GroundLayout:
    """How the canvas is divided: wavy bands along a direction, or the cells nearest to points.

    Attributes:
        direction: unit vector across the bands.
        borders: positions of the bands' borders along it, rising; empty for cells.
        wave: amplitude, frequency and phase of every border.
        centres: of the cells; empty for bands.
    """

    direction: tuple[float, float]
    borders: tuple[float, ...]
    wave: tuple[float, float, float]
    centres: tuple[tuple[float, float], ...]

    def compute_regions(self, x: Plane, y: Plane) -> NDArray[np.intp]:
        """Region index of points; x and y run from 0 to 1 over the canvas."""
        if self.centres:
            distances = [(x - cx) * (x - cx) + (y - cy) * (y - cy) for cx, cy in self.centres]
            return np.argmin(distances, axis=0)
        dx, dy = self.direction
        amplitude, frequency, phase = self.wave
        along = (y * dx - x * dy) * np.float32(frequency) + np.float32(phase)
        position = x * dx + y * dy + compute_wave(along) * amplitude
        return np.sum([position > border for border in self.borders], axis=0)


@dataclass(frozen=True, slots=True)
class Ground:
    """One region of stuff.

    Attributes:
        label_id: its category.
        color: mean RGB in [0, 1].
        contrast: share of the colour that the material's lightness takes away or adds.
        direction: unit vector along the material.
        bricks_per_side: rows of bricks over the height of the canvas.
        texture_key: seeds the material's own draws.
    """

    label_id: int
    color: Color
    contrast: float
    direction: tuple[float, float]
    bricks_per_side: float
    texture_key: int


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing.

    Attributes:
        label_id: its category.
        centre: (x, y), 0 to 1 over the canvas.
        radius: of the disc that holds the shape, as a share of the side.
        direction: unit vector of the shape's own horizontal.
        colors: first and second colour, RGB in [0, 1].
        pattern_direction: unit vector of the surface's own horizontal.
        repeats: of the surface's pattern over the diameter.
        phase: of the surface's pattern.
    """

    label_id: int
    centre: tuple[float, float]
    radius: float
    direction: tuple[float, float]
    colors: tuple[Color, Color]
    pattern_direction: tuple[float, float]
    repeats: float
    phase: float


@dataclass(frozen=True, slots=True)
class Camera:
    """Nuisance of the picture as a whole.

    Attributes:
        light_direction: unit vector towards the light.
        light_gradient: change of brightness over the canvas.
        shadow_strength: share of light that a contact shadow takes.
        shadow_offset: of the shadow, as a share of the side.
        blur: weight of each of two neighbours, along rows and along columns.
        noise: standard deviation in 8-bit levels.
        jpeg_quality: 1 to 95.
        noise_key: seeds the noise.
    """

    light_direction: tuple[float, float]
    light_gradient: float
    shadow_strength: float
    shadow_offset: float
    blur: float
    noise: float
    jpeg_quality: int
    noise_key: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a picture is drawn from; objects from back to front."""

    layout: GroundLayout
    grounds: tuple[Ground, ...]
    objects: tuple[SceneObject, ...]
    camera: Camera | None


def build_scene(preset: PatchworkPreset, seed: int, index: int, label_ids: Sequence[int]) -> Scene:
    """Compose scene ``index`` of a world.

    Args:
        preset: the difficulty.
        seed: of the world, 0 or more.
        index: of the scene, 0 or more.
        label_ids: the categories it may hold, in rising order; at least four kinds of stuff and one thing.

    Returns:
        The scene; an object may still turn out to be hidden behind later ones.
    """
    stream = RandomStream(SCENE_KEY, preset.key, seed, index)
    things = [i for i in label_ids if PATCHWORK_CATEGORIES[i].is_thing]
    stuff = [i for i in label_ids if not PATCHWORK_CATEGORIES[i].is_thing]
    count = stream.integer(2, 4)
    layout = _draw_layout(stream, count)
    grounds = tuple(_draw_ground(stream, label_id) for label_id in stream.sample(stuff, count))
    objects: list[SceneObject] = []
    for _ in range(stream.integer(*preset.objects)):
        placed = _place(stream, preset, objects)
        if placed is not None:
            centre, radius = placed
            region = int(layout.compute_regions(*(np.array([c], dtype=np.float32) for c in centre))[0])
            objects.append(
                _draw_object(stream, preset, stream.choice(things), centre, radius, grounds[region].color)
            )
    return Scene(layout, grounds, tuple(objects), _draw_camera(stream) if preset.has_nuisance else None)


def build_category_scene(label_id: int, seed: int = 0) -> Scene:
    """One category by itself: a thing on flat grey ground, or stuff everywhere; no nuisance.

    Args:
        label_id: the category.
        seed: chooses colours, directions and details of the pattern.
    """
    stream = RandomStream(CATEGORY_KEY, seed, label_id)
    everywhere = GroundLayout((1.0, 0.0), (), (0.0, 1.0, 0.0), ((0.5, 0.5),))
    is_thing = PATCHWORK_CATEGORIES[label_id].is_thing
    ground = _draw_ground(stream, PLAIN_GROUND_ID if is_thing else label_id)
    if not is_thing:
        return Scene(everywhere, (ground,), (), None)
    ground = replace(ground, color=PLAIN_COLOR, contrast=0.0)
    thing = _draw_object(stream, PRESETS["easy"], label_id, (0.5, 0.5), 0.42, ground.color)
    return Scene(everywhere, (ground,), (thing,), None)


def _draw_layout(stream: RandomStream, count: int) -> GroundLayout:
    kind = stream.choice(("horizon", "bands", "cells"))
    if kind == "cells":
        centres: list[tuple[float, float]] = []
        while len(centres) < count:
            x, y = stream.uniform(0.1, 0.9), stream.uniform(0.1, 0.9)
            if all(_squared_distance((x, y), centre) > 0.09 for centre in centres):
                centres.append((x, y))
        return GroundLayout((1.0, 0.0), (), (0.0, 1.0, 0.0), tuple(centres))
    if kind == "horizon":
        tilt = stream.uniform(-0.15, 0.15)
        length = math.sqrt(1.0 + tilt * tilt)
        direction = (tilt / length, 1.0 / length)
    else:
        direction = stream.direction()
    # The canvas spans this interval along the direction.
    low = min(direction[0], 0.0) + min(direction[1], 0.0)
    high = max(direction[0], 0.0) + max(direction[1], 0.0)
    borders = (
        low + (high - low) * (number + stream.uniform(-0.25, 0.25)) / count for number in range(1, count)
    )
    wave = (stream.uniform(0.01, 0.05), stream.uniform(0.8, 2.5), stream.uniform())
    return GroundLayout(direction, tuple(borders), wave, ())


def _draw_ground(stream: RandomStream, label_id: int) -> Ground:
    base = BASE_COLORS[PATCHWORK_CATEGORIES[label_id].attribute]
    lightness, tint = stream.uniform(0.8, 1.2), stream.uniform(-0.04, 0.04)
    red, green, blue = (min(channel * lightness, 0.9) for channel in base)
    return Ground(
        label_id=label_id,
        color=(red + tint, green, blue - tint),
        contrast=stream.uniform(0.35, 0.55),
        direction=stream.direction(),
        bricks_per_side=stream.uniform(11.0, 16.0),
        texture_key=stream.integer(0, 2**31),
    )


def _place(
    stream: RandomStream, preset: PatchworkPreset, objects: Sequence[SceneObject]
) -> tuple[tuple[float, float], float] | None:
    """Centre and radius of one more object; None where a world without occlusion has no room left."""
    for _ in range(PLACEMENT_TRIES):
        radius = stream.uniform(0.12, 0.45) / 2
        if preset.may_occlude:
            return (stream.uniform(0.05, 0.95), stream.uniform(0.05, 0.95)), radius
        x, y = stream.uniform(radius, 1 - radius), stream.uniform(radius, 1 - radius)
        if all(
            math.sqrt(_squared_distance((x, y), other.centre)) > radius + other.radius + 0.01
            for other in objects
        ):
            return (x, y), radius
    return None


def _draw_object(
    stream: RandomStream,
    preset: PatchworkPreset,
    label_id: int,
    centre: tuple[float, float],
    radius: float,
    ground: Color,
) -> SceneObject:
    if stream.uniform() < preset.camouflage:
        red, green, blue = (min(max(channel + stream.uniform(-0.1, 0.1), 0.0), 1.0) for channel in ground)
        first = (red, green, blue)
    else:
        first = _draw_color(stream, ground, 0.35)
    fewest, most = SURFACE_REPEATS[PATCHWORK_CATEGORIES[label_id].attribute]
    return SceneObject(
        label_id=label_id,
        centre=centre,
        radius=radius,
        direction=stream.direction(),
        colors=(first, _draw_color(stream, first, 0.55)),
        pattern_direction=stream.direction(),
        repeats=stream.uniform(fewest, most),
        phase=stream.uniform(),
    )


def _draw_color(stream: RandomStream, other: Color, distance: float) -> Color:
    """A colour at least ``distance`` away from another, of at most √3."""
    while True:
        color = (stream.uniform(), stream.uniform(), stream.uniform())
        if _squared_distance(color, other) >= distance * distance:
            return color


def _draw_camera(stream: RandomStream) -> Camera:
    return Camera(
        light_direction=stream.direction(),
        light_gradient=stream.uniform(0.0, 0.5),
        shadow_strength=stream.uniform(0.2, 0.5),
        shadow_offset=stream.uniform(0.01, 0.025),
        blur=stream.uniform(0.0, 0.15),
        noise=stream.uniform(1.0, 6.0),
        jpeg_quality=stream.integer(60, 95),
        noise_key=stream.integer(0, 2**31),
    )


def _squared_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """By products and additions alone: the last bit of ``** 2`` and of ``sum`` differs between machines."""
    total = 0.0
    for a, b in zip(one, other, strict=True):
        total += (a - b) * (a - b)
    return total
