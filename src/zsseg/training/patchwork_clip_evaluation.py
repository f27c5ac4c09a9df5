"""How well a CLIP of Patchwork names ground-truth segments by themselves; needs nothing of training."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from zsseg.data import segment_crops
from zsseg.data.examples import PanopticExample
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.prompts import fill_prompts
from zsseg.structures import SegmentInfo

IMAGE_SIZE = 64
"""Height and width of the CLIP's pictures, in pixels."""

MEAN_COLOR = (110, 110, 110)
"""8-bit RGB about the mean of the world; fills what is masked out."""

CLIP_PROMPTS = ("{}", "a {}", "a photo of a {}")
"""No caption says "photo": the last prompt sets a name beside two words of random weights. On scenes that no
training used, segments are still recognised more often with it than without."""


def crop_segment(example: PanopticExample, segment: SegmentInfo) -> Image.Image:
    """One segment on plain ground, in a square around its box, resized for CLIP."""
    pixels = segment_crops.crop_segment(
        np.asarray(example.image),
        example.target.segment_ids,
        segment,
        size=IMAGE_SIZE,
        fill_color=MEAN_COLOR,
        mode="box",
    )
    return Image.fromarray(pixels)


def normalise_crops(pixels: NDArray[np.uint8], processor: CLIPProcessor) -> Tensor:
    """(N, H, W, 3) bytes of the CLIP's size → (N, 3, H, W) floats, as its processor normalises."""
    image_processor = processor.image_processor
    mean, std = (torch.tensor(values) for values in (image_processor.image_mean, image_processor.image_std))
    return ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def evaluate_patchwork_clip(
    model: CLIPModel, processor: CLIPProcessor, scenes: PatchworkDataset
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Name every ground-truth segment by itself, among all labels of the data set.

    Args:
        model: the CLIP.
        processor: its processor.
        scenes: labels and held-out scenes.

    Returns:
        Top-1 accuracies in [0, 1], "top1", "top1_seen" and "top1_unseen", each the mean over its labels that
        occur; and the (K, K) counts by true and predicted label.
    """
    vocabulary = scenes.vocabulary
    prompts = [prompt for name in vocabulary.names for prompt in fill_prompts(name, CLIP_PROMPTS)]
    confusion = np.zeros((len(vocabulary), len(vocabulary)), dtype=np.int64)
    with torch.no_grad():
        tokens = processor.tokenizer(prompts, padding=True, return_tensors="pt")
        embeds = model.get_text_features(**tokens.to(model.device)).pooler_output
        embeds = F.normalize(embeds, dim=-1).view(len(vocabulary), len(CLIP_PROMPTS), -1)
        text_embeds = F.normalize(embeds.mean(dim=1), dim=-1)
        for index in range(len(scenes)):
            example = scenes[index]
            crops = np.stack([np.asarray(crop_segment(example, s)) for s in example.target.segments])
            image_embeds = model.get_image_features(
                normalise_crops(crops, processor).to(model.device)
            ).pooler_output
            predicted = (image_embeds @ text_embeds.T).argmax(dim=-1).tolist()
            for segment, label_id in zip(example.target.segments, predicted, strict=True):
                confusion[segment.label_id, label_id] += 1
    return _average_accuracies(confusion, vocabulary.seen_label_ids, vocabulary.unseen_label_ids), confusion


def _average_accuracies(
    confusion: NDArray[np.int64], seen: Sequence[int], unseen: Sequence[int]
) -> dict[str, float]:
    occurrences = confusion.sum(axis=1)
    accuracies = np.where(occurrences > 0, confusion.diagonal() / np.maximum(occurrences, 1), np.nan)
    groups: Mapping[str, Sequence[int]] = {
        "top1": [*seen, *unseen],
        "top1_seen": list(seen),
        "top1_unseen": list(unseen),
    }
    return {name: float(np.nanmean(accuracies[list(ids)])) for name, ids in groups.items() if len(ids)}
