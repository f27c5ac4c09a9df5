import numpy as np
import pytest
from PIL import Image

from zsseg.visualization.contact_sheet import Tile, draw_contact_sheet
from zsseg.visualization.legend import BACKGROUND

COLORS = [(200, 30 * i, 255 - 30 * i) for i in range(7)]


def tiles(size=(64, 48), unseen=()):
    return [Tile(Image.new("RGB", size, color), f"tile {i}", i in unseen) for i, color in enumerate(COLORS)]


def extent(sheet, color):
    rows, columns = np.nonzero((np.array(sheet) == color).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_every_picture_stands_whole_in_its_place():
    boxes = [extent(draw_contact_sheet(tiles(), columns=3), color) for color in COLORS]
    assert all((right - left, bottom - top) == (64, 48) for left, top, right, bottom in boxes)
    assert len({left for left, *_ in boxes}) == 3
    assert [boxes[i][1] for i in (0, 3, 6)] == sorted({top for _, top, *_ in boxes})


def test_text_stands_below_its_picture_and_is_cut_to_its_width():
    long = Tile(Image.new("RGB", (64, 48), COLORS[0]), "a text that is far too long for its picture")
    sheet = draw_contact_sheet([long], columns=4)
    left, _, right, bottom = extent(sheet, COLORS[0])
    ink = (np.array(sheet)[bottom:] != BACKGROUND).any(axis=2)
    columns = np.flatnonzero(ink.any(axis=0))
    assert left <= columns.min() < columns.max() < right
    assert sheet.width == right + left


def test_stars_are_explained():
    plain, starred = (np.array(draw_contact_sheet(tiles(unseen=unseen), columns=7)) for unseen in ((), (2,)))
    assert starred.shape[0] > plain.shape[0]
    assert starred.shape[1] == plain.shape[1]
    top = plain.shape[0] - 10
    changed = (plain[:top] != starred[:top]).any(axis=(0, 2)).nonzero()[0]
    left, _, right, _ = extent(Image.fromarray(plain), COLORS[2])
    assert left - 1 <= changed.min() < changed.max() < right
    assert (starred[plain.shape[0] :] != BACKGROUND).any()


def test_pictures_of_one_size():
    with pytest.raises(ValueError, match=r"one size, got the sizes \[\(8, 8\), \(64, 48\)\]"):
        draw_contact_sheet([*tiles(), Tile(Image.new("RGB", (8, 8)), "")], columns=2)
    with pytest.raises(ValueError, match=r"got the sizes \[\]"):
        draw_contact_sheet([], columns=2)
