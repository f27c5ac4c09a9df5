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
from zsseg.losses.mask_losses import compute_dice_loss, compute_mask_cross_entropy
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
LEVEL_PREFIXES = tuple(
    f"segmentor.pixel_level_module.decoder.{name}"
    for name in ("input_projections.", "adapter_", "mask_projection.")
)
MASK_HEAD_PREFIXES = (
    "segmentor.transformer_module.decoder.layernorm.",
    "segmentor.transformer_module.decoder.mask_predictor.",
)
UNLABELLED = -100


class BackboneStage(Stage):
    """Classification of ground-truth segments from the backbone's features, averaged over each.

    For backbones of random weights: it is several times cheaper than the warm-up, and what is in a segment is
    learnt sooner than where it ends. Pretrained backbones need no such stage.
    """

    name: ClassVar[str] = "backbone"
    backbone_prefixes = (BACKBONE_PREFIX,)
    has_unused_parameters: ClassVar[bool] = True

    def is_trainable(self, parameter_name: str) -> bool:
        """Backbone, the pixel decoder's projections of its levels, and the semantic projector."""
        return parameter_name.startswith((BACKBONE_PREFIX, *LEVEL_PREFIXES, "semantic_projector."))

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """Cross-entropy averaged over segments, and the share of things and of stuff that is named right."""
        labels = torch.cat(list(batch["class_labels"]))
        logits = model.compute_segment_logits(
            batch["pixel_values"], batch["mask_labels"], context.text_embeds, context.text_label_ids
        )
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        is_right = logits.argmax(dim=1) == labels
        thing_ids = torch.tensor(context.vocabulary.thing_label_ids, device=labels.device)
        is_thing = torch.isin(labels, thing_ids)
        return {
            "loss": loss,
            "thing_accuracy": (is_right & is_thing).sum() / is_thing.sum().clamp(min=1),
            "stuff_accuracy": (is_right & ~is_thing).sum() / (~is_thing).sum().clamp(min=1),
        }


class WarmupStage(Stage):
    """Dense classification of every pixel among the seen labels; queries are not touched.

    A mask transformer whose pixel features are random hardly moves; one whose pixel features already tell the
    labels apart learns masks within a few hundred steps. Small things need more than that: they are few of
    the pixels, and neighbours of one label must differ too. ``segment_weight`` adds two terms in which every
    segment counts alike: the cross-entropy averaged over its pixels; and the mask that one random pixel of it
    draws through the mask head, standing in for a query, which later only has to find such a pixel.

    Args:
        segment_weight: of the sum of both terms; 0 leaves them out.
    """

    name: ClassVar[str] = "warmup"
    backbone_prefixes = (BACKBONE_PREFIX,)
    has_unused_parameters: ClassVar[bool] = True

    def __init__(self, segment_weight: float = 0.0) -> None:
        self.segment_weight = segment_weight

    def is_trainable(self, parameter_name: str) -> bool:
        """Backbone, pixel decoder and semantic projector; with ``segment_weight`` the mask head too."""
        prefixes = (*DENSE_PREFIXES, *MASK_HEAD_PREFIXES) if self.segment_weight else DENSE_PREFIXES
        return parameter_name.startswith(prefixes)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """Cross-entropy averaged over labelled pixels, at the features' resolution; the segments' terms."""
        pixel_embeds = model.compute_pixel_embeds(batch["pixel_values"])
        logits = model.compute_dense_logits(pixel_embeds, context.text_embeds, context.text_label_ids)
        size = logits.shape[-2:]
        labels = build_label_maps(batch["mask_labels"], batch["class_labels"], batch["label_mask"], size=size)
        num_labelled = (labels != UNLABELLED).sum().clamp(min=1)
        cross_entropy = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none")
        loss = cross_entropy.sum() / num_labelled
        losses = {"loss": loss, "pixel_accuracy": (logits.argmax(dim=1) == labels).sum() / num_labelled}
        if self.segment_weight:
            is_known = sample_masks(batch["label_mask"], size)
            segments = compute_segment_losses(
                model, pixel_embeds, cross_entropy, batch["mask_labels"], is_known
            )
            losses |= {name: value.detach() for name, value in segments.items()}
            losses["loss"] = loss + self.segment_weight * sum(segments.values())
        return losses


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
    maps = torch.full((len(mask_labels), *size), UNLABELLED, dtype=torch.int64, device=label_mask.device)
    for label_map, masks, labels in zip(maps, mask_labels, class_labels, strict=True):
        for mask, label in zip(sample_masks(masks, size), labels, strict=True):
            label_map.masked_fill_(mask.bool(), int(label))
    return maps.masked_fill_(~sample_masks(label_mask, size), UNLABELLED)


def sample_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H, W) masks read at the centres of an (h, w) grid."""
    height, width = masks.shape[-2:]
    rows = ((torch.arange(size[0], device=masks.device) + 0.5) * height / size[0]).long()[:, None]
    columns = ((torch.arange(size[1], device=masks.device) + 0.5) * width / size[1]).long()[None]
    return masks[:, rows, columns]


def compute_segment_losses(
    model: ConcatForPanopticSegmentation,
    pixel_embeds: Tensor,
    cross_entropy: Tensor,
    mask_labels: list[Tensor],
    is_known: Tensor,
) -> dict[str, Tensor]:
    """The warm-up's terms in which every segment counts alike.

    Args:
        model: gives the mask head, and the generator that draws pixels.
        pixel_embeds: (B, d, h, w) finest features of the pixel decoder.
        cross_entropy: (B, h, w) of the dense logits.
        mask_labels: per image (n, H, W) binary masks.
        is_known: (B, h, w) bool; pixels whose truth is unknown do not count.

    Returns:
        Scalars, averaged over segments, 0 without any: ``segment_class``, the cross-entropy within a segment;
        ``segment_mask``, binary cross-entropy plus dice of the mask that one of its pixels draws.
    """
    class_losses: list[Tensor] = []
    mask_losses: list[Tensor] = []
    for embeds, pixel_losses, masks, known in zip(
        pixel_embeds, cross_entropy, mask_labels, is_known, strict=True
    ):
        targets = sample_masks(masks, known.shape)[:, known].float()
        # A segment may fall between the grid's centres.
        targets = targets[targets.any(dim=1)]
        if len(targets):
            class_losses.append(targets @ pixel_losses[known] / targets.sum(dim=1))
            positions = torch.multinomial(targets.cpu(), num_samples=1, generator=model.criterion.generator)
            logits = model.compute_pixel_query_masks(embeds[:, known], positions[:, 0]).float()
            is_valid = torch.ones_like(targets)
            mask_losses.append(
                compute_mask_cross_entropy(logits, targets, is_valid)
                + compute_dice_loss(logits, targets, is_valid)
            )
    if not class_losses:
        nothing = pixel_embeds.sum() * 0.0
        return {"segment_class": nothing, "segment_mask": nothing}
    return {"segment_class": torch.cat(class_losses).mean(), "segment_mask": torch.cat(mask_losses).mean()}


CONCAT_STAGES = (WarmupStage.name, SegmentorStage.name)
"""The stages of the recipe, on a pretrained backbone; training from scratch begins with "backbone"."""


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
    warmup_segment_weight: float = 0.0,
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
        stages: arguments by stage name, some of "backbone", "warmup" and "segmentor"; they run in this order.
        transform: augmentation, such as :func:`build_concat_transform`.
        unseen: "drop_images" leaves out every picture with an unseen segment, as zero-shot panoptic
            segmentation asks; "ignore_pixels" keeps them and takes no mask from the unseen pixels:
            another, easier protocol, which a model card must name.
        warmup_segment_weight: as of :class:`WarmupStage`.
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
    recipe = (BackboneStage(), WarmupStage(warmup_segment_weight), SegmentorStage())
    if unknown := sorted(stages.keys() - {stage.name for stage in recipe}):
        raise ValueError(f"CONCAT has the stages {[stage.name for stage in recipe]}, got also {unknown}")
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
        RecipeStep(stage, stages[stage.name], evaluate if isinstance(stage, SegmentorStage) else None)
        for stage in recipe
        if stage.name in stages
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
        data_setup={
            "transform": repr(transform),
            "unseen": unseen,
            "warmup_segment_weight": str(warmup_segment_weight),
        },
        resume=resume,
        overwrite=overwrite,
        stream=stream,
    )
