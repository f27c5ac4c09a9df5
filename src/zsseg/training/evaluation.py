"""The whole chain on a data set: image → processor → model → post-processing → metric."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.metrics import MeanIoU, PanopticQuality
from zsseg.models.inference import compute_picture_outputs, encode_vocabulary
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.structures import PanopticSegmentation
from zsseg.vocabulary import Vocabulary

Task = Literal["semantic", "panoptic"]
Metric = MeanIoU | PanopticQuality
Prediction = PanopticSegmentation | NDArray[np.integer[Any]]
IGNORED = -1
"""Marks unknown pixels of semantic targets; no vocabulary is large enough to use it as a label id."""


def evaluate_model(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    dataset: PanopticDataset,
    *,
    task: Task,
    metric: Metric | None = None,
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
        metric: filled here, for those who want its figures by class; None makes one by :func:`build_metric`.
        batch_size: images whose equal sizes share a forward pass; it does not change the results.
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
    vocabulary = dataset.vocabulary
    metric = build_metric(task, vocabulary) if metric is None else metric
    if batch_size < 1 or (max_images is not None and max_images < 1):
        raise ValueError(f"batch_size and max_images must be at least 1, got {batch_size} and {max_images}")
    count = len(dataset) if max_images is None else min(max_images, len(dataset))
    if count == 0:
        raise ValueError("the data set to evaluate on holds no image")
    thresholds = {
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_mask_area_threshold": overlap_mask_area_threshold,
    }
    seconds = 0.0
    bar = tqdm(total=count, desc="evaluation", unit="image", leave=False, disable=None if progress else True)
    with _evaluation_mode(model), bar:
        text_inputs = encode_vocabulary(model, processor, vocabulary, prompt_templates=prompt_templates)
        for first in range(0, count, batch_size):
            examples = [dataset[index] for index in range(first, min(first + batch_size, count))]
            started = time.monotonic()
            predictions = _predict(model, processor, examples, task, vocabulary, text_inputs, thresholds)
            seconds += time.monotonic() - started
            for example, prediction in zip(examples, predictions, strict=True):
                _score(metric, prediction, example)
                if on_result is not None:
                    on_result(example, prediction)
            bar.update(len(examples))
    return {**metric.compute(), "num_images": count, "seconds_per_image": seconds / count}


def build_metric(task: Task, vocabulary: Vocabulary) -> Metric:
    """The metric of a task.

    Raises:
        ValueError: if the task is unknown.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {list(get_args(Task))}, got {task!r}")
    return MeanIoU(vocabulary, ignore_index=IGNORED) if task == "semantic" else PanopticQuality(vocabulary)


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _predict(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    examples: Sequence[PanopticExample],
    task: Task,
    vocabulary: Vocabulary,
    text_inputs: dict[str, Tensor],
    thresholds: dict[str, float | None],
) -> list[Prediction]:
    pictures = [processor(images=example.image).to(model.device) for example in examples]
    predictions: list[Prediction] = []
    for example, outputs in zip(
        examples, compute_picture_outputs(model, pictures, **text_inputs), strict=True
    ):
        sizes = [example.target.size]
        if task == "semantic":
            (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            predictions.append(label_map.numpy())
        else:
            predictions += processor.merge_panoptic(
                outputs, stuff_label_ids=vocabulary.stuff_label_ids, target_sizes=sizes, **thresholds
            )
    return predictions


def _score(metric: Metric, prediction: Any, example: PanopticExample) -> None:
    if isinstance(metric, MeanIoU):
        metric.update(prediction, convert_panoptic_to_semantic(example.target, ignore_index=IGNORED))
    else:
        metric.update(prediction, example.target)
