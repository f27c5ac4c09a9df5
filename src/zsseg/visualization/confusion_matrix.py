"""Which label is taken for which, on one page."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from zsseg.visualization.colors import Color, text_color
from zsseg.visualization.legend import BACKGROUND, INK, QUIET_INK, LegendEntry, draw_legend
from zsseg.visualization.lettering import Lettering, printable_names
from zsseg.visualization.tags import draw_star, star_width
from zsseg.vocabulary import Vocabulary

CELL = 24
GROUP_GAP = 8
MARGIN = 12
RIGHT: Color = (28, 92, 168)
WRONG: Color = (196, 66, 16)
NEVER: Color = (244, 244, 244)
NEVER_IN_GROUP: Color = (228, 228, 228)


def draw_confusion_matrix(
    counts: NDArray[np.int64], vocabulary: Vocabulary, *, group_starts: Collection[int] = ()
) -> Image.Image:
    """Draw the shares, in percent, of every true label's segments: a row each, predicted labels in columns.

    Args:
        counts: (K, K) by true and predicted label id; the last column of the picture holds their row sums.
        vocabulary: K labels; unseen ones get a star.
        group_starts: label ids before which a gap goes, in rows and columns.

    Returns:
        An RGB picture with a legend below.

    Raises:
        ValueError: if ``counts`` is not (K, K).
    """
    if counts.shape != (len(vocabulary),) * 2:
        raise ValueError(f"counts must be {(len(vocabulary),) * 2}, got {counts.shape}")
    lettering = Lettering(15)
    labels = _draw_labels(vocabulary, lettering)
    starts = sorted(set(group_starts) - {0})
    groups = [sum(start <= label_id for start in starts) for label_id in range(len(vocabulary))]
    origin = MARGIN + labels[0].width + 4
    places = [origin + label_id * CELL + group * GROUP_GAP for label_id, group in enumerate(groups)]
    end = places[-1] + CELL
    totals = counts.sum(axis=1)
    total_width = lettering.width(f"{totals.max()}")
    size = (end + 8 + total_width + MARGIN, end + 4 + labels[0].width + MARGIN)
    page = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(page)
    for true, top in enumerate(places):
        page.paste(labels[true], (MARGIN, top))
        # Names of columns stand above and below, each with its end at the cells.
        page.paste(labels[true].rotate(-90, expand=True), (top, MARGIN))
        page.paste(labels[true].rotate(90, expand=True), (top, end + 4))
        draw.text((page.width - MARGIN, top + CELL / 2), f"{totals[true]}", QUIET_INK, lettering.font, "rm")
        for predicted, left in enumerate(places):
            share = counts[true, predicted] / max(totals[true], 1)
            ground = NEVER_IN_GROUP if groups[true] == groups[predicted] else NEVER
            _draw_cell(draw, left, top, share, ground, RIGHT if true == predicted else WRONG)
    return _add_legend(page, lettering, has_unseen=bool(vocabulary.unseen_label_ids))


def _draw_labels(vocabulary: Vocabulary, lettering: Lettering) -> list[Image.Image]:
    """Pictures of one size, a cell high, each with a name that ends at its right edge."""
    names = printable_names(vocabulary.names, lettering)
    width = max(lettering.width(name) for name in names) + star_width(lettering)
    labels = []
    for name, category in zip(names, vocabulary, strict=True):
        label = Image.new("RGB", (width, CELL), BACKGROUND)
        draw = ImageDraw.Draw(label)
        top, left = (CELL - lettering.line_height) // 2, width - lettering.width(name)
        draw.text((left, top), name, INK, lettering.font)
        if not category.is_seen:
            draw_star(draw, left - star_width(lettering), top, lettering, INK)
        labels.append(label)
    return labels


def _draw_cell(
    draw: ImageDraw.ImageDraw, left: int, top: int, share: float, ground: Color, full: Color
) -> None:
    """One square; the root of the share is its strength, so that small shares show."""
    red, green, blue = (
        round(low + (high - low) * share**0.5) for low, high in zip(ground, full, strict=True)
    )
    draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=(red, green, blue))
    if percent := round(100 * share):
        ink = text_color((red, green, blue))
        small = Lettering(12 if percent < 100 else 11)
        draw.text((left + (CELL - 1) / 2, top + (CELL - 1) / 2), f"{percent}", ink, small.font, "mm")


def _add_legend(page: Image.Image, lettering: Lettering, *, has_unseen: bool) -> Image.Image:
    entries = [
        LegendEntry("right,", "percent of the row's segments", (RIGHT,)),
        LegendEntry("taken for the label of the column", colors=(WRONG,)),
        *([LegendEntry("unseen label", is_unseen=True)] if has_unseen else []),
        LegendEntry("last column:", "segments of the label"),
    ]
    legend = draw_legend(entries, page.width, lettering)
    whole = Image.new("RGB", (page.width, page.height + legend.height), BACKGROUND)
    whole.paste(page, (0, 0))
    whole.paste(legend, (0, page.height))
    return whole
