import numpy as np
import pytest

from zsseg.visualization.colors import ColorScheme, relative_luminance, text_color
from zsseg.vocabulary import Vocabulary


def vocabulary_of(things, stuff):
    names = [f"thing {i}" for i in range(things)] + [f"stuff {i}" for i in range(stuff)]
    return Vocabulary.from_labels(names, stuff_labels=names[things:])


def closest(colors):
    values = np.array(colors, dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + np.eye(len(values)) * 1e3
    return distances.min()


def test_twelve_things_and_twelve_stuff_labels_stay_apart():
    scheme = ColorScheme(vocabulary_of(12, 12), range(24))
    assert closest([scheme.color(i) for i in range(12)]) > 60
    assert closest([scheme.color(i) for i in range(12, 24)]) > 40


def test_things_are_more_vivid_than_stuff():
    scheme = ColorScheme(vocabulary_of(12, 12), range(24))

    def spread(i):
        return max(scheme.color(i)) - min(scheme.color(i))

    assert np.mean([spread(i) for i in range(12)]) > 1.5 * np.mean([spread(i) for i in range(12, 24)])


def test_a_small_vocabulary_has_the_same_colors_in_every_picture():
    vocabulary = vocabulary_of(8, 11)
    everything = ColorScheme(vocabulary, range(19))
    assert [ColorScheme(vocabulary, [i]).color(i) for i in range(19)] == [
        everything.color(i) for i in range(19)
    ]


def test_labels_that_would_share_a_color_in_a_large_vocabulary_get_two():
    vocabulary = vocabulary_of(80, 53)
    alone = ColorScheme(vocabulary, [12])
    both = ColorScheme(vocabulary, [0, 12])
    assert alone.color(12) == both.color(0)
    assert closest([both.color(0), both.color(12)]) > 60


def test_sixty_labels_in_one_picture_have_sixty_colors():
    scheme = ColorScheme(vocabulary_of(200, 0), range(60))
    assert len({scheme.color(i) for i in range(60)}) == 60


def test_a_thousand_labels_in_one_picture_still_have_colors():
    scheme = ColorScheme(vocabulary_of(500, 500), range(1000))
    assert len({scheme.color(i) for i in range(1000)}) >= 150


def test_three_hundred_instances_have_as_many_shades_and_the_first_is_the_label_color():
    scheme = ColorScheme(vocabulary_of(12, 0), range(12))
    for label_id in range(12):
        shades = [scheme.shade(label_id, variant) for variant in range(300)]
        assert shades[0] == scheme.color(label_id)
        assert len(set(shades)) == 300
        assert closest(shades[:6]) > 30


def test_ten_thousand_instances_of_a_label_still_have_shades():
    scheme = ColorScheme(vocabulary_of(1, 0), [0])
    assert scheme.shade(0, 10_000) != scheme.shade(0, 1)


@pytest.mark.parametrize(
    "color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (118, 118, 118), (255, 0, 0), (0, 90, 255)]
)
def test_text_contrasts_with_any_background(color):
    lighter, darker = sorted((relative_luminance(color), relative_luminance(text_color(color))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_luminance_of_the_primaries_is_that_of_srgb():
    assert relative_luminance((255, 0, 0)) == pytest.approx(0.2126)
    assert relative_luminance((0, 255, 0)) == pytest.approx(0.7152)
    assert relative_luminance((0, 0, 10)) == pytest.approx(0.0722 * 10 / 255 / 12.92)
