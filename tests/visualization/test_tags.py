import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from zsseg.visualization.lettering import Lettering
from zsseg.visualization.regions import SegmentRegions
from zsseg.visualization.tags import Tag, TagLayout, TagText, draw_tag, tag_size


def place(index, texts, size=12):
    listed = list(range(1, int(index.max()) + 1))
    regions = SegmentRegions.from_ids(index.astype(np.int32), listed)
    return TagLayout(regions, texts, Lettering(size)).place()


def nearest_seed_map(seed, count, height, width):
    """Random cells around ``count`` points, some of them void."""
    random = np.random.default_rng(seed)
    y, x = random.uniform(0, height, count), random.uniform(0, width, count)
    rows, columns = np.ogrid[:height, :width]
    distance = (rows[..., None] - y) ** 2 + 0.6 * (columns[..., None] - x) ** 2
    cells = np.where(distance.min(axis=-1) < random.uniform(200, 4000), distance.argmin(axis=-1) + 1, 0)
    present = np.unique(cells[cells > 0])
    return np.searchsorted(present, cells, side="right") * (cells > 0)


def text(name="person", score="0.93", is_unseen=False, number=1):
    return TagText(name, score, is_unseen, number)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(["car", "traffic light", "x" * 90]),
)
def test_tags_inside_are_inside_and_none_overlap(seed, count, is_unseen, name):
    index = nearest_seed_map(seed, count, 150, 220)
    texts = [text(name, is_unseen=is_unseen, number=i % 15 + 1) for i in range(int(index.max()))]
    tags = place(index, texts)
    covered = np.zeros(index.shape, dtype=bool)
    for tag in tags:
        x0, y0, x1, y1 = tag.box
        assert 0 <= x0 < x1 <= 220
        assert 0 <= y0 < y1 <= 150
        assert not covered[y0:y1, x0:x1].any()
        covered[y0:y1, x0:x1] = True
        if tag.kind == "pointer":
            assert index[tag.target[1], tag.target[0]] == tag.position + 1
        else:
            assert (index[y0:y1, x0:x1] == tag.position + 1).all()
    assert len({tag.position for tag in tags}) == len(tags)


def test_the_words_are_used_where_they_fit_and_the_number_where_not():
    index = np.zeros((100, 300), dtype=int)
    index[:, :150], index[10:40, 160:210], index[50:75, 170:190] = 1, 2, 3
    tags = {tag.position: tag for tag in place(index, [text(), text(), text(number=7)])}
    assert (tags[0].kind, tags[0].lines, tags[0].font_size) == ("label", ("person 0.93",), 12)
    assert (tags[1].kind, tags[1].lines) == ("label", ("person", "0.93"))
    assert (tags[2].kind, tags[2].lines) == ("marker", ("7",))


@pytest.mark.parametrize("is_unseen", [False, True])
def test_a_label_has_the_room_that_its_words_and_its_star_need(is_unseen):
    [tag] = place(np.ones((60, 200), dtype=int), [text(is_unseen=is_unseen)])
    size = tag_size(tag.lines, Lettering(tag.font_size), has_star=is_unseen)
    assert tag.has_star == is_unseen
    assert (tag.box[2] - tag.box[0], tag.box[3] - tag.box[1]) == size


def test_two_words_without_a_score_break_between_them():
    index = np.zeros((60, 100), dtype=int)
    index[:, :48] = 1
    [tag] = place(index, [text("traffic light", score="")])
    assert (tag.kind, tag.lines) == ("label", ("traffic", "light"))


def test_a_segment_too_small_for_its_number_gets_a_pointer_and_a_speck_nothing():
    index = np.zeros((100, 100), dtype=int)
    index[50:58, 50:58], index[10, 10] = 1, 2
    [tag] = place(index, [text(number=3), text(number=4)])
    assert (tag.position, tag.kind, tag.lines) == (0, "pointer", ("3",))
    assert not (index[tag.box[1] : tag.box[3], tag.box[0] : tag.box[2]] == 1).any()


def test_no_pointer_where_there_is_no_room():
    index = np.ones((9, 9), dtype=int)
    assert place(index, [text()]) == []


@pytest.mark.parametrize("size", [10, 12, 24, 48])
@pytest.mark.parametrize("lines", [("gy|{}ÅQ 0.93",), ("person", "0.93"), ("7",), ("W" * 30,)])
@pytest.mark.parametrize("has_star", [False, True])
def test_nothing_is_drawn_outside_a_tag_and_no_letter_touches_its_edge(size, lines, has_star):
    lettering = Lettering(size)
    width, height = tag_size(lines, lettering, has_star=has_star)
    canvas = Image.new("RGB", (width + 20, height + 20), (0, 0, 255))
    background = (200, 180, 90)
    box = (10, 10, 10 + width, 10 + height)
    draw_tag(
        ImageDraw.Draw(canvas), Tag(0, "label", lines, box, size, has_star, (0, 0)), background, lettering
    )
    pixels = np.array(canvas)
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[10:-10, 10:-10] = False
    assert (pixels[outside] == (0, 0, 255)).all()
    ink = (pixels < 60).all(axis=2)
    assert ink.any()
    ys, xs = np.nonzero(ink)
    assert xs.min() > 10
    assert xs.max() < 10 + width - 1
    assert ys.min() > 10
    assert ys.max() < 10 + height - 1


def test_a_star_takes_room_before_the_first_line():
    lettering = Lettering(20)
    plain, _ = tag_size(("car",), lettering, has_star=False)
    starred, _ = tag_size(("car",), lettering, has_star=True)
    assert starred >= plain + 18


def test_a_pointer_draws_a_line_to_its_segment():
    canvas = Image.new("RGB", (100, 100), (255, 255, 255))
    tag = Tag(0, "pointer", ("1",), (10, 10, 25, 25), 12, False, (80, 80))
    draw_tag(ImageDraw.Draw(canvas), tag, (255, 0, 0), Lettering(12))
    assert canvas.getpixel((50, 50)) == (255, 0, 0)
