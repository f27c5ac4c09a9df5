"""The whole chain on a data set: image → processor → model → post-processing → metric."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.metrics import MeanIoU, PanopticQuality
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

Task = Literal["semantic", "panoptic"]
Prediction = PanopticSegmentation | NDArray[np.integer[Any]]
IGNORED = -1
"""Marks unknown pixels of semantic targets; no vocabulary is large enough to use it as a label id."""


def encode_vocabulary(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    vocabulary: Vocabulary,
    *,
    prompt_templates: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed all texts of a vocabulary with the checkpoint's text tower, or look them up where it has none.

    Returns:
        ``text_embeds`` (T, D) and ``text_label_ids`` (T,) on the model's device.
    """
    encoded = processor.encode_labels(vocabulary, prompt_templates=prompt_templates)
    encoded = {name: tensor.to(model.device) for name, tensor in encoded.items()}
    text_label_ids = encoded.pop("text_label_ids")
    if "text_embeds" in encoded:
        return encoded["text_embeds"], text_label_ids
    family: Any = model
    text_embeds = family.encode_text(**encoded)
    return text_embeds, text_label_ids


@torch.no_grad()
def evaluate_model(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    dataset: PanopticDataset,
    *,
    task: Task,
    batch_size: int = 1,
    prompt_templates: Sequence[str] | None = None,
    threshold: float | None = None,
    mask_threshold: float | None = None,
    overlap_mask_area_threshold: float | None = None,
    max_images: int | None = None,
    progress: bool = True,
    on_result: Callable[[PanopticExample, Prediction], None] | None = None,
) -> dict[str, float]:
    """Predict over all labels of the data set, seen and unseen (generalised), and score the predictions.

    Args:
        model: of any family; put into evaluation mode and back.
        processor: of the same checkpoint.
        dataset: pictures with ground truth; its vocabulary is what is predicted and averaged over.
        task: "semantic" scores every pixel's label (mean IoU), "panoptic" scores segments (PQ).
        batch_size: images in one forward pass.
        prompt_templates: instead of the checkpoint's own.
        threshold: panoptic only, as are the next two; None takes the checkpoint's own.
        mask_threshold: probability from which a pixel belongs to a mask.
        overlap_mask_area_threshold: share of its own mask that a query must win.
        max_images: only the first so many.
        progress: show a bar on a terminal.
        on_result: called with every example and its prediction, a :class:`PanopticSegmentation` or an (H, W)
            map of label ids.

    Returns:
        The metric's averages in [0, 1] by name (see :class:`~zsseg.metrics.MeanIoU` and
        :class:`~zsseg.metrics.PanopticQuality`), ``num_images``, and ``seconds_per_image`` for processor,
        model and post-processing, without reading files and scoring.

    Raises:
        ValueError: if the task is unknown, a number is not positive, or the data set is empty.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {list(get_args(Task))}, got {task!r}")
    if batch_size < 1 or (max_images is not None and max_images < 1):
        raise ValueError(f"batch_size and max_images must be at least 1, got {batch_size} and {max_images}")
    vocabulary = dataset.vocabulary
    metric = MeanIoU(vocabulary, ignore_index=IGNORED) if task == "semantic" else PanopticQuality(vocabulary)
    thresholds = {
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_mask_area_threshold": overlap_mask_area_threshold,
    }
    count = len(dataset) if max_images is None else min(max_images, len(dataset))
    if count == 0:
        raise ValueError("the data set to evaluate on holds no image")
    was_training = model.training
    model.eval()
    text_embeds, text_label_ids = encode_vocabulary(
        model, processor, vocabulary, prompt_templates=prompt_templates
    )
    seconds = 0.0
    with tqdm(
        total=count, desc="evaluation", unit="image", leave=False, disable=None if progress else True
    ) as bar:
        for first in range(0, count, batch_size):
            examples = [dataset[index] for index in range(first, min(first + batch_size, count))]
            started = time.monotonic()
            inputs = processor(images=[example.image for example in examples]).to(model.device)
            outputs = model(**inputs, text_embeds=text_embeds, text_label_ids=text_label_ids)
            sizes = [example.target.size for example in examples]
            predictions: Sequence[Prediction] = (
                _merge_semantic(processor, outputs, sizes)
                if task == "semantic"
                else processor.merge_panoptic(
                    outputs, stuff_label_ids=vocabulary.stuff_label_ids, target_sizes=sizes, **thresholds
                )
            )
            seconds += time.monotonic() - started
            for example, prediction in zip(examples, predictions, strict=True):
                _score(metric, prediction, example)
                if on_result is not None:
                    on_result(example, prediction)
            bar.update(len(examples))
    model.train(was_training)
    return {**metric.compute(), "num_images": count, "seconds_per_image": seconds / count}


def _merge_semantic(
    processor: ZeroShotSegmentationProcessor, outputs: ModelOutput, sizes: list[tuple[int, int]]
) -> list[NDArray[np.int64]]:
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    return [semantic_map.numpy() for semantic_map in maps]


def _score(metric: MeanIoU | PanopticQuality, prediction: Any, example: PanopticExample) -> None:
    if isinstance(metric, MeanIoU):
        metric.update(prediction, convert_panoptic_to_semantic(example.target, ignore_index=IGNORED))
    else:
        metric.update(prediction, example.target)
