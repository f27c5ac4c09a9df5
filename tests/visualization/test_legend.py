import numpy as np
import pytest

from zsseg.visualization.legend import BACKGROUND, LegendEntry, draw_legend, legend_min_width
from zsseg.visualization.lettering import Lettering


def ink(strip):
    return (np.array(strip) != BACKGROUND).any(axis=2)


def colors_of(strip):
    return {color for _, color in strip.getcolors(strip.width * strip.height)}


@pytest.mark.parametrize("size", [12, 48])
@pytest.mark.parametrize("count", [1, 2, 9, 133])
def test_every_entry_has_its_patch_and_nothing_touches_the_edge(size, count):
    colors = [(i, 255 - i, 90) for i in range(count)]
    entries = [LegendEntry(f"label {i}", "(2)", (color,), number=i) for i, color in enumerate(colors)]
    strip = draw_legend(entries, 40 * size, Lettering(size))
    assert set(colors) <= colors_of(strip)
    marks = ink(strip)
    assert not marks[0].any()
    assert not marks[-1].any()
    assert not marks[:, 0].any()
    assert not marks[:, -1].any()


def test_a_patch_shows_all_instance_colors_in_equal_stripes():
    colors = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    pixels = np.array(draw_legend([LegendEntry("car", colors=colors)], 300, Lettering(20)))
    areas = [int((pixels == color).all(axis=2).sum()) for color in colors]
    assert min(areas) > 0
    assert max(areas) <= min(areas) * 1.2


def test_a_long_text_ends_inside_the_strip_and_keeps_its_detail():
    lettering = Lettering(12)
    width = legend_min_width(lettering)
    plain = ink(draw_legend([LegendEntry("word " * 40, "", ((9, 9, 9),))], width, lettering))
    detailed = ink(draw_legend([LegendEntry("word " * 40, "(12, 0.93)", ((9, 9, 9),))], width, lettering))
    for marks in (plain, detailed):
        assert not marks[:, -6:].any()
    assert not np.array_equal(plain, detailed)


def test_unseen_labels_and_void_look_different():
    lettering = Lettering(16)
    seen = draw_legend([LegendEntry("car", colors=((9, 9, 9),))], 300, lettering)
    unseen = draw_legend([LegendEntry("car", colors=((9, 9, 9),), is_unseen=True)], 300, lettering)
    assert ink(unseen).sum() > ink(seen).sum() + 16
    void = draw_legend([LegendEntry("unlabelled", is_void=True)], 300, lettering)
    assert {(120, 120, 120), (185, 185, 185)} <= colors_of(void)
