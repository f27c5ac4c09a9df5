"""Colours that stay apart: vivid families for things, muted flat colours for stuff.

Colours are chosen in OKLab, where equal distances look about equally different (Ottosson 2020,
https://bottosson.github.io/posts/oklab/).
"""

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from zsseg.vocabulary import Vocabulary

Color = tuple[int, int, int]

PREFERRED_COUNT = 12
"""Labels choose among this many best separated colours first."""
PALETTE_SIZE = 96
MIN_DISTANCE = 0.13
"""Weighted OKLab distance that two colours in one picture should have."""


class ColorScheme:
    """A colour for every label in use and, for things, a family of shades around it.

    A label keeps its colour from picture to picture as long as the vocabulary has at most
    ``PREFERRED_COUNT`` things and as many stuff labels. In larger ones a label takes another colour where its
    own would be too close to that of a label before it in the same picture.

    Args:
        vocabulary: decides which labels are things.
        label_ids: the labels that appear.
    """

    def __init__(self, vocabulary: Vocabulary, label_ids: Collection[int]) -> None:
        self._is_thing = {label_id: vocabulary[label_id].is_thing for label_id in label_ids}
        self._palette_index: dict[int, int] = {}
        for is_thing, ids in ((True, vocabulary.thing_label_ids), (False, vocabulary.stuff_label_ids)):
            ranks = {label_id: rank for rank, label_id in enumerate(ids) if label_id in self._is_thing}
            if len(ids) > PREFERRED_COUNT:
                chosen = _separated(list(ranks.values()), _palette(is_thing))
                ranks = dict(zip(ranks, chosen, strict=True))
            self._palette_index.update(ranks)

    def color(self, label_id: int) -> Color:
        """The label's own colour, RGB in 0..255."""
        return self.shade(label_id, 0)

    def shade(self, label_id: int, variant: int) -> Color:
        """The colour of one instance; variant 0 is the label's own colour."""
        lab = _palette(self._is_thing[label_id])[self._palette_index[label_id]]
        if variant == 0:
            return _to_rgb(lab)
        lightness, green_red, blue_yellow = (float(value) for value in lab)
        # shades come in farthest point order, so a longer list only adds to a shorter one
        family = _shades((lightness, green_red, blue_yellow), 1 << variant.bit_length())
        return _to_rgb(family[variant % len(family)])


def relative_luminance(color: Color) -> float:
    """WCAG 2 relative luminance of an sRGB colour, in [0, 1]."""
    channels = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def text_color(background: Color) -> Color:
    """Black or white, whichever contrasts more: the ratio is at least 4.5 on any background."""
    luminance = relative_luminance(background)
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)


def _separated(preferred: Sequence[int], palette: NDArray[np.float64]) -> list[int]:
    """A palette index for each label: the preferred one, among the best few, if no earlier label is close."""
    chosen: list[int] = []
    distance = np.full(len(palette), np.inf)
    for wish in preferred:
        order = (wish % PREFERRED_COUNT + np.arange(PREFERRED_COUNT)) % PREFERRED_COUNT
        far_enough = order[distance[order] >= MIN_DISTANCE]
        index = int(far_enough[0]) if far_enough.size else int(distance.argmax())
        chosen.append(index)
        distance = np.minimum(distance, _distances(palette, palette[index]))
    return chosen


def _distances(colors: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab distances; lightness counts half, since the picture's light and dark show through a colour."""
    return np.asarray(np.linalg.norm((colors - color) * (0.5, 1.0, 1.0), axis=1))


@cache
def _palette(is_thing: bool) -> NDArray[np.float64]:
    """(PALETTE_SIZE, 3) OKLab colours, each as far as possible from those before it."""
    hue = np.arange(0.0, 2 * np.pi, np.pi / 36)
    if is_thing:
        candidates = _grid(np.arange(0.58, 0.86, 0.04), np.arange(0.14, 0.30, 0.02), hue)
        first = _polar_to_lab(0.66, 0.22, 0.5)
    else:
        candidates = _grid(np.arange(0.45, 0.90, 0.05), np.arange(0.03, 0.13, 0.02), hue)
        first = _polar_to_lab(0.65, 0.09, 4.3)
    return _spread(_displayable(candidates), first, PALETTE_SIZE)


@cache
def _shades(lab: tuple[float, float, float], count: int) -> NDArray[np.float64]:
    """Up to ``count`` OKLab shades of about one hue; the first is ``lab``, early ones are far apart."""
    lightness, chroma, hue = lab[0], float(np.hypot(lab[1], lab[2])), float(np.arctan2(lab[2], lab[1]))
    candidates = _grid(
        np.linspace(max(0.42, lightness - 0.17), min(0.92, lightness + 0.17), 13),
        np.linspace(max(0.10, chroma * 0.6), chroma * 1.15, 9),
        np.linspace(hue - 0.4, hue + 0.4, 13),
    )
    return _spread(_displayable(candidates), np.asarray(lab), count)


def _grid(*axes: NDArray[np.float64]) -> NDArray[np.float64]:
    lightness, chroma, hue = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    return _polar_to_lab(lightness, chroma, hue)


def _polar_to_lab(
    lightness: float | NDArray[np.float64],
    chroma: float | NDArray[np.float64],
    hue: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    return np.stack([np.asarray(lightness), chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)


def _spread(candidates: NDArray[np.float64], first: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Farthest point order: ``first``, then whichever candidate is farthest from all chosen ones."""
    chosen = [first]
    distance = _distances(candidates, first)
    for _ in range(min(count, len(candidates)) - 1):
        chosen.append(candidates[int(distance.argmax())])
        distance = np.minimum(distance, _distances(candidates, chosen[-1]))
    return np.stack(chosen)


def _linear_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    to_lms = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray((lab @ to_lms.T) ** 3 @ to_rgb.T)


def _displayable(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    rgb = _linear_rgb(lab)
    return lab[((rgb >= 0) & (rgb <= 1)).all(axis=1)]


def _to_rgb(lab: NDArray[np.float64]) -> Color:
    linear = np.clip(_linear_rgb(lab), 0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(channel) * 255) for channel in encoded)
    return red, green, blue
