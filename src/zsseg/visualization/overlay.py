"""Segmentations drawn over their pictures."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from zsseg.structures import PanopticSegmentation
from zsseg.visualization.colors import Color, ColorScheme
from zsseg.visualization.layer import DrawnSegment, Layer, blend, color_layers
from zsseg.visualization.legend import BACKGROUND, INK, LegendEntry, draw_legend, legend_min_width
from zsseg.visualization.lettering import FontFile, Lettering, font_size_for, printable_names
from zsseg.visualization.tags import Tag, TagLayout, TagText, draw_tag
from zsseg.vocabulary import Vocabulary

MAX_STRIPES = 6
"""Instance colours shown in one patch of the legend."""
_FAITHFUL_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


def draw_panoptic(
    image: Image.Image,
    segmentation: PanopticSegmentation,
    vocabulary: Vocabulary,
    *,
    alpha: float = 0.55,
    legend: bool = True,
    font: FontFile | None = None,
) -> Image.Image:
    """Draw a panoptic segmentation over its picture.

    Every thing has its own shade of its label's vivid colour, stuff one muted colour for each label. Void is
    grey, darker and hatched. Label and score stand inside the segment; where they do not fit, the label's
    number from the legend does, inside or beside a line to the segment. A star marks unseen labels.

    Args:
        image: (H, W) picture of eight bits a channel.
        segmentation: of the same size.
        vocabulary: what the segments' ``label_id`` mean.
        alpha: opacity of the colours, from 0 (the picture alone) to 1.
        legend: whether to add the strip below that lists labels, colours, counts and scores.
        font: a TrueType file for labels outside ASCII; the default font writes them in Latin or as boxes.

    Returns:
        An RGB picture; (H, W) without legend, higher with it, wider only if W is too narrow for a legend.

    Raises:
        ValueError: if sizes differ, a label id is outside the vocabulary, the map and its list of segments
            disagree, ``alpha`` is outside [0, 1], or the picture has more than eight bits a channel.
        ImportError: if Pillow has no FreeType.

    Warns:
        UserWarning: if the font lacks characters of a label.
    """
    layer = Layer.from_panoptic(segmentation, vocabulary)
    renderer = _Renderer(image, [layer], vocabulary, alpha, font)
    [(panel, tags)] = renderer.panels()
    return renderer.with_legend(panel, tags) if legend else panel


def draw_semantic(
    image: Image.Image,
    label_map: NDArray[np.integer],
    vocabulary: Vocabulary,
    *,
    ignore_index: int | None = 255,
    alpha: float = 0.55,
    legend: bool = True,
    font: FontFile | None = None,
) -> Image.Image:
    """Draw a semantic map over its picture: one flat colour for each label.

    Args:
        image: (H, W) picture of eight bits a channel.
        label_map: (H, W) label ids.
        vocabulary: what they mean.
        ignore_index: value of unlabelled pixels; None if every pixel has a label.
        alpha: as for :func:`draw_panoptic`.
        legend: as for :func:`draw_panoptic`.
        font: as for :func:`draw_panoptic`.

    Returns:
        An RGB picture, as for :func:`draw_panoptic`.

    Raises:
        ValueError: as for :func:`draw_panoptic`, or if ``ignore_index`` is the id of a label.
    """
    layer = Layer.from_semantic(label_map, vocabulary, ignore_index)
    renderer = _Renderer(image, [layer], vocabulary, alpha, font)
    [(panel, tags)] = renderer.panels()
    return renderer.with_legend(panel, tags) if legend else panel


def draw_comparison(
    image: Image.Image,
    prediction: PanopticSegmentation | NDArray[np.integer],
    target: PanopticSegmentation | NDArray[np.integer] | None,
    vocabulary: Vocabulary,
    *,
    ignore_index: int | None = 255,
    alpha: float = 0.55,
    font: FontFile | None = None,
) -> Image.Image:
    """Draw picture, prediction and ground truth, where there is one, side by side with one legend.

    A label has the same colour in both; a predicted thing has the shade of the true one that it covers with
    an IoU above 0.5. The legend counts things as predicted | true.

    Args:
        image: (H, W) picture of eight bits a channel.
        prediction: panoptic segmentation, or (H, W) semantic map.
        target: likewise; None draws picture and prediction alone.
        vocabulary: what the label ids of both mean.
        ignore_index: value of unlabelled pixels in semantic maps; None if every pixel has a label.
        alpha: as for :func:`draw_panoptic`.
        font: as for :func:`draw_panoptic`.

    Returns:
        An RGB picture a little more than 3 W wide, or 2 W without ground truth.

    Raises:
        ValueError: as for :func:`draw_panoptic` and :func:`draw_semantic`.
    """
    layers = [
        Layer.from_panoptic(each, vocabulary)
        if isinstance(each, PanopticSegmentation)
        else Layer.from_semantic(each, vocabulary, ignore_index)
        for each in (target, prediction)
        if each is not None
    ]
    renderer = _Renderer(image, layers, vocabulary, alpha, font)
    *true_panels, (predicted_panel, predicted_tags) = renderer.panels()
    row = renderer.side_by_side(
        [
            ("picture", renderer.image),
            ("prediction", predicted_panel),
            *(("ground truth", panel) for panel, _ in true_panels),
        ]
    )
    return renderer.with_legend(row, [*predicted_tags, *(tag for _, tags in true_panels for tag in tags)])


class _Renderer:
    """What the layers of one drawing share: colours, names, numbers and the font."""

    def __init__(
        self,
        image: Image.Image,
        layers: Sequence[Layer],
        vocabulary: Vocabulary,
        alpha: float,
        font: FontFile | None,
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        for layer in layers:
            _check_picture(image, layer)
        self.image = image.convert("RGB")
        self._layers = layers
        self._vocabulary = vocabulary
        self._alpha = alpha
        self._lettering = Lettering(font_size_for(*image.size), font)
        self._label_ids = _legend_order(layers, vocabulary)
        names = printable_names((vocabulary[i].name for i in self._label_ids), self._lettering)
        self._names = dict(zip(self._label_ids, names, strict=True))
        self._numbers = {label_id: number for number, label_id in enumerate(self._label_ids, start=1)}
        self._colors = color_layers(layers, ColorScheme(vocabulary, self._label_ids))

    def panels(self) -> list[tuple[Image.Image, list[Tag]]]:
        """Each layer over the picture, with its tags."""
        return [self._panel(*both) for both in zip(self._layers, self._colors, strict=True)]

    def with_legend(self, panel: Image.Image, tags: Iterable[Tag]) -> Image.Image:
        """The panel above a legend; numbers are listed if a tag shows one."""
        entries = self._entries(has_numbers=any(tag.kind != "label" for tag in tags))
        width = max(panel.width, legend_min_width(self._lettering))
        strip = draw_legend(entries, width, self._lettering)
        canvas = Image.new("RGB", (width, panel.height + strip.height), BACKGROUND)
        canvas.paste(panel, ((width - panel.width) // 2, 0))
        canvas.paste(strip, (0, panel.height))
        return canvas

    def side_by_side(self, panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
        """Titled panels of one size in a row."""
        gap = max(2, self._lettering.size // 3)
        header = round(self._lettering.line_height * 1.4)
        width, height = self.image.size
        pitch = max(width, max(self._lettering.width(title) for title, _ in panels)) + gap
        row = Image.new("RGB", (len(panels) * pitch - gap, height + header), BACKGROUND)
        draw = ImageDraw.Draw(row)
        for place, (title, panel) in enumerate(panels):
            left = place * pitch + (pitch - gap - self._lettering.width(title)) // 2
            draw.text((left, header // 8), title, font=self._lettering.font, fill=INK)
            row.paste(panel, (place * pitch + (pitch - gap - width) // 2, header))
        return row

    def _panel(self, layer: Layer, colors: Sequence[Color]) -> tuple[Image.Image, list[Tag]]:
        panel = blend(self.image, layer, colors, self._alpha, self._lettering.size)
        texts = [self._text(segment) for segment in layer.segments]
        tags = TagLayout(layer.regions, texts, self._lettering).place()
        draw = ImageDraw.Draw(panel)
        for tag in tags:
            draw_tag(draw, tag, colors[tag.position], Lettering(tag.font_size, self._lettering.file))
        return panel, tags

    def _text(self, segment: DrawnSegment) -> TagText:
        return TagText(
            name=self._names[segment.label_id],
            score="" if segment.score is None else f"{segment.score:.2f}",
            is_unseen=not self._vocabulary[segment.label_id].is_seen,
            number=self._numbers[segment.label_id],
        )

    def _entries(self, *, has_numbers: bool) -> list[LegendEntry]:
        entries = [
            LegendEntry(
                text=self._names[label_id],
                detail=self._detail(label_id),
                colors=self._stripes(label_id),
                number=self._numbers[label_id] if has_numbers else None,
                is_unseen=not self._vocabulary[label_id].is_seen,
            )
            for label_id in self._label_ids
        ]
        if any(layer.regions.has_void for layer in self._layers):
            entries.append(LegendEntry("unlabelled", is_void=True))
        if any(entry.is_unseen for entry in entries):
            entries.append(LegendEntry("unseen in training", is_unseen=True))
        return entries

    def _detail(self, label_id: int) -> str:
        # the layer that colours are taken from, the ground truth, comes first but is shown last
        per_layer = [
            [segment for segment in layer.segments if segment.label_id == label_id]
            for layer in reversed(self._layers)
        ]
        details = []
        if any(segment.is_instance for segments in per_layer for segment in segments):
            details.append(" | ".join(str(len(segments)) for segments in per_layer))
        scores = sorted(s.score for segments in per_layer for s in segments if s.score is not None)
        if scores:
            low, high = f"{scores[0]:.2f}", f"{scores[-1]:.2f}"
            details.append(low if low == high else f"{low}-{high}")
        return f"({', '.join(details)})" if details else ""

    def _stripes(self, label_id: int) -> tuple[Color, ...]:
        colors = {
            colors[position]: None
            for layer, colors in zip(self._layers, self._colors, strict=True)
            for position in layer.instances(label_id)
        }
        return tuple(colors)[:MAX_STRIPES]


def _check_picture(image: Image.Image, layer: Layer) -> None:
    height, width = layer.regions.index.shape
    if image.size != (width, height):
        raise ValueError(
            f"picture and segmentation must have one size, got {image.size} and {(width, height)} (width, "
            "height): segment at the picture's size (target_sizes), and apply its EXIF rotation first"
        )
    if image.mode not in _FAITHFUL_MODES:
        raise ValueError(
            f"the picture must have eight bits a channel, got mode {image.mode!r}: scale it to 0..255 and "
            "convert it to 'RGB'"
        )


def _legend_order(layers: Sequence[Layer], vocabulary: Vocabulary) -> list[int]:
    """Labels that occur: things first, each group in the vocabulary's order."""
    present = {segment.label_id for layer in layers for segment in layer.segments}
    return sorted(present, key=lambda label_id: (not vocabulary[label_id].is_thing, label_id))
