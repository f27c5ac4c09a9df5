"""Fonts and text: one size from the picture, characters the font has, text cut to a width."""

import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from math import cos, pi, sin
from os import PathLike, fspath
from typing import cast

from PIL import ImageFont, features

FontFile = str | PathLike[str]

MIN_FONT_SIZE = 12
"""Pixels; below this text is hard to read on a screen."""
ELLIPSIS = "..."
_MISSING = "\U0010fffe"  # a noncharacter: every font shows its "missing glyph" box
_SPELLED_OUT = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
     "đ": "d", "Đ": "D", "–": "-", "—": "-", "’": "'", "‘": "'", "“": '"', "”": '"'}
)  # fmt: skip


class Lettering:
    """One font at one size.

    Args:
        size: in pixels.
        font: a TrueType or OpenType file; None is the Latin font that Pillow brings.

    Raises:
        ImportError: if Pillow was built without FreeType.
        OSError: if the font file cannot be read.
    """

    def __init__(self, size: int, font: FontFile | None = None) -> None:
        self.size = size
        self.file = None if font is None else fspath(font)
        self.font = _load_font(size, self.file)
        ascent, descent = self.font.getmetrics()
        self.line_height = ascent + descent

    def resized(self, factor: float) -> "Lettering":
        """The same font, larger or smaller, never below 10 pixels."""
        return Lettering(max(10, round(self.size * factor)), self.file)

    def width(self, text: str) -> int:
        """Width of a line in pixels, rounded up."""
        return int(-(-self.font.getlength(text) // 1))

    def has_glyph(self, character: str) -> bool:
        """Whether the font can show a character."""
        return character.isspace() or _glyph(self.size, self.file, character) != _glyph(
            self.size, self.file, _MISSING
        )

    def printable(self, text: str) -> str:
        """The text on one line, with characters the font lacks written in Latin where that is possible.

        Accents are dropped and symbols become their Unicode names. What is still missing stays: the font
        shows a box for it.
        """
        line = " ".join(unicodedata.normalize("NFC", text).split())
        return " ".join("".join(self._substitute(character) for character in line).split()) or line

    def cut(self, text: str, width: int) -> str:
        """The text, or its longest beginning with "..." that fits ``width`` pixels."""
        if self.width(text) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle].rstrip() + ELLIPSIS) <= width:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + ELLIPSIS

    def _substitute(self, character: str) -> str:
        if self.has_glyph(character):
            return character
        kind = unicodedata.category(character)
        if kind in {"Cc", "Cf", "Mn", "Me", "Sk"}:  # controls, joiners, variation selectors, skin tones
            return ""
        plain = unicodedata.normalize("NFKD", character.translate(_SPELLED_OUT))
        plain = "".join(part for part in plain if not unicodedata.combining(part))
        if plain and all(self.has_glyph(part) for part in plain):
            return plain
        if kind == "So":
            return f" {unicodedata.name(character, character).lower()} "
        return character


def font_size_for(width: int, height: int) -> int:
    """Font size in pixels: 12 on small pictures, 48 at 3840 × 2160."""
    return max(MIN_FONT_SIZE, round(max(width, height) / 80))


def printable_names(names: Iterable[str], lettering: Lettering) -> list[str]:
    """Names as the font can show them.

    Warns:
        UserWarning: if the font lacks characters for which there is no Latin form.
    """
    printable = [lettering.printable(name) for name in names]
    missing = [name for name in printable if not all(lettering.has_glyph(c) for c in name)]
    if missing:
        warnings.warn(
            f"the font has no glyphs for {missing[:5]} ({len(missing)} labels) and shows boxes: pass font= "
            "with the path of a TrueType file that covers this script, such as Noto Sans CJK",
            UserWarning,
            stacklevel=4,
        )
    return printable


def star_points(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star around (x, y): fonts often lack the character."""
    return [
        (
            x + radius * (1.0 if corner % 2 == 0 else 0.42) * sin(corner * pi / 5),
            y - radius * (1.0 if corner % 2 == 0 else 0.42) * cos(corner * pi / 5),
        )
        for corner in range(10)
    ]


@cache
def _load_font(size: int, file: str | None) -> ImageFont.FreeTypeFont:
    if not features.check_module("freetype2"):
        raise ImportError(
            "drawing labels needs Pillow with FreeType, but this build has none: "
            "pip install --force-reinstall pillow (the wheels on PyPI bring it)"
        )
    if file is not None:
        return ImageFont.truetype(file, size)
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # scalable because size is given


@cache
def _glyph(size: int, file: str | None, character: str) -> bytes:
    mask = _load_font(size, file).getmask(character)
    return repr(mask.size).encode() + bytes(mask)
