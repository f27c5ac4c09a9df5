"""The whole chain on a data set: image → processor → model → post-processing → metric."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from zsseg.data.examples import PanopticDataset, PanopticExample
from zsseg.data.semantic_maps import convert_panoptic_to_semantic
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.metrics import MeanIoU, PanopticQuality, SemanticGuidedIoU
from zsseg.metrics.label_parents import Parents
from zsseg.models.inference import compute_picture_outputs, encode_vocabulary
from zsseg.postprocessing.query_logits import penalise_seen_labels
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.structures import PanopticSegmentation
from zsseg.training.evaluation_report import EvaluatedModel
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
    metric = build_metric(task, dataset.vocabulary) if metric is None else metric

    def take(example: PanopticExample, predictions: Mapping[Task, Prediction]) -> None:
        if on_result is not None:
            on_result(example, predictions[task])

    seconds = score_predictions(
        model,
        processor,
        dataset,
        metrics={task: metric},
        batch_size=batch_size,
        prompt_templates=prompt_templates,
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_mask_area_threshold=overlap_mask_area_threshold,
        max_images=max_images,
        progress=progress,
        on_result=take,
    )
    return {
        **metric.compute(),
        "num_images": len(seconds),
        "seconds_per_image": sum(seconds) / len(seconds),
    }


def score_predictions(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    dataset: PanopticDataset,
    *,
    metrics: Mapping[Task, Metric],
    batch_size: int = 1,
    text_vocabulary: Vocabulary | None = None,
    seen_penalty: float = 0.0,
    prompt_templates: Sequence[str] | None = None,
    threshold: float | None = None,
    mask_threshold: float | None = None,
    overlap_mask_area_threshold: float | None = None,
    max_images: int | None = None,
    progress: bool = True,
    on_result: Callable[[PanopticExample, Mapping[Task, Prediction]], None] | None = None,
) -> list[float]:
    """Run a model once over a data set and fill the metrics of one or more tasks from the same outputs.

    Args:
        model: of any family; put into evaluation mode and back.
        processor: of the same checkpoint.
        dataset: pictures with ground truth; its vocabulary gives predictions their meaning.
        metrics: what to fill, by task.
        batch_size: images whose equal sizes share a forward pass; it does not change the results.
        text_vocabulary: K labels whose texts the model reads in place of the data set's K: text i stands for
            label i of the data set. None: its own.
        seen_penalty: subtracted from the class logits of the seen labels; see
            :func:`~zsseg.postprocessing.query_logits.penalise_seen_labels`.
        prompt_templates: instead of the checkpoint's own.
        threshold: panoptic only, as are the next two; None takes the checkpoint's own.
        mask_threshold: probability from which a pixel belongs to a mask.
        overlap_mask_area_threshold: share of its own mask that a query must win.
        max_images: only the first so many.
        progress: show a bar on a terminal.
        on_result: called with every example and its predictions by task.

    Returns:
        Per picture the seconds that its processor, model and the first task's post-processing took, without
        reading files and scoring; pictures of one batch share their time equally.

    Raises:
        ValueError: if a number is not positive, the data set is empty, or ``text_vocabulary`` has another
            number of labels.
    """
    vocabulary = dataset.vocabulary
    texts = vocabulary if text_vocabulary is None else text_vocabulary
    if len(texts) != len(vocabulary):
        raise ValueError(
            f"text_vocabulary must name each of the data set's {len(vocabulary)} labels, got {len(texts)}"
        )
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
    seconds: list[float] = []
    bar = tqdm(total=count, desc="evaluation", unit="image", leave=False, disable=None if progress else True)
    with _evaluation_mode(model), bar:
        text_inputs = encode_vocabulary(model, processor, texts, prompt_templates=prompt_templates)
        for first in range(0, count, batch_size):
            examples = [dataset[index] for index in range(first, min(first + batch_size, count))]
            started = time.monotonic()
            pictures = [processor(images=example.image).to(model.device) for example in examples]
            outputs = compute_picture_outputs(model, pictures, **text_inputs)
            if seen_penalty:
                for output in outputs:
                    output["class_queries_logits"] = penalise_seen_labels(
                        output.class_queries_logits, vocabulary.seen_label_ids, seen_penalty
                    )
            predictions: list[dict[Task, Prediction]] = [{} for _ in examples]
            finished = []
            for task in metrics:
                for example, output, found in zip(examples, outputs, predictions, strict=True):
                    found[task] = _post_process(processor, output, example, task, vocabulary, thresholds)
                finished.append(time.monotonic())
            seconds += [(finished[0] - started) / len(examples)] * len(examples)
            for example, found in zip(examples, predictions, strict=True):
                for task, metric in metrics.items():
                    add_picture(metric, found[task], example)
                if on_result is not None:
                    on_result(example, found)
            bar.update(len(examples))
    return seconds


def build_metric(task: Task, vocabulary: Vocabulary, *, parents: Parents | None = None) -> Metric:
    """The metric of a task.

    Args:
        task: "semantic" or "panoptic".
        vocabulary: the labels.
        parents: with them the semantic task gives SG-IoU too, see
            :class:`~zsseg.metrics.SemanticGuidedIoU`.

    Raises:
        ValueError: if the task is unknown, or the parents do not fit the vocabulary.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {list(get_args(Task))}, got {task!r}")
    if task == "panoptic":
        return PanopticQuality(vocabulary)
    if parents is None:
        return MeanIoU(vocabulary, ignore_index=IGNORED)
    return SemanticGuidedIoU(vocabulary, parents, ignore_index=IGNORED)


def add_picture(metric: Metric, prediction: Any, example: PanopticExample) -> None:
    """Give a metric one prediction of its task, and the truth in the prediction's form."""
    if isinstance(metric, MeanIoU):
        metric.update(prediction, convert_panoptic_to_semantic(example.target, ignore_index=IGNORED))
    else:
        metric.update(prediction, example.target)


def describe_evaluated_model(model: PreTrainedModel, name: str) -> EvaluatedModel:
    """What a report says of a model.

    Args:
        model: of any family.
        name: a folder, of which the last part is kept, or a Hub id.
    """
    folder = Path(name)
    return EvaluatedModel(
        name=folder.resolve().name if folder.is_dir() else name,
        family=model.config.model_type,
        parameters=model.num_parameters(),
        weights_digest=compute_weights_digest(model),
    )


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _post_process(
    processor: ZeroShotSegmentationProcessor,
    outputs: ModelOutput,
    example: PanopticExample,
    task: Task,
    vocabulary: Vocabulary,
    thresholds: Mapping[str, float | None],
) -> Prediction:
    sizes = [example.target.size]
    if task == "semantic":
        (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return label_map.numpy()
    (segmentation,) = processor.merge_panoptic(
        outputs, stuff_label_ids=vocabulary.stuff_label_ids, target_sizes=sizes, **thresholds
    )
    return segmentation
