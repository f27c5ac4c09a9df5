"""Lines of text above a picture."""

from PIL import Image, ImageDraw

from zsseg.visualization.legend import BACKGROUND, INK
from zsseg.visualization.lettering import Lettering, font_size_for


def add_caption(picture: Image.Image, text: str) -> Image.Image:
    """Put a text above a picture, in as many lines as it needs.

    Args:
        picture: RGB.
        text: words; one that is wider than the picture is cut.

    Returns:
        An RGB picture of the same width, higher by the text.
    """
    lettering = Lettering(font_size_for(*picture.size))
    padding = lettering.size // 2
    lines = _wrap(lettering.printable(text), picture.width - 2 * padding, lettering)
    line_height = round(lettering.line_height * 1.2)
    top = 2 * padding + line_height * len(lines)
    page = Image.new("RGB", (picture.width, top + picture.height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for place, line in enumerate(lines):
        draw.text((padding, padding + place * line_height), line, font=lettering.font, fill=INK)
    page.paste(picture, (0, top))
    return page


def _wrap(text: str, width: int, lettering: Lettering) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and lettering.width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(lettering.cut(word, width))
    return lines
