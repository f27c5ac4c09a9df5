"""The image processor on torchvision; import it only where torchvision is installed."""

from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict

from zsseg.processing.image_processing import (
    ZeroShotSegmentationImageSettings,
    compute_padded_size,
    compute_resized_size,
)


class ZeroShotSegmentationImageProcessor(ZeroShotSegmentationImageSettings, TorchvisionBackend):
    """Same options and results as the PIL processor, up to the resizing's rounding (one of 255 levels)."""

    def _preprocess(
        self,
        images: list[Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
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
            processed.append(
                self.rescale_and_normalize(
                    image, do_rescale, rescale_factor, do_normalize, image_mean, image_std
                )
            )
        if not do_pad:
            return BatchFeature({"pixel_values": processed}, tensor_type=return_tensors)
        sizes = [(image.shape[-2], image.shape[-1]) for image in processed]
        height, width = compute_padded_size(sizes, size_divisor)
        pixel_values = processed[0].new_zeros((len(processed), 3, height, width))
        pixel_mask = torch.zeros(
            (len(processed), height, width), dtype=torch.int64, device=pixel_values.device
        )
        for index, (image, (image_height, image_width)) in enumerate(zip(processed, sizes, strict=True)):
            pixel_values[index, :, :image_height, :image_width] = image
            pixel_mask[index, :image_height, :image_width] = 1
        return BatchFeature(
            {"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors
        )
