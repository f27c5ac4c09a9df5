"""Stages that learn from pictures with ground truth, by the seen labels of a data set."""

from collections.abc import Collection, Mapping, Sequence
from typing import TextIO, get_args

from transformers import PreTrainedModel

from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import UnseenPolicy, drop_images_with_unseen
from zsseg.data.streaming import StreamedPanopticDataset
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Transform
from zsseg.models.inference import encode_vocabulary
from zsseg.processing.processing import ZeroShotSegmentationProcessor
from zsseg.training.data_order import SizedDataset, StreamedDataset
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.stage import StageContext
from zsseg.training.trainer import TrainingResult
from zsseg.vocabulary import Vocabulary


def run_picture_recipe(
    steps: Sequence[RecipeStep],
    *,
    model: PreTrainedModel,
    processor: ZeroShotSegmentationProcessor,
    dataset: PanopticDataset | StreamedPanopticDataset,
    transform: Transform,
    unseen: UnseenPolicy,
    data_setup: Mapping[str, str],
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train a model of any family on the seen labels of a data set, their texts embedded once.

    Args:
        steps: the stages in order.
        model: trained in place.
        processor: of the same checkpoint; it gives the normalisation and the text embeddings.
        dataset: pictures with ground truth, or a stream of them; its vocabulary says which labels are seen.
        transform: augmentation.
        unseen: "drop_images" leaves out every picture with an unseen segment, as zero-shot panoptic
            segmentation asks; "ignore_pixels" keeps them and takes no mask from the unseen pixels:
            another, easier protocol, which a model card must name.
        data_setup: what else must be equal when a stage resumes, by name.
        resume: go on where an earlier run of the same arguments stopped or was killed.
        overwrite: start anew in folders that hold a run.
        stream: console output, standard error if None.

    Returns:
        How each stage that ran ended, by name.

    Raises:
        ValueError: if ``unseen`` is unknown, seeds differ, no label is seen, or as for
            :func:`~zsseg.training.recipe.run_recipe`.
    """
    if unseen not in get_args(UnseenPolicy):
        raise ValueError(f"unseen must be one of {list(get_args(UnseenPolicy))}, got {unseen!r}")
    seeds = {step.arguments.seed for step in steps}
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
    return run_recipe(
        steps,
        model=model,
        processor=processor,
        context=StageContext(seen, **encode_vocabulary(model, processor, seen)),
        dataset=examples,
        collate=build_seen_collator(processor, vocabulary),
        data_setup={**data_setup, "transform": repr(transform), "unseen": unseen},
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )


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


def check_stage_names(family: str, known: Sequence[str], stages: Collection[str]) -> None:
    """Refuse stages that a family does not have.

    Raises:
        ValueError: naming them.
    """
    if unknown := sorted(set(stages) - set(known)):
        raise ValueError(f"{family} has the stages {list(known)}, got also {unknown}")
