import numpy as np
from PIL import Image

from zsseg.visualization.caption import add_caption


def ink_of(page, picture):
    """Dark pixels above the picture, by row."""
    strip = np.asarray(page.convert("L"))[: page.height - picture.height]
    return (strip < 128).any(axis=1)


def count_lines(rows):
    return int(np.sum(rows[1:] & ~rows[:-1])) + int(rows[0])


def test_the_picture_stays_and_the_text_stands_above():
    picture = Image.new("RGB", (300, 40), (200, 30, 30))
    page = add_caption(picture, "mmm")
    assert page.width == picture.width
    assert np.array_equal(np.asarray(page)[-40:], np.asarray(picture))
    assert count_lines(ink_of(page, picture)) == 1


def test_long_texts_take_more_lines_and_long_words_are_cut():
    picture = Image.new("RGB", (100, 40), (200, 30, 30))
    one = add_caption(picture, "mmm")
    many = add_caption(picture, "mmm " * 12)
    assert count_lines(ink_of(many, picture)) > 2
    assert many.height > one.height
    assert add_caption(picture, "m" * 60).height == one.height
    # Nothing reaches the edges.
    for page in (many, add_caption(picture, "m" * 60)):
        columns = (np.asarray(page.convert("L"))[: page.height - 40] < 128).any(axis=0)
        assert not columns[:2].any()
        assert not columns[-2:].any()
