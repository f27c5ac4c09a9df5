"""The stages of CONCAT's stage 1: backbone, warm-up, segmentor, alignment (arXiv:2402.13697, Sec. 3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zsseg.losses.across_processes import gather_rows, get_process_index, mean_over_processes
from zsseg.losses.mask_losses import compute_dice_loss, compute_mask_cross_entropy
from zsseg.losses.token_alignment import (
    TokenBank,
    compute_global_alignment_loss,
    compute_image_keys,
    compute_instance_alignment_loss,
)
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.training.stage import Batch, Stage, StageContext

BACKBONE_PREFIX = "segmentor.pixel_level_module.encoder."
TEXT_TOWER_PREFIX = "text_model."
GENERATOR_PREFIX = "generator."
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
        is_right = logits.argmax(dim=1) == labels
        thing_ids = torch.tensor(context.vocabulary.thing_label_ids, device=labels.device)
        is_thing = torch.isin(labels, thing_ids)
        counts = torch.stack((torch.ones_like(labels).sum(), is_thing.sum(), (~is_thing).sum()))
        num_segments, num_things, num_stuff = mean_over_processes(counts, smallest_total=1.0)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="sum") / num_segments,
            "thing_accuracy": (is_right & is_thing).sum() / num_things,
            "stuff_accuracy": (is_right & ~is_thing).sum() / num_stuff,
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
        num_labelled = mean_over_processes((labels != UNLABELLED).sum(), smallest_total=1.0)
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

    Everything is trained but the text tower and the query generator.
    """

    name: ClassVar[str] = "segmentor"
    backbone_prefixes = (BACKBONE_PREFIX,)
    has_unused_parameters: ClassVar[bool] = True

    def is_trainable(self, parameter_name: str) -> bool:
        """Everything but the text tower and the query generator."""
        return not parameter_name.startswith((TEXT_TOWER_PREFIX, GENERATOR_PREFIX))

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The weighted set criterion, with its parts."""
        outputs = self.segment(model, batch, context)
        return {"loss": outputs.loss, **outputs.losses}

    def segment(self, model: Any, batch: Batch, context: StageContext) -> Any:
        """The model's output with losses and matches."""
        return model(
            pixel_values=batch["pixel_values"],
            pixel_mask=batch["pixel_mask"],
            text_embeds=context.text_embeds,
            text_label_ids=context.text_label_ids,
            mask_labels=batch["mask_labels"],
            class_labels=batch["class_labels"],
            label_mask=batch["label_mask"],
        )


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """Conditional token alignment (arXiv:2402.13697, Sec. 3); weights and temperatures are choices of ours.

    Attributes:
        global_weight: of CGA: an image's queries, taken together, against its CLS token.
        instance_weight: of CIA: each matched query against the CLS token of its segment.
        bank_size: CLS tokens of earlier images that CGA takes as negatives.
        query_temperature: of the weights by which CGA averages the queries.
        temperature: of both contrasts.

    Raises:
        ValueError: if a weight is negative or both are 0, or another number is out of range.
    """

    global_weight: float = 0.5
    instance_weight: float = 0.5
    bank_size: int = 24
    query_temperature: float = 0.07
    temperature: float = 0.07

    def __post_init__(self) -> None:
        weights = (self.global_weight, self.instance_weight)
        if not min(weights) >= 0 or not max(weights) > 0:
            raise ValueError(
                f"global_weight and instance_weight must be 0 or more, and one of them more, got {weights}"
            )
        if self.bank_size < 0:
            raise ValueError(f"bank_size must be 0 or more, got {self.bank_size}")
        temperatures = (self.query_temperature, self.temperature)
        if not min(temperatures) > 0:
            raise ValueError(f"query_temperature and temperature must be positive, got {temperatures}")


class AlignmentStage(SegmentorStage):
    """The segmentor stage with conditional token alignment: CLIP's CLS tokens teach the semantic queries.

    Args:
        options: weights and sizes.
        embed_dim: D, width of the tokens.
    """

    name: ClassVar[str] = "alignment"

    def __init__(self, options: AlignmentOptions, embed_dim: int) -> None:
        self.options = options
        self.bank = TokenBank(options.bank_size, embed_dim)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The weighted set criterion and the two alignments, with their parts."""
        outputs = self.segment(model, batch, context)
        losses = {"loss": outputs.loss, **outputs.losses}
        options = self.options
        if options.global_weight:
            image_keys = compute_image_keys(batch["image_ids"])
            negatives, negative_keys = self._gather_negatives(batch["image_tokens"], image_keys)
            loss = compute_global_alignment_loss(
                outputs.semantic_embeds,
                batch["image_tokens"],
                image_keys,
                negatives,
                negative_keys,
                query_temperature=options.query_temperature,
                temperature=options.temperature,
            )
            # Afterwards: it is the earlier images that are negatives.
            self.bank.push(batch["image_tokens"], image_keys)
            losses["loss"] = losses["loss"] + options.global_weight * loss
            losses["global_alignment"] = loss.detach()
        if options.instance_weight:
            queries, tokens, labels = (
                torch.cat([values[indices] for values, indices in zip(rows, matched, strict=True)])
                for rows, matched in (
                    (outputs.semantic_embeds, [match.query_indices for match in outputs.matches]),
                    (batch["segment_tokens"], [match.target_indices for match in outputs.matches]),
                    (batch["class_labels"], [match.target_indices for match in outputs.matches]),
                )
            )
            # The same in all processes: a query contrasts with the segments of all their images.
            loss = compute_instance_alignment_loss(
                gather_rows(queries),
                gather_rows(tokens),
                gather_rows(labels),
                temperature=options.temperature,
            )
            losses["loss"] = losses["loss"] + options.instance_weight * loss
            losses["instance_alignment"] = loss.detach()
        return losses

    def _gather_negatives(self, image_tokens: Tensor, image_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of other images, and their keys: what other processes see now, and the bank."""
        device, batch_size = image_tokens.device, len(image_tokens)
        tokens, keys = gather_rows(image_tokens.float()), gather_rows(image_keys.to(device))
        # All processes have batches of one size.
        is_elsewhere = torch.arange(len(keys), device=device) // batch_size != get_process_index()
        return (
            torch.cat((tokens[is_elsewhere], self.bank.tokens.to(device))),
            torch.cat((keys[is_elsewhere], self.bank.image_keys.to(device))),
        )

    def get_state(self) -> dict[str, Tensor]:
        """The token bank."""
        return self.bank.get_state()

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with a token bank."""
        self.bank.set_state(dict(state))


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
    generators = _build_image_generators(model.criterion.generator, len(mask_labels))
    for embeds, pixel_losses, masks, known, generator in zip(
        pixel_embeds, cross_entropy, mask_labels, is_known, generators, strict=True
    ):
        targets = sample_masks(masks, known.shape)[:, known].float()
        # A segment may fall between the grid's centres.
        targets = targets[targets.any(dim=1)]
        if len(targets):
            class_losses.append(targets @ pixel_losses[known] / targets.sum(dim=1))
            positions = torch.multinomial(targets.cpu(), num_samples=1, generator=generator)
            logits = model.compute_pixel_query_masks(embeds[:, known], positions[:, 0]).float()
            is_valid = torch.ones_like(targets)
            mask_losses.append(
                compute_mask_cross_entropy(logits, targets, is_valid)
                + compute_dice_loss(logits, targets, is_valid)
            )
    # Part of the graph also where there is no segment: every process of a distributed run goes backward.
    nothing = pixel_embeds.sum()[None] * 0.0
    by_segment = {
        "segment_class": torch.cat([nothing, *class_losses]),
        "segment_mask": torch.cat([nothing, *mask_losses]),
    }
    own_segments = torch.tensor(sum(map(len, class_losses)), device=pixel_embeds.device)
    num_segments = mean_over_processes(own_segments, smallest_total=1.0)
    return {name: losses.sum() / num_segments for name, losses in by_segment.items()}


def _build_image_generators(generator: torch.Generator, num_images: int) -> Iterator[torch.Generator]:
    """One for each image, by its place in the batch of all processes, whatever those before it draw.

    Args:
        generator: in the same state in all processes.
        num_images: of this process, as many as of any other.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    first = seed + get_process_index() * num_images
    return (torch.Generator().manual_seed(first + image) for image in range(num_images))
