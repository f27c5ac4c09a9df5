"""A scene as pixels: drawn at twice the size and reduced, with masks that follow from the geometry."""

from functools import cache, reduce
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES
from zsseg.data.patchwork.patterns import MATERIAL_SHADES, SHAPE_MASKS, SURFACE_MASKS, Mask, Plane
from zsseg.data.patchwork.random_stream import RandomStream
from zsseg.data.patchwork.scenes import Camera, Ground, Scene, SceneObject, build_category_scene

Number = TypeVar("Number", np.float32, np.int8)

OVERSAMPLING = 2
HALF_COVERED = OVERSAMPLING * OVERSAMPLING // 2
SMALLEST_VISIBLE_SHARE = 0.3
"""Of the whole shape, what lies outside the picture included."""
SMALLEST_VISIBLE_AREA = 64 / 128**2
"""Of the canvas."""


class ObjectGeometry:
    """Where one object lies on the fine and on the final grid.

    Args:
        scene_object: the object.
        size: height and width of the final grid.

    Attributes:
        scene_object: the object.
        rows: its rows of the final grid, h of them.
        columns: its columns of the final grid, w of them.
        across: (1, 2 w) x on the fine grid of that window, −1 to 1 over the disc that holds the shape.
        down: (2 h, 1) y likewise.
        fine: (2 h, 2 w) its shape on the fine grid.
        mask: (h, w) its shape on the final grid: pixels of which it covers half or more.
    """

    def __init__(self, scene_object: SceneObject, size: int) -> None:
        self.scene_object = scene_object
        x, y = scene_object.centre
        self.columns = _clip_window(x, scene_object.radius, size)
        self.rows = _clip_window(y, scene_object.radius, size)
        across = (_fine_positions(self.columns, size) - np.float32(x)) / np.float32(scene_object.radius)
        down = (_fine_positions(self.rows, size) - np.float32(y)) / np.float32(scene_object.radius)
        self.across, self.down = across[None], down[:, None]
        u, v = _rotate(self.across, self.down, scene_object.direction)
        shape = PATCHWORK_CATEGORIES[scene_object.label_id].base
        self.fine = SHAPE_MASKS[shape](u, v)
        self.mask = _reduce_mask(self.fine)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns on the final grid."""
        return self.rows, self.columns

    @property
    def fine_window(self) -> tuple[slice, slice]:
        """Rows and columns on the fine grid."""
        rows, columns = (
            slice(window.start * OVERSAMPLING, window.stop * OVERSAMPLING) for window in self.window
        )
        return rows, columns


def render_scene(scene: Scene, size: int) -> tuple[Image.Image, NDArray[np.int32], dict[int, int]]:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: height and width in pixels.

    Returns:
        The picture, and the results of :func:`map_scene`.
    """
    regions, objects = _compute_geometry(scene, size)
    canvas = _draw_grounds(scene, regions)
    for geometry in objects:
        _draw_object(canvas, geometry, scene.camera)
    pixels = _sum_cells(canvas) / np.float32(OVERSAMPLING * OVERSAMPLING)
    return _develop(pixels, scene.camera), *_map_segments(scene, regions, objects)


def map_scene(scene: Scene, size: int) -> tuple[NDArray[np.int32], dict[int, int]]:
    """The segments of a scene, without its picture.

    Args:
        scene: what to map.
        size: height and width in pixels.

    Returns:
        Segment ids (size, size) int32, no void, and the label id of each segment id that has a pixel. Grounds
        are numbered first, from 1, then the objects that are not dropped, from back to front.
    """
    return _map_segments(scene, *_compute_geometry(scene, size))


def render_category(label_id: int, *, seed: int = 0, size: int = 128) -> Image.Image:
    """Draw one category by itself.

    Args:
        label_id: among the sixty.
        seed: chooses colours, directions and details of the pattern.
        size: height and width in pixels.

    Returns:
        A thing, 84 % of the side, on flat grey ground; or stuff all over.
    """
    return render_scene(build_category_scene(label_id, seed), size)[0]


def _compute_geometry(scene: Scene, size: int) -> tuple[NDArray[np.intp], list[ObjectGeometry]]:
    """Region index on the fine grid, (2 size, 2 size), and the objects that stay, from back to front."""
    positions = _fine_positions(slice(0, size), size)
    regions = scene.layout.compute_regions(positions[None], positions[:, None])
    return regions, drop_hidden([ObjectGeometry(scene_object, size) for scene_object in scene.objects], size)


def drop_hidden(objects: list[ObjectGeometry], size: int) -> list[ObjectGeometry]:
    """Take out objects that are too small or mostly hidden, the least visible one first.

    What hid behind one that is taken out becomes visible, so the rest is judged anew.
    """
    objects = list(objects)
    while objects:
        order = np.zeros((size, size), dtype=np.int16)
        for position, geometry in enumerate(objects, start=1):
            order[geometry.window][geometry.mask] = position
        visible = np.bincount(order.ravel(), minlength=len(objects) + 1)[1:]
        # Below 1 is too little.
        shares = [
            min(
                area / (SMALLEST_VISIBLE_AREA * size * size),
                area / (SMALLEST_VISIBLE_SHARE * max(_compute_whole_area(geometry.scene_object, size), 1.0)),
            )
            for area, geometry in zip(visible.tolist(), objects, strict=True)
        ]
        least = min(range(len(objects)), key=shares.__getitem__)
        if shares[least] >= 1.0:
            break
        del objects[least]
    return objects


def _compute_whole_area(scene_object: SceneObject, size: int) -> float:
    """Area of the whole shape in final pixels."""
    shape_area = _measure_shape(PATCHWORK_CATEGORIES[scene_object.label_id].base)
    return shape_area * (scene_object.radius * size) ** 2


@cache
def _measure_shape(shape: str) -> float:
    """Area in the shape's own frame, where the disc that holds it has radius 1."""
    grid = (np.arange(256, dtype=np.float32) + np.float32(0.5)) / np.float32(128) - np.float32(1)
    return float(SHAPE_MASKS[shape](grid[None], grid[:, None]).mean() * 4)


def _draw_grounds(scene: Scene, regions: NDArray[np.intp]) -> Plane:
    """The fine canvas, (2 size, 2 size, 3), without objects."""
    positions = _fine_positions(slice(0, len(regions) // OVERSAMPLING), len(regions) // OVERSAMPLING)
    canvas = np.empty((*regions.shape, 3), dtype=np.float32)
    for region, ground in enumerate(scene.grounds):
        is_inside = regions == region
        rows, columns = np.flatnonzero(is_inside.any(axis=1)), np.flatnonzero(is_inside.any(axis=0))
        if len(rows):
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            lightness = _shade_ground(ground, positions[window[1]][None], positions[window[0]][:, None])
            shade = lightness * np.float32(ground.contrast) + np.float32(1)
            for channel, level in enumerate(ground.color):
                np.copyto(canvas[(*window, channel)], shade * np.float32(level), where=is_inside[window])
    return canvas


def _shade_ground(ground: Ground, x: Plane, y: Plane) -> Plane:
    scale = np.float32(ground.bricks_per_side)
    u, v = _rotate(x * scale, y * scale, ground.direction)
    material = PATCHWORK_CATEGORIES[ground.label_id].base
    return MATERIAL_SHADES[material](u, v, RandomStream(ground.texture_key))


def _draw_object(canvas: Plane, geometry: ObjectGeometry, camera: Camera | None) -> None:
    scene_object = geometry.scene_object
    if camera is not None:
        _cast_shadow(canvas, geometry, camera)
    u, v = _rotate(geometry.across, geometry.down, scene_object.pattern_direction)
    surface = SURFACE_MASKS[PATCHWORK_CATEGORIES[scene_object.label_id].attribute]
    is_second = surface(u, v, scene_object.repeats, scene_object.phase)
    colors = np.asarray(scene_object.colors, dtype=np.float32)
    canvas[geometry.fine_window][geometry.fine] = colors[is_second[geometry.fine].astype(np.int8)]


def _cast_shadow(canvas: Plane, geometry: ObjectGeometry, camera: Camera) -> None:
    """Darken what lies beside the object, away from the light."""
    fine_size = len(canvas)
    shift_x, shift_y = (
        -round(component * camera.shadow_offset * fine_size) for component in camera.light_direction
    )
    rows, columns = geometry.fine_window
    top, bottom = max(rows.start + shift_y, 0), min(rows.stop + shift_y, fine_size)
    left, right = max(columns.start + shift_x, 0), min(columns.stop + shift_x, fine_size)
    if top >= bottom or left >= right:
        return
    shifted = geometry.fine[
        top - shift_y - rows.start : bottom - shift_y - rows.start,
        left - shift_x - columns.start : right - shift_x - columns.start,
    ]
    canvas[top:bottom, left:right][shifted] *= np.float32(1 - camera.shadow_strength)


def _map_segments(
    scene: Scene, regions: NDArray[np.intp], objects: list[ObjectGeometry]
) -> tuple[NDArray[np.int32], dict[int, int]]:
    size = len(regions) // OVERSAMPLING
    segment_ids = np.ones((size, size), dtype=np.int32)
    label_ids = {region + 1: ground.label_id for region, ground in enumerate(scene.grounds)}
    for region in range(1, len(scene.grounds)):
        segment_ids[_reduce_mask(regions == region)] = region + 1
    for segment_id, geometry in enumerate(objects, start=len(scene.grounds) + 1):
        segment_ids[geometry.window][geometry.mask] = segment_id
        label_ids[segment_id] = geometry.scene_object.label_id
    areas = np.bincount(segment_ids.ravel(), minlength=len(label_ids) + 1).tolist()
    return segment_ids, {i: label_id for i, label_id in label_ids.items() if areas[i]}


def _develop(pixels: Plane, camera: Camera | None) -> Image.Image:
    """Light, lens, sensor and file, on a canvas of RGB in about [0, 1]."""
    if camera is None:
        return Image.fromarray(_quantize(pixels * np.float32(255)))
    size = len(pixels)
    positions = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)) - np.float32(0.5)
    dx, dy = camera.light_direction
    light = (positions[None] * np.float32(dx) + positions[:, None] * np.float32(dy)) * np.float32(
        camera.light_gradient
    ) + np.float32(1)
    pixels = pixels * (light * np.float32(255))[..., None]
    pixels = _blur_rows(_blur_rows(pixels, camera.blur).transpose(1, 0, 2), camera.blur).transpose(1, 0, 2)
    pixels = pixels + RandomStream(camera.noise_key).bell_noise(pixels.shape) * np.float32(camera.noise)
    file = BytesIO()
    Image.fromarray(_quantize(pixels)).save(file, format="JPEG", quality=camera.jpeg_quality)
    return Image.open(file).convert("RGB")


def _blur_rows(pixels: Plane, weight: float) -> Plane:
    """Each row mixed with the one above and the one below; the outermost rows repeat."""
    above = np.concatenate((pixels[:1], pixels[:-1]))
    below = np.concatenate((pixels[1:], pixels[-1:]))
    return pixels * np.float32(1 - 2 * weight) + (above + below) * np.float32(weight)


def _quantize(pixels: Plane) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _reduce_mask(fine: Mask) -> Mask:
    """Pixels of which half or more is covered."""
    return _sum_cells(fine.view(np.int8)) >= HALF_COVERED


def _sum_cells(fine: NDArray[Number]) -> NDArray[Number]:
    """Sums over the cells of every pixel; one after the other, as the order of additions shows in floats."""
    offsets = [(row, column) for row in range(OVERSAMPLING) for column in range(OVERSAMPLING)]
    return reduce(np.add, (fine[row::OVERSAMPLING, column::OVERSAMPLING] for row, column in offsets))


def _fine_positions(window: slice, size: int) -> Plane:
    """Centres of the fine grid's cells over a window of the final grid, 0 to 1 over the canvas."""
    cells = np.arange(window.start * OVERSAMPLING, window.stop * OVERSAMPLING, dtype=np.float32)
    return (cells + np.float32(0.5)) / np.float32(size * OVERSAMPLING)


def _clip_window(centre: float, radius: float, size: int) -> slice:
    start = min(max(int((centre - radius) * size), 0), size)
    return slice(start, max(start, min(int((centre + radius) * size) + 1, size)))


def _rotate(x: Plane, y: Plane, direction: tuple[float, float]) -> tuple[Plane, Plane]:
    """Coordinates along a direction and across it; x is one row, y one column."""
    dx, dy = np.float32(direction[0]), np.float32(direction[1])
    return x * dx + y * dy, y * dx - x * dy
