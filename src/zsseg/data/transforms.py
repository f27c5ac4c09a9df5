"""Random changes of a picture together with its map.

Every transform is called with an example and a ``numpy.random.Generator`` and draws from nothing else, so the
result depends on the generator's seed alone. Pictures are resampled bilinearly, maps take the nearest pixel;
segments without a pixel left are dropped, areas and boxes counted anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from zsseg.data.examples import PanopticExample, recount_target
from zsseg.structures import VOID_ID

IMAGENET_MEAN_COLOUR = (124, 116, 104)
"""About zero after normalisation, as the padding of a batch is."""

_HUE_STEPS = 256


class Transform(Protocol):
    """Changes an example, drawing from the given generator only."""

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The changed example."""
        ...


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after the other.

    Attributes:
        transforms: in the order of use.
    """

    transforms: Sequence[Transform]

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The example after all of them."""
        for transform in self.transforms:
            example = transform(example, generator)
        return example


@dataclass(frozen=True)
class Resize:
    """Resize to a fixed size, or bring the shortest edge to a length.

    Attributes:
        size: (height, width) in pixels; the aspect ratio is not kept.
        shortest_edge: lengths in pixels of which one is drawn; the aspect ratio is kept.
        longest_edge: with ``shortest_edge``: the other edge is at most this long, in pixels.

    Raises:
        ValueError: unless exactly one of ``size`` and ``shortest_edge`` is given, with positive lengths.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | tuple[int, ...] | None = None
    longest_edge: int | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.shortest_edge is None):
            raise ValueError("give either size=(height, width) or shortest_edge=…, not both and not neither")
        if self.size is not None and self.longest_edge is not None:
            raise ValueError("longest_edge goes with shortest_edge; a fixed size has no use for it")
        lengths = (
            *(self.size or ()),
            *self._edges,
            *(() if self.longest_edge is None else (self.longest_edge,)),
        )
        if not lengths or min(lengths) < 1:
            raise ValueError(f"sizes must be 1 pixel or more, got {lengths}")

    @property
    def _edges(self) -> tuple[int, ...]:
        if self.shortest_edge is None:
            return ()
        return (self.shortest_edge,) if isinstance(self.shortest_edge, int) else tuple(self.shortest_edge)

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The resized example."""
        if self.size is not None:
            return _resample(example, self.size, (0, 0, *self.size))
        height, width = example.target.size
        scale = int(generator.choice(self._edges)) / min(height, width)
        if self.longest_edge is not None:
            scale = min(scale, self.longest_edge / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        return _resample(example, size, (0, 0, *size))


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize by a random factor, then crop or pad to one size.

    The picture is scaled to fit into ``scale × size``, with scale uniform in [min_scale, max_scale]. What is
    larger is cropped at a random place; what is smaller is padded at the bottom and right, with ``fill`` in
    the picture and void in the map. Change colours before it, or the padding changes too.

    Attributes:
        size: (height, width) of the result in pixels.
        min_scale: smallest factor.
        max_scale: largest factor.
        fill: RGB of the padding.

    Raises:
        ValueError: if a length is below 1 or the scales are not 0 < min_scale ≤ max_scale.

    Reference:
        Simple Copy-Paste, Ghiasi et al. (arXiv:2012.07177), Sec. 3.
    """

    size: tuple[int, int]
    min_scale: float = 0.1
    max_scale: float = 2.0
    fill: tuple[int, int, int] = IMAGENET_MEAN_COLOUR

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"scales must satisfy 0 < min_scale <= max_scale, got {self.min_scale} and {self.max_scale}"
            )

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The jittered example, of ``size``."""
        height, width = example.target.size
        scale = generator.uniform(self.min_scale, self.max_scale)
        scale *= min(self.size[0] / height, self.size[1] / width)
        scaled = max(1, round(height * scale)), max(1, round(width * scale))
        window = _draw_window(scaled, self.size, generator)
        return _pad(_resample(example, scaled, window), self.size, self.fill)


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a random window; an edge that is shorter than the window is kept whole.

    Attributes:
        size: (height, width) of the window in pixels.

    Raises:
        ValueError: if a length is below 1.
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The window."""
        top, left, height, width = _draw_window(example.target.size, self.size, generator)
        segment_ids = example.target.segment_ids[top : top + height, left : left + width]
        image = example.image.crop((left, top, left + width, top + height))
        return _changed(example, image, np.ascontiguousarray(segment_ids))


@dataclass(frozen=True)
class Pad:
    """Pad at the bottom and right, with ``fill`` in the picture and void in the map.

    Attributes:
        size: (height, width) in pixels; an edge that is longer already stays.
        fill: RGB of the padding.

    Raises:
        ValueError: if a length is below 1.
    """

    size: tuple[int, int]
    fill: tuple[int, int, int] = IMAGENET_MEAN_COLOUR

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The padded example."""
        height, width = example.target.size
        return _pad(example, (max(height, self.size[0]), max(width, self.size[1])), self.fill)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right.

    Attributes:
        probability: how often, in [0, 1].

    Raises:
        ValueError: if the probability is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The example, mirrored or not."""
        if generator.random() >= self.probability:
            return example
        image = example.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _changed(example, image, np.ascontiguousarray(example.target.segment_ids[:, ::-1]))


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue of the picture, in random order.

    Attributes:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it.
        contrast: likewise.
        saturation: likewise.
        hue: the shift is uniform in [-hue, hue], in turns of the colour circle, at most 0.5.

    Raises:
        ValueError: if a strength is negative, or hue above 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"strengths must be 0 or more and hue at most 0.5, got {self}")

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The example with other colours; the map stays."""
        image = example.image
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [generator.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
        shift = generator.uniform(-self.hue, self.hue)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for step in generator.permutation(len(enhancers) + 1):
            if step < len(enhancers):
                image = enhancers[step](image).enhance(factors[step])
            else:
                image = _shift_hue(image, shift)
        return replace(example, image=image)


@dataclass(frozen=True)
class SsdColorJitter:
    """Change brightness, contrast, saturation and hue of the picture, each in half of the cases.

    Contrast comes before saturation and hue or behind them. Unlike in :class:`ColorJitter`, brightness is
    added to every value and contrast multiplies every value, whatever the picture's mean is; each step rounds
    to 8 bits.

    Attributes:
        brightness: what is added is uniform in [-brightness, brightness], in levels of 0 to 255.
        contrast: the factor of every value is uniform in [1 - contrast, 1 + contrast].
        saturation: the factor of the saturation, likewise.
        hue: the shift is uniform in [-hue, hue], in turns of the colour circle.

    Raises:
        ValueError: if a strength is out of range.

    Reference:
        SSD, Liu et al. (arXiv:1512.02325), Sec. 2.2 "data augmentation".
    """

    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __post_init__(self) -> None:
        limits = {"brightness": 255, "contrast": 1, "saturation": 1, "hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must lie in [0, {limit}], got {getattr(self, name)}")

    def __call__(self, example: PanopticExample, generator: np.random.Generator) -> PanopticExample:
        """The example with other colours; the map stays."""
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        # All are drawn, whichever are used.
        added, contrast, saturation, hue = (generator.uniform(-strength, strength) for strength in strengths)
        has_added, has_contrast, has_saturation, has_hue, is_contrast_first = generator.random(5) < 0.5
        image = example.image
        if has_added:
            image = _map_levels(image, lambda levels: levels + added)
        if has_contrast and is_contrast_first:
            image = _map_levels(image, lambda levels: levels * (1 + contrast))
        if has_saturation:
            image = _scale_saturation(image, 1 + saturation)
        if has_hue:
            image = _shift_hue(image, hue)
        if has_contrast and not is_contrast_first:
            image = _map_levels(image, lambda levels: levels * (1 + contrast))
        return replace(example, image=image)


def _map_levels(
    image: Image.Image, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Image.Image:
    """Change every value of every channel by itself, rounded and clipped to 0 … 255."""
    levels = change(np.arange(256.0)).round().clip(0, 255).astype(int).tolist()
    return image.point(levels * len(image.getbands()))


def _scale_saturation(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1:
        return image
    hue, saturation, value = image.convert("HSV").split()
    saturation = _map_levels(saturation, lambda levels: levels * factor)
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    steps = round(shift * _HUE_STEPS)
    if not steps:
        return image
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + steps) % _HUE_STEPS for level in range(_HUE_STEPS)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width) of 1 pixel or more, got {size}")


def _draw_window(
    available: tuple[int, int], wanted: tuple[int, int], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random window of the wanted size, or of what there is."""
    height, width = min(available[0], wanted[0]), min(available[1], wanted[1])
    top = int(generator.integers(available[0] - height + 1))
    left = int(generator.integers(available[1] - width + 1))
    return top, left, height, width


def _resample(
    example: PanopticExample, size: tuple[int, int], window: tuple[int, int, int, int]
) -> PanopticExample:
    """Resize to ``size`` and keep the window (top, left, height, width) of the result, without the rest."""
    full_height, full_width = example.target.size
    top, left, height, width = window
    y_scale, x_scale = full_height / size[0], full_width / size[1]
    box = (
        left * x_scale,
        top * y_scale,
        min((left + width) * x_scale, full_width),
        min((top + height) * y_scale, full_height),
    )
    image = example.image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    # The nearest source pixel holds the centre of the new one; in integers, so that no rounding decides.
    rows = (2 * np.arange(top, top + height) + 1) * full_height // (2 * size[0])
    columns = (2 * np.arange(left, left + width) + 1) * full_width // (2 * size[1])
    return _changed(example, image, example.target.segment_ids[rows[:, None], columns])


def _pad(example: PanopticExample, size: tuple[int, int], fill: tuple[int, int, int]) -> PanopticExample:
    height, width = example.target.size
    if (height, width) == size:
        return example
    image = Image.new("RGB", (size[1], size[0]), fill)
    image.paste(example.image)
    segment_ids = np.full(size, VOID_ID, dtype=np.int32)
    segment_ids[:height, :width] = example.target.segment_ids
    return _changed(example, image, segment_ids)


def _changed(example: PanopticExample, image: Image.Image, segment_ids: NDArray[np.int32]) -> PanopticExample:
    return replace(example, image=image, target=recount_target(example.target, segment_ids))
