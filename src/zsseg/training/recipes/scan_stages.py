"""The stages of SCAN: proposals with semantic integration, and contextual shift (arXiv:2312.04089)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zsseg.losses.across_processes import gather_rows, get_process_index
from zsseg.losses.contrastive import compute_image_text_contrastive_loss
from zsseg.models.scan.contextual_shift import MaskCrops, cut_out
from zsseg.training.recipes.concat_segmentor import SegmentorStage
from zsseg.training.stage import Batch, Stage, StageContext

CLIP_PREFIXES = ("text_model.", "context_tower.", "shifted_")
SHIFTED_PREFIXES = ("shifted_",)
LARGEST_LOG_SCALE = math.log(100)


class ProposalStage(SegmentorStage):
    """Stage 1: proposal network and semantic integration by the set criterion on every decoder layer.

    Both of CLIP's towers are frozen, and so is a tower of the crops.
    """

    name: ClassVar[str] = "proposals"

    def is_trainable(self, parameter_name: str) -> bool:
        """Everything but CLIP's towers."""
        return not parameter_name.startswith(CLIP_PREFIXES)


@dataclass(frozen=True, kw_only=True)
class ContextualShiftOptions:
    """Fine-tuning of the crops' tower.

    Attributes:
        crops_per_image: segments of a picture that a step sees, drawn among those there are.
        shift_ratio: of the background patches that are shifted in training.

    Raises:
        ValueError: if a number is out of range.
    """

    crops_per_image: int = 4
    shift_ratio: float = 0.15

    def __post_init__(self) -> None:
        if self.crops_per_image < 1:
            raise ValueError(f"crops_per_image must be 1 or more, got {self.crops_per_image}")
        if not 0 <= self.shift_ratio <= 1:
            raise ValueError(f"shift_ratio must lie in [0, 1], got {self.shift_ratio}")


class ContextualShiftStage(Stage):
    """Stage 2: symmetric InfoNCE between segments cut out, with shifted background, and their names.

    Only the crops' tower and its temperature are trained. Segments of one name are not each other's
    negatives.

    Args:
        options: how crops are drawn and shifted.
    """

    name: ClassVar[str] = "contextual_shift"

    def __init__(self, options: ContextualShiftOptions | None = None) -> None:
        self.options = ContextualShiftOptions() if options is None else options

    def is_trainable(self, parameter_name: str) -> bool:
        """The crops' tower and its temperature."""
        return parameter_name.startswith(SHIFTED_PREFIXES)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The contrast over the segments of all processes, and the share that is named right."""
        clip_pixels = model.normalise_for_clip(batch["pixel_values"], batch["pixel_mask"])
        sizes = [_find_size(mask) for mask in batch["pixel_mask"]]
        crops, labels, priorities = self._draw_crops(model, clip_pixels, sizes, batch)
        pictures = model.encode_context(clip_pixels, sizes)
        is_shifted = model.choose_shifted(crops, priorities, ratio=self.options.shift_ratio)
        embeds = gather_rows(model.encode_crops(crops, pictures, is_shifted).float())
        labels = gather_rows(labels)
        # One text a label: the first of those with synonyms.
        first_text = [int((context.text_label_ids == label).nonzero()[0, 0]) for label in labels.unique()]
        targets = labels.unique(return_inverse=True)[1]
        log_scale = model.shifted_logit_scale.clamp(0, LARGEST_LOG_SCALE)
        texts = context.text_embeds[first_text]
        loss = compute_image_text_contrastive_loss(embeds, texts, targets, log_scale.exp())
        with torch.no_grad():
            nearest = (torch.nn.functional.normalize(embeds, dim=-1) @ texts.T).argmax(dim=1)
        return {
            "loss": loss,
            "accuracy": (nearest == targets).float().mean(),
            "logit_scale": log_scale.detach().exp(),
        }

    def _draw_crops(
        self, model: Any, clip_pixels: Tensor, sizes: list[tuple[int, int]], batch: Batch
    ) -> tuple[MaskCrops, Tensor, Tensor]:
        """Segments cut out, their labels (N,), and the random numbers of their patches (N, layers, G²)."""
        config = model.config
        size = config.vision_config.image_size
        num_patches = (size // config.vision_config.patch_size) ** 2
        # In the same state in all processes, each of which takes the draws of its own pictures.
        seed = int(torch.randint(2**62, (1,), generator=model.criterion.generator))
        first = seed + get_process_index() * len(sizes)
        parts, labels, priorities = [], [], []
        for image, (height, width) in enumerate(sizes):
            generator = torch.Generator().manual_seed(first + image)
            masks = batch["mask_labels"][image]
            drawn = torch.randperm(len(masks), generator=generator)[: self.options.crops_per_image]
            part = cut_out(clip_pixels[image, :, :height, :width], masks[drawn, :height, :width].bool(), size)
            parts.append(part)
            labels.append(batch["class_labels"][image][drawn.to(masks.device)][part.query_indices])
            shape = (len(part.query_indices), len(config.shift_layers), num_patches)
            priorities.append(torch.rand(shape, generator=generator))
        counts = torch.tensor([len(part.query_indices) for part in parts])
        crops = MaskCrops(
            torch.cat([part.pixel_values for part in parts]),
            torch.cat([part.masks for part in parts]),
            torch.arange(len(parts)).repeat_interleave(counts).to(clip_pixels.device),
            torch.cat([part.query_indices for part in parts]),
        )
        return crops, torch.cat(labels), torch.cat(priorities).to(clip_pixels.device)


def _find_size(pixel_mask: Tensor) -> tuple[int, int]:
    """(height, width) of what a mask (H, W) marks as picture."""
    is_picture = pixel_mask.bool()
    return int(is_picture.any(dim=1).sum()), int(is_picture.any(dim=0).sum())
