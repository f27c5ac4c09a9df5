"""What is written on a picture: label and score inside a segment, or the label's number from the legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from zsseg.visualization.colors import Color, text_color
from zsseg.visualization.lettering import Lettering, star_points
from zsseg.visualization.placement import Box, InteriorBoxes, overlaps
from zsseg.visualization.regions import SegmentRegions


@dataclass(frozen=True, slots=True)
class TagText:
    """What a segment's tag has to say.

    Attributes:
        name: the label as the font can show it.
        score: for example "0.93"; empty for ground truth.
        is_unseen: a star goes before the name.
        number: the label's number in the legend, for segments with no room for words.
    """

    name: str
    score: str
    is_unseen: bool
    number: int


@dataclass(frozen=True, slots=True)
class Tag:
    """A placed tag.

    Attributes:
        position: which segment it belongs to, by position in the list.
        kind: "label" and "marker" (the number) lie inside the segment; "pointer" is a marker beside it, with
            a line to ``target``.
        lines: the text.
        box: the tag's background in pixels.
        font_size: in pixels.
        has_star: whether a star stands before the first line.
        target: a pixel of the segment.
    """

    position: int
    kind: Literal["label", "marker", "pointer"]
    lines: tuple[str, ...]
    box: Box
    font_size: int
    has_star: bool
    target: tuple[int, int]


class TagLayout:
    """Places tags for the segments of one map.

    Args:
        regions: the map.
        texts: what to say, one for each segment.
        lettering: the font at full size.
    """

    def __init__(self, regions: SegmentRegions, texts: Sequence[TagText], lettering: Lettering) -> None:
        self._regions = regions
        self._texts = texts
        self._sizes = (lettering, lettering.resized(0.8))

    def place(self) -> list[Tag]:
        """Tags that overlap nothing: first those inside their segments, then pointers where there is room."""
        tags: list[Tag] = []
        without: list[int] = []
        for position in range(len(self._texts)):
            tag = self._inside(position)
            if tag is None:
                without.append(position)
            else:
                tags.append(tag)
        taken = np.array([tag.box for tag in tags], dtype=np.int64).reshape(-1, 4)
        for position in sorted(without, key=self._area, reverse=True):
            pointer = self._beside(position, taken)
            if pointer is not None:
                tags.append(pointer)
                taken = np.vstack([taken, pointer.box])
        return tags

    def _area(self, position: int) -> int:
        x0, y0, x1, y1 = self._regions.boxes[position]
        return int((x1 - x0) * (y1 - y0))

    def _inside(self, position: int) -> Tag | None:
        text = self._texts[position]
        left, top, right, bottom = (int(value) for value in self._regions.boxes[position])
        small = self._sizes[-1]
        number = (str(text.number),)
        number_width, number_height = tag_size(number, small, has_star=False)
        if right - left < number_width or bottom - top < number_height:
            return None
        boxes = InteriorBoxes(self._regions.mask(position), detail=small.line_height)
        for lettering in self._sizes:
            for lines in _line_breaks(text):
                width, height = tag_size(lines, lettering, has_star=text.is_unseen)
                if corner := boxes.fit(width, height):
                    box = _box(left + corner[0], top + corner[1], width, height)
                    return Tag(position, "label", lines, box, lettering.size, text.is_unseen, _middle(box))
        if corner := boxes.fit(number_width, number_height):
            box = _box(left + corner[0], top + corner[1], number_width, number_height)
            return Tag(position, "marker", number, box, small.size, False, _middle(box))
        return None

    def _beside(self, position: int, taken: NDArray[np.int64]) -> Tag | None:
        lettering = self._sizes[-1]
        number = (str(self._texts[position].number),)
        width, height = tag_size(number, lettering, has_star=False)
        x, y, room = self._deepest(position)
        if room * 4 < height:  # a speck or a sliver: its colour in the legend has to do
            return None
        picture_height, picture_width = self._regions.index.shape
        for gap in (lettering.size // 2, lettering.size * 3 // 2):
            for across, down in _DIRECTIONS:
                left = x + across * (gap + (room + width) // 2) - width // 2
                top = y + down * (gap + (room + height) // 2) - height // 2
                box = _box(left, top, width, height)
                is_visible = left >= 0 and top >= 0 and box[2] <= picture_width and box[3] <= picture_height
                if is_visible and not overlaps(box, taken):
                    return Tag(position, "pointer", number, box, lettering.size, False, (x, y))
        return None

    def _deepest(self, position: int) -> tuple[int, int, int]:
        """Centre (x, y) and side of the largest square inside a segment."""
        left, top = (int(value) for value in self._regions.boxes[position, :2])
        x, y, side = InteriorBoxes(self._regions.mask(position), detail=1).largest_square()
        return left + x + side // 2, top + y + side // 2, side


_DIRECTIONS = ((0, -1), (1, 0), (0, 1), (-1, 0), (1, -1), (1, 1), (-1, 1), (-1, -1))


def tag_size(lines: Sequence[str], lettering: Lettering, *, has_star: bool) -> tuple[int, int]:
    """(width, height) in pixels of a tag with its padding."""
    star = star_width(lettering) if has_star else 0
    widths = [lettering.width(line) + (star if row == 0 else 0) for row, line in enumerate(lines)]
    padding = _padding(lettering)
    return max(widths) + 2 * padding, len(lines) * lettering.line_height + padding // 2


def star_width(lettering: Lettering) -> int:
    """Pixels that a star and the space after it take."""
    return round(lettering.size * 1.05)


def draw_star(draw: ImageDraw.ImageDraw, left: int, top: int, lettering: Lettering, color: Color) -> None:
    """A star before a line of text that starts at the height ``top``."""
    radius = lettering.size * 0.42
    draw.polygon(star_points(left + radius, top + lettering.line_height * 0.55, radius), fill=color)


def draw_tag(draw: ImageDraw.ImageDraw, tag: Tag, background: Color, lettering: Lettering) -> None:
    """Paint one tag in its segment's colour.

    Args:
        draw: on the picture.
        tag: where and what.
        background: the segment's colour.
        lettering: the font at ``tag.font_size``.
    """
    ink = text_color(background)
    x0, y0, x1, y1 = tag.box
    line_width = max(1, lettering.size // 10)
    if tag.kind == "pointer":
        draw.line([_middle(tag.box), tag.target], fill=ink, width=line_width + 2)
        draw.line([_middle(tag.box), tag.target], fill=background, width=line_width)
    draw.rounded_rectangle(
        (x0, y0, x1 - 1, y1 - 1),
        radius=lettering.size // 4,
        fill=background,
        outline=_between(background, ink),
    )
    padding = _padding(lettering)
    for row, line in enumerate(tag.lines):
        star = star_width(lettering) if tag.has_star and row == 0 else 0
        left = x0 + (x1 - x0 - lettering.width(line) - star) // 2
        top = y0 + padding // 4 + row * lettering.line_height
        if star:
            draw_star(draw, left, top, lettering, ink)
        draw.text((left + star, top), line, font=lettering.font, fill=ink)


def _line_breaks(text: TagText) -> list[tuple[str, ...]]:
    if text.score:
        breaks: list[tuple[str, ...]] = [(f"{text.name} {text.score}",), (text.name, text.score)]
    else:
        breaks = [(text.name,)]
    words = text.name.split(" ")
    if len(words) > 1:
        half = len(words) // 2
        first, second = " ".join(words[:half]), " ".join(words[half:])
        breaks.append((first, f"{second} {text.score}".rstrip()))
    return breaks


def _padding(lettering: Lettering) -> int:
    return max(2, lettering.size // 3)


def _box(x: int, y: int, width: int, height: int) -> Box:
    return x, y, x + width, y + height


def _middle(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _between(background: Color, ink: Color) -> Color:
    red, green, blue = ((low + high) // 2 for low, high in zip(background, ink, strict=True))
    return red, green, blue
