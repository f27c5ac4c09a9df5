import numpy as np
import pytest

from oracles.patchwork_segments import POLYGONS, contains, object_mask, segment_map, shape_area
from zsseg.data.patchwork.categories import PATCHWORK_CATEGORIES, SHAPES, SURFACES
from zsseg.data.patchwork.patterns import SHAPE_MASKS, SURFACE_MASKS, SURFACE_REPEATS
from zsseg.data.patchwork.presets import PRESETS
from zsseg.data.patchwork.rendering import (
    ObjectGeometry,
    drop_hidden,
    map_scene,
    render_category,
    render_scene,
)
from zsseg.data.patchwork.scenes import build_scene


def scenes_of(preset, count, seed=0):
    return [build_scene(PRESETS[preset], seed, index, range(60)) for index in range(count)]


def shape_of(thing):
    return PATCHWORK_CATEGORIES[thing.label_id].base


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_in_the_unit_disc_and_is_what_its_corners_say(shape):
    # No corner and no edge of a shape lies on this grid.
    grid = np.linspace(-1.2001, 1.2003, 301)
    u, v = grid[None], grid[:, None]
    inside = SHAPE_MASKS[shape](u.astype(np.float32), v.astype(np.float32))
    np.testing.assert_array_equal(inside, contains(shape, u, v))
    assert np.hypot(u, v)[inside].max() <= 1.0
    assert inside.mean() * 2.4004**2 == pytest.approx(shape_area(shape), rel=0.02)


def test_the_oracle_knows_every_shape():
    assert {*POLYGONS, "disc", "ring", "crescent"} == set(SHAPES) == set(SHAPE_MASKS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [128, 45])
def test_maps_are_what_the_geometry_says(preset, size):
    dropped = 0
    for scene in scenes_of(preset, 6):
        shapes = [shape_of(thing) for thing in scene.objects]
        expected, kept = segment_map(scene, shapes, size)
        segment_ids, label_ids = map_scene(scene, size)
        np.testing.assert_array_equal(segment_ids, expected)
        things = [scene.objects[number].label_id for number in kept]
        assert label_ids == {
            segment_id: label_id
            for segment_id, label_id in enumerate([*(g.label_id for g in scene.grounds), *things], start=1)
            if (expected == segment_id).any()
        }
        dropped += len(scene.objects) - len(kept)
    if preset == "hard":
        assert dropped > 0


def test_an_object_is_seen_where_it_alone_would_be_and_no_later_one_is():
    for scene in scenes_of("hard", 5):
        segment_ids, label_ids = map_scene(scene, 128)
        objects = drop_hidden([ObjectGeometry(thing, 128) for thing in scene.objects], 128)
        hidden = np.zeros((128, 128), dtype=bool)
        for segment_id, geometry in reversed(list(enumerate(objects, start=len(scene.grounds) + 1))):
            thing = geometry.scene_object
            alone = object_mask(thing, shape_of(thing), 128)
            assert geometry.mask.sum() == alone.sum()
            np.testing.assert_array_equal(geometry.mask, alone[geometry.window])
            np.testing.assert_array_equal(segment_ids == segment_id, alone & ~hidden)
            assert label_ids[segment_id] == thing.label_id
            hidden |= alone


def test_easy_objects_neither_overlap_nor_leave_the_picture():
    for scene in scenes_of("easy", 25, seed=1):
        objects = [ObjectGeometry(thing, 128) for thing in scene.objects]
        covered = np.zeros((128, 128), dtype=int)
        for geometry in objects:
            covered[geometry.window] += geometry.mask
            whole = shape_area(shape_of(geometry.scene_object)) * (geometry.scene_object.radius * 128) ** 2
            assert geometry.mask.sum() == pytest.approx(whole, rel=0.15)
        assert covered.max() == 1


@pytest.mark.parametrize("preset", ["standard", "hard"])
def test_enough_of_every_object_is_visible(preset):
    smallest = 1.0
    for scene in scenes_of(preset, 25, seed=1):
        segment_ids, label_ids = map_scene(scene, 128)
        objects = drop_hidden([ObjectGeometry(thing, 128) for thing in scene.objects], 128)
        assert len(label_ids) <= len(scene.grounds) + len(objects)
        for segment_id, geometry in enumerate(objects, start=len(scene.grounds) + 1):
            area = (segment_ids == segment_id).sum()
            whole = shape_area(shape_of(geometry.scene_object)) * (geometry.scene_object.radius * 128) ** 2
            assert area >= 64
            smallest = min(smallest, area / whole)
    assert 0.29 < smallest < 0.5


def test_picture_and_map_show_the_same():
    """Without nuisance a pixel wholly inside an object shows its two colours and nothing else."""
    checked = 0
    for scene in scenes_of("easy", 6):
        image, segment_ids, _ = render_scene(scene, 128)
        pixels = np.asarray(image).astype(float)
        for segment_id, thing in enumerate(scene.objects, start=len(scene.grounds) + 1):
            geometry = ObjectGeometry(thing, 128)
            rows, columns = geometry.mask.shape
            is_whole = geometry.fine.reshape(rows, 2, columns, 2).all(axis=(1, 3))
            assert (segment_ids[geometry.window][is_whole] == segment_id).all()
            first, second = (255 * np.array(color) for color in thing.colors)
            share = ((pixels[geometry.window][is_whole] - first) @ (second - first)) / (
                (second - first) ** 2
            ).sum()
            mixed = first + share[:, None] * (second - first)
            np.testing.assert_allclose(pixels[geometry.window][is_whole], mixed, atol=1.0)
            np.testing.assert_allclose(share * 4, np.rint(share * 4), atol=0.1)
            surface = PATCHWORK_CATEGORIES[thing.label_id].attribute
            assert (share.max() < 0.1) == (surface == "plain")
            checked += is_whole.sum()
    assert checked > 2000


@pytest.mark.parametrize("surface", SURFACES)
def test_both_colors_of_a_pattern_show(surface):
    grid = np.linspace(-1, 1, 200, dtype=np.float32)
    for repeats in SURFACE_REPEATS[surface]:
        share = SURFACE_MASKS[surface](grid[None], grid[:, None], repeats, 0.3).mean()
        assert share == 0 if surface == "plain" else 0.2 < share < 0.6


@pytest.mark.parametrize("size", [32, 33, 64, 200])
def test_any_size(size):
    scene = scenes_of("standard", 1)[0]
    image, segment_ids, label_ids = render_scene(scene, size)
    assert image.size == (size, size)
    assert image.mode == "RGB"
    assert segment_ids.shape == (size, size)
    assert segment_ids.dtype == np.int32
    assert set(np.unique(segment_ids)) == set(label_ids)


def test_sizes_show_one_scene():
    for scene in scenes_of("easy", 4):
        small, large = (map_scene(scene, size)[0] for size in (64, 128))
        assert (large[::2, ::2] == small).mean() > 0.95


def test_every_category_by_itself_looks_its_own_way():
    pictures = [np.asarray(render_category(label_id, size=64)) for label_id in range(60)]
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 60
    for category, picture in zip(PATCHWORK_CATEGORIES, pictures, strict=True):
        assert (picture[0, 0] == 128).all() == category.is_thing
    again = np.asarray(render_category(3, size=64))
    np.testing.assert_array_equal(again, pictures[3])
    assert not np.array_equal(np.asarray(render_category(3, seed=1, size=64)), again)
