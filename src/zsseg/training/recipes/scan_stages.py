"""The stages of SCAN: proposals with semantic integration, and contextual shift (arXiv:2312.04089)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zsseg.losses.across_processes import gather_rows, get_process_index
from zsseg.losses.contrastive import compute_image_text_contrastive_loss
from zsseg.models.scan.contextual_shift import (
    MaskCrops,
    choose_shifted_patches,
    cut_out,
    encode_shifted,
    find_background_patches,
    find_sizes,
)
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
        shift_layers: blocks behind which they are shifted in training, counted from 1; None takes those of
            the model's configuration.

    Raises:
        ValueError: if a number is out of range.
    """

    crops_per_image: int = 4
    shift_ratio: float = 0.15
    shift_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shift_layers is not None and not (self.shift_layers and min(self.shift_layers) >= 1):
            raise ValueError(f"shift_layers must be blocks counted from 1, got {self.shift_layers}")
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
        layers = self.find_layers(model)
        clip_pixels = model.normalise_for_clip(batch["pixel_values"], batch["pixel_mask"])
        sizes = find_sizes(batch["pixel_mask"])
        crops, labels, priorities = self._draw_crops(model, clip_pixels, sizes, batch, len(layers))
        if len(labels):
            is_background = find_background_patches(crops.masks, model.config.vision_config.patch_size)
            pictures = model.encode_context(clip_pixels, sizes)
            embeds = encode_shifted(
                model.shifted_tower,
                crops.pixel_values,
                shift_layers=layers,
                context_cls=pictures.select_cls(layers)[crops.image_indices],
                is_shifted=choose_shifted_patches(is_background, self.options.shift_ratio, priorities),
            )
        else:
            # Transformers' towers take no empty batch, and in a distributed run every process goes backward.
            blank = clip_pixels.new_zeros(1, 3, *crops.pixel_values.shape[-2:])
            embeds = encode_shifted(model.shifted_tower, blank)[:0]
        log_scale = model.shifted_logit_scale[0].clamp(0, LARGEST_LOG_SCALE)
        # In float32: a scale of 100 leaves bfloat16 two significant digits.
        with torch.autocast(embeds.device.type, enabled=False):
            losses = self._contrast(
                gather_rows(embeds.float()), gather_rows(labels), log_scale.exp(), context
            )
        return {**losses, "logit_scale": log_scale.detach().exp()}

    def constrain(self, model: Any) -> None:
        """Keep the temperature's logarithm in [0, ln 100]; beyond, it would have no gradient to come back."""
        with torch.no_grad():
            model.shifted_logit_scale.clamp_(0, LARGEST_LOG_SCALE)

    def _contrast(
        self, embeds: Tensor, labels: Tensor, logit_scale: Tensor, context: StageContext
    ) -> dict[str, Tensor]:
        """The loss of (N, D) segments of (N,) labels, and the share that is nearest to its own name."""
        if not len(labels):
            # Part of the graph: every process of a distributed run goes backward.
            nothing = 0.0 * (embeds.sum() + logit_scale)
            return {"loss": nothing, "accuracy": nothing.detach()}
        present, targets = labels.unique(return_inverse=True)
        # One text a label: the first of those with synonyms.
        first_text = (context.text_label_ids == present[:, None]).int().argmax(dim=1)
        texts = context.text_embeds[first_text].float()
        loss = compute_image_text_contrastive_loss(embeds, texts, targets, logit_scale)
        with torch.no_grad():
            is_right = (F.normalize(embeds, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(dim=1) == targets
        return {"loss": loss, "accuracy": is_right.float().mean()}

    def find_layers(self, model: Any) -> tuple[int, ...]:
        """The blocks behind which patches are shifted.

        Raises:
            ValueError: if the tower has fewer.
        """
        if self.options.shift_layers is None:
            return tuple(model.config.shift_layers)
        depth = model.config.vision_config.num_hidden_layers
        if max(self.options.shift_layers) > depth:
            raise ValueError(
                f"the vision tower has {depth} blocks, but shift_layers says {self.options.shift_layers}: "
                "name blocks that there are, or leave them to the configuration"
            )
        return self.options.shift_layers

    def _draw_crops(
        self,
        model: Any,
        clip_pixels: Tensor,
        sizes: list[tuple[int, int]],
        batch: Batch,
        num_layers: int,
    ) -> tuple[MaskCrops, Tensor, Tensor]:
        """Segments cut out, their labels (N,), and the random numbers of their patches (N, layers, G²)."""
        vision_config = model.config.vision_config
        size = vision_config.image_size
        num_patches = (size // vision_config.patch_size) ** 2
        # In the same state in all processes, each of which takes the draws of its own pictures.
        seed = int(torch.randint(2**62, (1,), generator=model.criterion.generator))
        first = seed + get_process_index() * len(sizes)
        parts, labels, priorities = [], [], []
        for image, (height, width) in enumerate(sizes):
            generator = torch.Generator().manual_seed(first + image)
            masks = batch["mask_labels"][image]
            drawn = torch.randperm(len(masks), generator=generator)[: self.options.crops_per_image]
            drawn = drawn.to(masks.device)
            part = cut_out(clip_pixels[image, :, :height, :width], masks[drawn, :height, :width].bool(), size)
            parts.append(part)
            labels.append(batch["class_labels"][image][drawn][part.query_indices])
            shape = (len(part.query_indices), num_layers, num_patches)
            priorities.append(torch.rand(shape, generator=generator))
        counts = torch.tensor([len(part.query_indices) for part in parts])
        crops = MaskCrops(
            torch.cat([part.pixel_values for part in parts]),
            torch.cat([part.masks for part in parts]),
            torch.arange(len(parts)).repeat_interleave(counts).to(clip_pixels.device),
            torch.cat([part.query_indices for part in parts]),
        )
        return crops, torch.cat(labels), torch.cat(priorities).to(clip_pixels.device)
