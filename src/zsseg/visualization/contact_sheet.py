"""Many small pictures on one page, each with a line of text."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from zsseg.visualization.legend import BACKGROUND, INK, LegendEntry, draw_legend
from zsseg.visualization.lettering import MIN_FONT_SIZE, Lettering
from zsseg.visualization.tags import draw_star, star_width


class Tile(NamedTuple):
    """One picture of a contact sheet.

    Attributes:
        picture: RGB.
        text: the line below it, cut to its width.
        is_unseen: a star goes before the text.
    """

    picture: Image.Image
    text: str
    is_unseen: bool = False


def draw_contact_sheet(tiles: Sequence[Tile], *, columns: int) -> Image.Image:
    """Draw tiles in rows; a line at the end explains the stars, if there are any.

    Args:
        tiles: at least one, their pictures of one size.
        columns: tiles in a row, 1 or more.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if there is no tile, or pictures differ in size.
    """
    sizes = {tile.picture.size for tile in tiles}
    if len(sizes) != 1:
        raise ValueError(f"a contact sheet needs pictures of one size, got the sizes {sorted(sizes)}")
    width, height = tiles[0].picture.size
    lettering = Lettering(max(MIN_FONT_SIZE, width // 12))
    gap = lettering.size // 2
    line_height = round(lettering.line_height * 1.2)
    pitch_x, pitch_y = width + gap, height + line_height + gap
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * pitch_x + gap, rows * pitch_y + gap), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = gap + column * pitch_x, gap + row * pitch_y
        sheet.paste(tile.picture, (left, top))
        _draw_text(draw, tile, left, top + height, lettering)
    return _add_note(sheet, lettering) if any(tile.is_unseen for tile in tiles) else sheet


def _draw_text(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, lettering: Lettering) -> None:
    width = tile.picture.width
    if tile.is_unseen:
        draw_star(draw, left, top, lettering, INK)
        left, width = left + star_width(lettering), width - star_width(lettering)
    text = lettering.cut(lettering.printable(tile.text), width)
    draw.text((left, top), text, font=lettering.font, fill=INK)


def _add_note(sheet: Image.Image, lettering: Lettering) -> Image.Image:
    note = draw_legend([LegendEntry("unseen in training", is_unseen=True)], sheet.width, lettering)
    whole = Image.new("RGB", (sheet.width, sheet.height + note.height), BACKGROUND)
    whole.paste(sheet, (0, 0))
    whole.paste(note, (0, sheet.height))
    return whole
