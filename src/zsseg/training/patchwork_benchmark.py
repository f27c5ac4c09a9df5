"""The Patchwork benchmark: one pass over held-out scenes gives panoptic quality and mean IoU."""

import math
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from zsseg.data.examples import PanopticExample
from zsseg.data.patchwork.dataset import PatchworkDataset
from zsseg.data.patchwork.random_stream import RandomStream
from zsseg.layers.model_identity import compute_weights_digest
from zsseg.metrics import MeanIoU, PanopticQuality
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.structures import PanopticSegmentation
from zsseg.training.evaluation import IGNORED, Prediction, Task, score_predictions
from zsseg.training.patchwork_report import METRIC_KEYS, BenchmarkedModel, PatchworkRow, Text
from zsseg.vocabulary import Vocabulary

SHUFFLE_KEY = 0x5F1E


@dataclass(frozen=True, slots=True)
class PatchworkScores:
    """One row of the benchmark with what stands behind it.

    Attributes:
        row: the averages.
        per_class: label name → PQ, SQ, RQ, IoU in [0, 1] (IoU NaN where the label does not occur) and the
            counts TP, FP, FN.
    """

    row: PatchworkRow
    per_class: Mapping[str, Mapping[str, float]]


def evaluate_patchwork(
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    dataset: PatchworkDataset,
    *,
    text: Text = "own",
    threshold: float | None = None,
    mask_threshold: float | None = None,
    overlap_mask_area_threshold: float | None = None,
    seen_penalty: float = 0.0,
    progress: bool = True,
    on_result: Callable[[PanopticExample, PanopticSegmentation], None] | None = None,
) -> PatchworkScores:
    """Predict over all labels, one scene at a time, and score panoptic quality and mean IoU of one output.

    Args:
        model: of any family.
        processor: of the same checkpoint.
        dataset: the scenes, of all categories.
        text: "own" gives every label its own name; "shuffled" gives the unseen labels one another's, see
            :func:`shuffle_unseen_names`.
        threshold: None takes the checkpoint's own, as for the next two.
        mask_threshold: probability from which a pixel belongs to a mask.
        overlap_mask_area_threshold: share of its own mask that a query must win.
        seen_penalty: calibration of seen against unseen labels, as of
            :func:`~zsseg.training.evaluation.score_predictions`.
        progress: show a bar on a terminal.
        on_result: called with every scene and its panoptic prediction.

    Returns:
        The scores. ``ms_per_image`` is the median over scenes of processor, model and panoptic merge.

    Raises:
        ValueError: if ``dataset`` holds seen categories alone, and as
            :func:`~zsseg.training.evaluation.score_predictions`.
    """
    vocabulary = dataset.vocabulary
    if not vocabulary.unseen_label_ids:
        raise ValueError(
            'the benchmark asks for all sixty labels, got scenes of categories="seen": use categories="all"'
        )
    panoptic, semantic = PanopticQuality(vocabulary), MeanIoU(vocabulary, ignore_index=IGNORED)

    def take(example: PanopticExample, predictions: Mapping[Task, Prediction]) -> None:
        segmentation = predictions["panoptic"]
        if on_result is not None and isinstance(segmentation, PanopticSegmentation):
            on_result(example, segmentation)

    seconds = score_predictions(
        model,
        processor,
        dataset,
        # The first task is the one that is timed.
        metrics={"panoptic": panoptic, "semantic": semantic},
        text_vocabulary=vocabulary if text == "own" else shuffle_unseen_names(vocabulary),
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_mask_area_threshold=overlap_mask_area_threshold,
        seen_penalty=seen_penalty,
        progress=progress,
        on_result=take,
    )
    averages = panoptic.compute() | semantic.compute()
    figures = {name: averages[key] for name, key in METRIC_KEYS.items()}
    figures["ms_per_image"] = 1e3 * statistics.median(seconds)
    row = PatchworkRow(
        preset=dataset.preset.name,
        split=dataset.split,
        scenes=len(dataset),
        size=dataset.size,
        seed=dataset.seed,
        text=text,
        figures={name: None if math.isnan(value) else value for name, value in figures.items()},
        seen_penalty=seen_penalty,
    )
    iou = semantic.compute_per_class()
    per_class = {name: {**each, "IoU": iou[name]} for name, each in panoptic.compute_per_class().items()}
    return PatchworkScores(row, per_class)


def shuffle_unseen_names(vocabulary: Vocabulary, seed: int = 0) -> Vocabulary:
    """The control of the benchmark: every unseen label gets the name of another unseen label.

    Things swap names with things and stuff with stuff, so thing and stuff stay what they are; no unseen label
    keeps its own name, and every seen one does. A model that can only tell that something is unseen, by
    elimination, and then guesses which label it is, scores as before; one that recognises the label from its
    name loses all that it won by it. Shuffling all names instead would ruin the seen labels, also those of a
    model that learnt them by heart, and say nothing about the unseen.

    Args:
        vocabulary: with unseen labels.
        seed: of the exchange, which is one cycle through all labels of a kind.

    Returns:
        As many labels; label i of it holds the texts that stand for label i of ``vocabulary``.

    Raises:
        ValueError: if nothing is unseen, or a kind has a single unseen label, which finds no partner.
    """
    sources = list(range(len(vocabulary)))
    stream = RandomStream(SHUFFLE_KEY, seed)
    unseen = set(vocabulary.unseen_label_ids)
    kinds = {"thing": vocabulary.thing_label_ids, "stuff": vocabulary.stuff_label_ids}
    for kind, label_ids in kinds.items():
        group = [label_id for label_id in label_ids if label_id in unseen]
        if len(group) == 1:
            raise ValueError(
                f"unseen labels of one kind exchange their names, but {vocabulary[group[0]].name!r} is the "
                f"only unseen {kind}: use a split with two or more"
            )
        order = stream.sample(group, len(group))
        for label_id, source in zip(order, order[1:] + order[:1], strict=True):
            sources[label_id] = source
    if not unseen:
        raise ValueError("unseen labels exchange their names, but this vocabulary has none: use a split")
    return vocabulary.select(sources)


def describe_model(
    model: Any, processor: ZeroShotSegmentationProcessor, name: str, thresholds: Mapping[str, float | None]
) -> BenchmarkedModel:
    """What a report says of a model.

    Args:
        model: of any family.
        processor: gives the thresholds that are not set.
        name: a folder, of which the last part is kept, or a Hub id.
        thresholds: by name; None for the checkpoint's own.
    """
    folder = Path(name)
    return BenchmarkedModel(
        name=folder.resolve().name if folder.is_dir() else name,
        family=model.config.model_type,
        parameters=_count_parameters(model),
        parameters_text_tower=_count_parameters(getattr(model, "text_model", None)),
        parameters_generator=_count_parameters(getattr(model, "generator", None)),
        stored_queries=getattr(model.config, "memory_size", 0),
        known_labels=len(getattr(model.config, "known_labels", ())),
        weights_digest=compute_weights_digest(model),
        **{
            key: float(getattr(processor, key) if value is None else value)
            for key, value in thresholds.items()
        },
    )


def describe_machine(device: torch.device) -> str:
    """Such as ``"AMD EPYC 7B13, 2 threads, torch 2.13.0"``, with the accelerator in front if there is one."""
    parts = [] if device.type == "cpu" else [_name_accelerator(device)]
    threads = torch.get_num_threads()
    return ", ".join(
        [*parts, _name_processor(), f"{threads} thread{'s' * (threads > 1)}", f"torch {torch.__version__}"]
    )


def _count_parameters(module: Any) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _name_accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _name_processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
