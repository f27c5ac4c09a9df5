"""The strip below a picture that explains colours, numbers and stars."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from zsseg.visualization.colors import Color
from zsseg.visualization.lettering import Lettering
from zsseg.visualization.tags import draw_star, star_width

BACKGROUND: Color = (255, 255, 255)
INK: Color = (25, 25, 25)
QUIET_INK: Color = (105, 105, 105)


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One line of the legend.

    Attributes:
        text: the label as the font can show it.
        detail: in grey after it, such as a count and scores.
        colors: what the patch shows, in equal stripes; none for a note without a patch.
        is_void: the patch is hatched as void is.
        number: what markers in the picture say; None if there are none.
        is_unseen: a star goes before the text.
    """

    text: str
    detail: str = ""
    colors: tuple[Color, ...] = ()
    number: int | None = None
    is_unseen: bool = False
    is_void: bool = False


def draw_legend(entries: Sequence[LegendEntry], width: int, lettering: Lettering) -> Image.Image:
    """Draw entries in columns from top to bottom.

    Args:
        entries: at least one.
        width: of the strip in pixels, at least ``legend_min_width``.
        lettering: the font.

    Returns:
        An RGB strip as high as it needs to be. A text wider than the strip ends in "...".
    """
    padding = lettering.size // 2
    column_width = min(width - 2 * padding, max(_entry_width(entry, lettering) for entry in entries))
    gap = lettering.size
    columns = max(1, min(len(entries), (width - 2 * padding + gap) // (column_width + gap)))
    rows = -(-len(entries) // columns)
    row_height = round(lettering.line_height * 1.25)
    strip = Image.new("RGB", (width, rows * row_height + 2 * padding), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for place, entry in enumerate(entries):
        column, row = divmod(place, rows)
        left = padding + column * (column_width + gap)
        _draw_entry(draw, entry, left, padding + row * row_height, column_width, lettering)
    return strip


def legend_min_width(lettering: Lettering) -> int:
    """Pixels below which a legend cannot be read."""
    return lettering.size * 16


def _hatch(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], spacing: int, color: Color) -> None:
    """Diagonal lines in a box (ends inclusive), falling to the left."""
    x0, y0, x1, y1 = box
    width = max(1, spacing // 6)
    for start in range(x0 + y0 + spacing, x1 + y1, spacing):
        draw.line(
            [(min(x1, start - y0), max(y0, start - x1)), (max(x0, start - y1), min(y1, start - x0))],
            fill=color,
            width=width,
        )


def _patch_width(lettering: Lettering) -> int:
    return round(lettering.size * 1.9)


def _number_width(entry: LegendEntry, lettering: Lettering) -> int:
    return 0 if entry.number is None else lettering.width("00") + lettering.size // 3


def _entry_width(entry: LegendEntry, lettering: Lettering) -> int:
    star = star_width(lettering) if entry.is_unseen else 0
    detail = lettering.width(f" {entry.detail}") if entry.detail else 0
    return (
        _number_width(entry, lettering)
        + _patch_width(lettering)
        + lettering.size // 2
        + star
        + lettering.width(entry.text)
        + detail
    )


def _draw_entry(
    draw: ImageDraw.ImageDraw, entry: LegendEntry, left: int, top: int, width: int, lettering: Lettering
) -> None:
    right = left + width
    if entry.number is not None:
        left += _number_width(entry, lettering)
        number = str(entry.number)
        draw.text(
            (left - lettering.size // 3 - lettering.width(number), top), number, font=lettering.font, fill=INK
        )
    patch = (left, top + 1, left + _patch_width(lettering) - 1, top + lettering.line_height - 1)
    _draw_patch(draw, entry, patch)
    left = patch[2] + 1 + lettering.size // 2
    if entry.is_unseen:
        draw_star(draw, left, top, lettering, INK)
        left += star_width(lettering)
    detail = f" {entry.detail}" if entry.detail else ""
    text = lettering.cut(entry.text, max(lettering.size * 3, right - left - lettering.width(detail)))
    draw.text((left, top), text, font=lettering.font, fill=INK)
    draw.text((left + lettering.width(text), top), detail, font=lettering.font, fill=QUIET_INK)


def _draw_patch(draw: ImageDraw.ImageDraw, entry: LegendEntry, patch: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = patch
    if entry.is_void:
        draw.rectangle(patch, fill=(120, 120, 120))
        _hatch(draw, patch, max(4, (y1 - y0) // 3), (185, 185, 185))
    for stripe, color in enumerate(entry.colors):
        start = x0 + (x1 + 1 - x0) * stripe // len(entry.colors)
        end = x0 + (x1 + 1 - x0) * (stripe + 1) // len(entry.colors)
        draw.rectangle((start, y0, end - 1, y1), fill=color)
