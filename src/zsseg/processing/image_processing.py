"""Pictures to ``pixel_values``: resize, rescale, normalise, pad; PIL and NumPy only.

Padding comes after normalisation and is zero, at the bottom and right, up to a multiple of ``size_divisor``;
``pixel_mask`` says where the picture is.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
DEFAULT_SIZE_DIVISOR = 32


class ZeroShotSegmentationImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of the image processors beyond transformers' own.

    Attributes:
        size_divisor: height and width of the batch are padded to a multiple of it.
    """

    size_divisor: int


def compute_resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """(height, width) after resizing, at least one pixel a side whatever the aspect ratio.

    As in transformers' processors, a picture whose shorter edge already has its new size stays as it is.

    Args:
        height: of the picture.
        width: of the picture.
        size: ``shortest_edge`` with ``longest_edge``, or ``height`` and ``width``.

    Raises:
        ValueError: for other combinations of keys.
    """
    if size.height and size.width:
        return size.height, size.width
    if size.shortest_edge and size.longest_edge:
        resized = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
        return max(1, resized[0]), max(1, resized[1])
    raise ValueError(f"size must hold shortest_edge and longest_edge, or height and width, got {size}")


def compute_padded_size(sizes: list[tuple[int, int]], size_divisor: int) -> tuple[int, int]:
    """The smallest (height, width) that holds all sizes and is a multiple of ``size_divisor``."""
    if size_divisor < 1:
        raise ValueError(f"size_divisor must be 1 or more, got {size_divisor}")
    height, width = (max(edges) for edges in zip(*sizes, strict=True))
    return -(-height // size_divisor) * size_divisor, -(-width // size_divisor) * size_divisor


class ZeroShotSegmentationImageSettings:
    """Default options of the image processors, whatever they compute with."""

    valid_kwargs = ZeroShotSegmentationImagesKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = DEFAULT_SIZE
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    size_divisor = DEFAULT_SIZE_DIVISOR


class ZeroShotSegmentationImageProcessorPil(ZeroShotSegmentationImageSettings, PilBackend):
    """Image processor of every family on PIL and NumPy; the torchvision one must give its results."""

    def _preprocess(
        self,
        images: list[NDArray[Any]],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_pad: bool,
        size_divisor: int,
        return_tensors: Any,
        **_: Any,
    ) -> BatchFeature:
        processed = []
        for image in images:
            if do_resize:
                height, width = compute_resized_size(image.shape[-2], image.shape[-1], size)
                image = self.resize(image, SizeDict(height=height, width=width), resample=resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image.astype(np.float32))
        if not do_pad:
            return BatchFeature({"pixel_values": processed}, tensor_type=return_tensors)
        sizes = [(image.shape[-2], image.shape[-1]) for image in processed]
        height, width = compute_padded_size(sizes, size_divisor)
        pixel_values = np.zeros((len(processed), 3, height, width), dtype=np.float32)
        pixel_mask = np.zeros((len(processed), height, width), dtype=np.int64)
        for index, (image, (image_height, image_width)) in enumerate(zip(processed, sizes, strict=True)):
            pixel_values[index, :, :image_height, :image_width] = image
            pixel_mask[index, :image_height, :image_width] = 1
        return BatchFeature(
            {"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors
        )
