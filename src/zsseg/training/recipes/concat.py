"""CONCAT's training (arXiv:2402.13697): a dense warm-up of the pixels, then the segmentor with its queries.

Stage 1 without the conditional token alignment is the projection baseline: class logits are cosines between
projected queries and text embeddings of the seen labels.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TextIO

from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import UnseenPolicy
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transforms import Compose, LargeScaleJitter, RandomHorizontalFlip, Transform
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.picture_recipe import check_stage_names, run_picture_recipe
from zsseg.training.recipe import RecipeStep
from zsseg.training.recipes.concat_segmentor import (
    AlignmentOptions,
    AlignmentStage,
    BackboneStage,
    SegmentorStage,
    WarmupStage,
)
from zsseg.training.trainer import Evaluate, TrainingResult


def build_concat_transform(
    size: tuple[int, int], *, min_scale: float = 0.1, max_scale: float = 2.0
) -> Transform:
    """Large-scale jitter to (height, width) and a horizontal flip, as PADing and Mask2Former train."""
    return Compose((LargeScaleJitter(size, min_scale, max_scale), RandomHorizontalFlip()))


def train_concat(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: PanopticDataset | StreamedPanopticDataset,
    *,
    stages: Mapping[str, TrainerArguments],
    transform: Transform,
    unseen: UnseenPolicy,
    warmup_segment_weight: float = 0.0,
    alignment: AlignmentOptions | None = None,
    data_setup: Mapping[str, str] = MappingProxyType({}),
    evaluate: Evaluate | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train CONCAT's segmentor on the seen labels of a data set.

    Args:
        model: trained in place.
        processor: of the same checkpoint; it gives the normalisation and the text embeddings.
        dataset: pictures with ground truth, or a stream of them; its vocabulary says which labels are seen.
        stages: arguments by stage name, some of "backbone", "warmup", "segmentor" and "alignment"; they run
            in this order. "alignment" is the segmentor stage with conditional token alignment, and its data
            must carry CLS tokens: see :class:`~zsseg.data.clip_tokens.ClipTokenDataset`.
        transform: augmentation, such as :func:`build_concat_transform`.
        unseen: what happens to unseen segments, as of
            :func:`~zsseg.training.picture_recipe.run_picture_recipe`.
        warmup_segment_weight: as of :class:`WarmupStage`.
        alignment: weights of the stage "alignment".
        data_setup: what else must be equal when a stage resumes, such as the teacher, by name.
        evaluate: the model → numbers by name, run during the segmentor and alignment stages; see
            :func:`~zsseg.training.evaluation.evaluate_model`. Queries know nothing before that stage.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name.

    Raises:
        ValueError: if a stage is unknown, or as for
            :func:`~zsseg.training.picture_recipe.run_picture_recipe`.
    """
    alignment = AlignmentOptions() if alignment is None else alignment
    recipe = (
        BackboneStage(),
        WarmupStage(warmup_segment_weight),
        SegmentorStage(),
        AlignmentStage(alignment, model.config.projection_dim),
    )
    check_stage_names("CONCAT", [stage.name for stage in recipe], stages)
    steps = [
        RecipeStep(stage, stages[stage.name], evaluate if isinstance(stage, SegmentorStage) else None)
        for stage in recipe
        if stage.name in stages
    ]
    return run_picture_recipe(
        steps,
        model=model,
        processor=processor,
        dataset=dataset,
        transform=transform,
        unseen=unseen,
        data_setup={
            **data_setup,
            "warmup_segment_weight": str(warmup_segment_weight),
            "alignment": repr(alignment),
        },
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
