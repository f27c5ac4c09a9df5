"""CONCAT's training (arXiv:2402.13697): a dense warm-up of the pixels, then the segmentor with its queries.

Stage 1 without the conditional token alignment is the projection baseline: class logits are cosines between
projected queries and text embeddings of the seen labels.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TextIO, get_args

from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import UnseenPolicy, drop_images_with_unseen
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose, LargeScaleJitter, RandomHorizontalFlip, Transform
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.inference import encode_vocabulary
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.training.arguments import TrainerArguments
from zsseg.training.data_order import SizedDataset, StreamedDataset
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.recipes.concat_segmentor import (
    AlignmentOptions,
    AlignmentStage,
    BackboneStage,
    SegmentorStage,
    WarmupStage,
)
from zsseg.training.stage import StageContext
from zsseg.training.trainer import Evaluate, TrainingResult
from zsseg.vocabulary import Vocabulary


def build_concat_transform(
    size: tuple[int, int], *, min_scale: float = 0.1, max_scale: float = 2.0
) -> Transform:
    """Large-scale jitter to (height, width) and a horizontal flip, as PADing and Mask2Former train."""
    return Compose((LargeScaleJitter(size, min_scale, max_scale), RandomHorizontalFlip()))


def build_seen_collator(processor: ZeroShotSegmentationProcessor, vocabulary: Vocabulary) -> PanopticCollator:
    """Examples → batch as the checkpoint's image processor normalises, label ids counted among the seen."""
    image_processor = processor.image_processor
    return PanopticCollator(
        image_mean=tuple(image_processor.image_mean),
        image_std=tuple(image_processor.image_std),
        rescale_factor=image_processor.rescale_factor,
        size_divisor=image_processor.size_divisor,
        label_id_by_vocabulary_id={old: new for new, old in enumerate(vocabulary.seen_label_ids)},
    )


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
        unseen: "drop_images" leaves out every picture with an unseen segment, as zero-shot panoptic
            segmentation asks; "ignore_pixels" keeps them and takes no mask from the unseen pixels:
            another, easier protocol, which a model card must name.
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
        ValueError: if a stage or ``unseen`` is unknown, seeds differ, or as for
            :func:`~zsseg.training.recipe.run_recipe`.
    """
    alignment = AlignmentOptions() if alignment is None else alignment
    recipe = (
        BackboneStage(),
        WarmupStage(warmup_segment_weight),
        SegmentorStage(),
        AlignmentStage(alignment, model.config.projection_dim),
    )
    if unknown := sorted(stages.keys() - {stage.name for stage in recipe}):
        raise ValueError(f"CONCAT has the stages {[stage.name for stage in recipe]}, got also {unknown}")
    if unseen not in get_args(UnseenPolicy):
        raise ValueError(f"unseen must be one of {list(get_args(UnseenPolicy))}, got {unseen!r}")
    seeds = {arguments.seed for arguments in stages.values()}
    if len(seeds) != 1:
        raise ValueError(f"give at least one stage, and all of them one seed (of augmentation), got {seeds}")
    vocabulary = dataset.vocabulary
    if not vocabulary.seen_label_ids:
        raise ValueError(
            f"all {len(vocabulary)} labels of the data set are unseen, so there is none to train on"
        )
    seen = vocabulary.select(vocabulary.seen_label_ids)
    seed = seeds.pop()
    examples: SizedDataset | StreamedDataset
    if isinstance(dataset, StreamedPanopticDataset):
        examples = dataset.prepare(transform, seed=seed, unseen=unseen)
    else:
        if unseen == "drop_images" and vocabulary.unseen_label_ids:
            dataset = drop_images_with_unseen(dataset)
        examples = TransformedDataset(dataset, transform, seed)
    steps = [
        RecipeStep(stage, stages[stage.name], evaluate if isinstance(stage, SegmentorStage) else None)
        for stage in recipe
        if stage.name in stages
    ]
    return run_recipe(
        steps,
        model=model,
        processor=processor,
        context=StageContext(seen, **encode_vocabulary(model, processor, seen)),
        dataset=examples,
        collate=build_seen_collator(processor, vocabulary),
        data_setup={
            **data_setup,
            "transform": repr(transform),
            "unseen": unseen,
            "warmup_segment_weight": str(warmup_segment_weight),
            "alignment": repr(alignment),
        },
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
