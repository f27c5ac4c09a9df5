"""CONCAT's training (arXiv:2402.13697): a dense warm-up of the pixels, then the segmentor with its queries.

Stage 1 without the conditional token alignment is the projection baseline: class logits are cosines between
projected queries and text embeddings of the seen labels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TextIO, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import PanopticDataset
from zsseg.data.seen_filter import drop_images_with_unseen
from zsseg.data.transformed_dataset import TransformedDataset
from zsseg.data.transforms import Compose, LargeScaleJitter, RandomHorizontalFlip, Transform
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.processing_concat import ConcatProcessor
from zsseg.models.inference import encode_vocabulary
from zsseg.training.arguments import TrainerArguments
from zsseg.training.recipe import RecipeStep, run_recipe
from zsseg.training.stage import Batch, Stage, StageContext
from zsseg.training.trainer import Evaluate, TrainingResult

UnseenPolicy = Literal["drop_images", "ignore_pixels"]

BACKBONE_PREFIX = "segmentor.pixel_level_module.encoder."
TEXT_TOWER_PREFIX = "text_model."
DENSE_PREFIXES = ("segmentor.pixel_level_module.", "semantic_projector.")
UNLABELLED = -100


class WarmupStage(Stage):
    """Dense classification of every pixel among the seen labels; queries are not touched.

    A mask transformer whose pixel features are random hardly moves; one whose pixel features already tell the
    labels apart learns masks within a few hundred steps.
    """

    name: ClassVar[str] = "warmup"
    backbone_prefixes = (BACKBONE_PREFIX,)
    has_unused_parameters: ClassVar[bool] = True

    def is_trainable(self, parameter_name: str) -> bool:
        """Backbone, pixel decoder and semantic projector."""
        return parameter_name.startswith(DENSE_PREFIXES)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """Cross-entropy of the dense logits, averaged over labelled pixels at the logits' resolution."""
        logits = model.compute_dense_logits(
            batch["pixel_values"], context.text_embeds, context.text_label_ids
        )
        labels = build_label_maps(
            batch["mask_labels"], batch["class_labels"], batch["label_mask"], size=logits.shape[-2:]
        )
        num_labelled = (labels != UNLABELLED).sum().clamp(min=1)
        loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / num_labelled
        accuracy = (logits.argmax(dim=1) == labels).sum() / num_labelled
        return {"loss": loss, "pixel_accuracy": accuracy}


class SegmentorStage(Stage):
    """Mask2Former's set criterion on every decoder layer, over the seen labels and no-object.

    Everything is trained but the text tower.
    """

    name: ClassVar[str] = "segmentor"
    backbone_prefixes = (BACKBONE_PREFIX,)
    has_unused_parameters: ClassVar[bool] = True

    def is_trainable(self, parameter_name: str) -> bool:
        """Everything but the text tower."""
        return not parameter_name.startswith(TEXT_TOWER_PREFIX)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The weighted set criterion, with its parts."""
        outputs = model(
            pixel_values=batch["pixel_values"],
            pixel_mask=batch["pixel_mask"],
            text_embeds=context.text_embeds,
            text_label_ids=context.text_label_ids,
            mask_labels=batch["mask_labels"],
            class_labels=batch["class_labels"],
            label_mask=batch["label_mask"],
        )
        return {"loss": outputs.loss, **outputs.losses}


def build_label_maps(
    mask_labels: list[Tensor], class_labels: list[Tensor], label_mask: Tensor, *, size: tuple[int, int]
) -> Tensor:
    """Segments → the label of every pixel, read at the centres of a coarser grid.

    Args:
        mask_labels: per image (n, H, W) binary masks.
        class_labels: per image (n,) label ids.
        label_mask: (B, H, W) bool, true where ground truth is known.
        size: (h, w) of the grid.

    Returns:
        (B, h, w) int64 label ids; ``UNLABELLED`` where nothing is known or no segment lies.
    """
    height, width = label_mask.shape[-2:]
    device = label_mask.device
    rows = ((torch.arange(size[0], device=device) + 0.5) * height / size[0]).long()[:, None]
    columns = ((torch.arange(size[1], device=device) + 0.5) * width / size[1]).long()[None]
    maps = torch.full((len(mask_labels), *size), UNLABELLED, dtype=torch.int64, device=device)
    for label_map, masks, labels in zip(maps, mask_labels, class_labels, strict=True):
        for mask, label in zip(masks, labels, strict=True):
            label_map.masked_fill_(mask[rows, columns].bool(), int(label))
    return maps.masked_fill_(~label_mask[:, rows, columns], UNLABELLED)


CONCAT_STAGES: Mapping[str, type[Stage]] = {stage.name: stage for stage in (WarmupStage, SegmentorStage)}
"""The stages by name, in the order of the recipe."""


def build_concat_transform(
    size: tuple[int, int], *, min_scale: float = 0.1, max_scale: float = 2.0
) -> Transform:
    """Large-scale jitter to (height, width) and a horizontal flip, as PADing and Mask2Former train."""
    return Compose((LargeScaleJitter(size, min_scale, max_scale), RandomHorizontalFlip()))


def train_concat(
    model: ConcatForPanopticSegmentation,
    processor: ConcatProcessor,
    dataset: PanopticDataset,
    *,
    stages: Mapping[str, TrainerArguments],
    transform: Transform,
    unseen: UnseenPolicy,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stream: TextIO | None = None,
) -> dict[str, TrainingResult]:
    """Train CONCAT's segmentor on the seen labels of a data set.

    Args:
        model: trained in place.
        processor: of the same checkpoint; it gives the normalisation and the text embeddings.
        dataset: pictures with ground truth; its vocabulary says which labels are seen.
        stages: arguments by stage name, "warmup", "segmentor" or both; they run in this order.
        transform: augmentation, such as :func:`build_concat_transform`.
        unseen: "drop_images" leaves out every picture with an unseen segment, as zero-shot panoptic
            segmentation asks; "ignore_pixels" keeps them and takes no mask from the unseen pixels:
            another, easier protocol, which a model card must name.
        evaluate: the model → numbers by name, run during the segmentor stage; see
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
    if unknown := sorted(stages.keys() - CONCAT_STAGES.keys()):
        raise ValueError(f"CONCAT has the stages {list(CONCAT_STAGES)}, got also {unknown}")
    if unseen not in get_args(UnseenPolicy):
        raise ValueError(f"unseen must be one of {list(get_args(UnseenPolicy))}, got {unseen!r}")
    seeds = {arguments.seed for arguments in stages.values()}
    if len(seeds) != 1:
        raise ValueError(f"give at least one stage, and all of them one seed (of augmentation), got {seeds}")
    vocabulary = dataset.vocabulary
    if unseen == "drop_images" and vocabulary.unseen_label_ids:
        dataset = drop_images_with_unseen(dataset)
    seen = vocabulary.select(vocabulary.seen_label_ids)
    image_processor = processor.image_processor
    steps = [
        RecipeStep(CONCAT_STAGES[name](), stages[name], evaluate if name == SegmentorStage.name else None)
        for name in CONCAT_STAGES
        if name in stages
    ]
    return run_recipe(
        steps,
        model=model,
        processor=processor,
        context=StageContext(seen, **encode_vocabulary(model, processor, seen)),
        dataset=TransformedDataset(dataset, transform, seeds.pop()),
        collate=PanopticCollator(
            image_mean=tuple(image_processor.image_mean),
            image_std=tuple(image_processor.image_std),
            rescale_factor=image_processor.rescale_factor,
            size_divisor=image_processor.size_divisor,
            label_id_by_vocabulary_id={old: new for new, old in enumerate(vocabulary.seen_label_ids)},
        ),
        data_setup={"transform": repr(transform), "unseen": unseen},
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
