"""The set prediction loss of Mask2Former: match queries with segments, then teach classes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerConfig

from zsseg.losses.across_processes import mean_over_processes, raise_in_all_processes
from zsseg.losses.mask_losses import compute_dice_loss, compute_mask_cross_entropy
from zsseg.losses.matching import Match, compute_class_costs, compute_mask_costs, match_queries
from zsseg.losses.point_sampling import (
    draw_points,
    find_valid_points,
    sample_logits,
    sample_logits_at_own_points,
    sample_targets,
    select_uncertain_points,
)

UNKNOWN_LABEL = -100
"""Marks queries that learn no class."""


@dataclass(frozen=True)
class SetCriterionOutput:
    """What the criterion found for one batch.

    Attributes:
        loss: scalar with gradients: the weighted sum over terms and decoder layers.
        losses: detached, unweighted scalars: ``class``, ``mask`` and ``dice`` of the final layer, and
            ``auxiliary_class``, ``auxiliary_mask`` and ``auxiliary_dice`` summed over the earlier layers.
        matches: the final layer's match of each image.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    matches: list[Match]


@dataclass(frozen=True)
class _PointTargets:
    """The targets of a batch, read at points that all its images, layers and masks share.

    Attributes:
        points: (P, 2).
        masks: (B, N, P) float32, padded with zeros to the largest number of targets N.
        is_valid: (B, P) bool.
    """

    points: Tensor
    masks: Tensor
    is_valid: Tensor


class SetCriterion:
    """Mask2Former's training loss for any number of labels.

    On every decoder layer, queries are matched one to one with the image's segments at the lowest sum of
    class, mask and dice costs. Queries learn a class by weighted cross-entropy (unmatched ones "no
    object", the last column), matched ones also learn their segment's mask by binary cross-entropy and dice,
    each summed over pairs and divided by the number of segments. Weights of classes and segments are counted
    over the batches of all processes, so that these learn what one process learns from all batches.

    Masks are compared on points instead of pixels: matching on ``num_points`` uniform points, mask losses on
    ``num_points`` points of which ``importance_sample_ratio`` are the most uncertain of
    ``oversample_ratio · num_points`` candidates and the others uniform. Points are drawn once per call, and
    matched pairs choose from the same candidates. Everything is computed in float32 (float64 for float64
    logits), outside autocast.

    It has no parameters and is no module: a model that holds one saves nothing of it. The points come from
    its own CPU generator, never from the global one; :meth:`get_rng_state` and :meth:`set_rng_state` make a
    resumed training continue bit for bit.

    Args:
        class_weight: weight of the class term, in the cost and in the loss.
        mask_weight: weight of the mask cross-entropy, in the cost and in the loss.
        dice_weight: weight of the dice term, in the cost and in the loss.
        no_object_weight: weight of "no object" in the weighted mean of class cross-entropies; labels have 1.
        num_points: points of the matching, and of the losses per mask.
        oversample_ratio: candidates per loss point, at least 1.
        importance_sample_ratio: share of the loss points taken from the candidates by uncertainty, in [0, 1].
        ignore_unknown_queries: let an unmatched query of which more than half lies where ``label_mask`` is
            false learn no class instead of "no object": it may be right there, and panoptic quality forgives
            predictions by the same rule. Only for data whose unknown parts are small: where they fill half of
            a picture, a query that covers all of it goes unpunished too.
        seed: first state of the generator.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        Mask2Former (arXiv:2112.01527), Sec. 3.3; MaskFormer (arXiv:2107.06278), Sec. 3.3.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        ignore_unknown_queries: bool = False,
        seed: int = 0,
    ) -> None:
        weights = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        if negative := {name: weight for name, weight in weights.items() if not weight >= 0}:
            raise ValueError(f"weights must be 0 or more, got {negative}")
        if not no_object_weight > 0:
            raise ValueError(
                f"no_object_weight must be positive, got {no_object_weight}: "
                "with 0, a batch without targets has no class loss"
            )
        if num_points < 1:
            raise ValueError(f"num_points must be 1 or more, got {num_points}")
        if not oversample_ratio >= 1:
            raise ValueError(f"oversample_ratio must be 1 or more, got {oversample_ratio}")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(f"importance_sample_ratio must lie in [0, 1], got {importance_sample_ratio}")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)
        self.ignore_unknown_queries = ignore_unknown_queries
        self.generator = torch.Generator(device="cpu").manual_seed(seed)

    @classmethod
    def from_segmentor_config(cls, config: Mask2FormerConfig, *, ignore_unknown_queries: bool) -> Self:
        """The criterion with the weights and point counts of a :class:`~transformers.Mask2FormerConfig`."""
        return cls(
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            num_points=config.train_num_points,
            oversample_ratio=config.oversample_ratio,
            importance_sample_ratio=config.importance_sample_ratio,
            ignore_unknown_queries=ignore_unknown_queries,
        )

    def get_rng_state(self) -> Tensor:
        """The generator's state, a byte tensor to be saved with a checkpoint."""
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor) -> None:
        """Continue from a state of :meth:`get_rng_state`."""
        self.generator.set_state(state.cpu())

    def __call__(
        self,
        class_logits: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
        label_mask: Tensor | None = None,
    ) -> SetCriterionOutput:
        """Compute the loss of one batch with newly drawn points.

        Args:
            class_logits: per decoder layer, the final one last: (B, Q, K + 1), last column "no object".
            mask_logits: per decoder layer: (B, Q, h, w) before sigmoid, at any resolution.
            mask_labels: per image: (n, H, W) bool or in [0, 1], at any resolution, n may be 0.
            class_labels: per image: (n,) int64 in [0, K).
            label_mask: (B, H, W) bool, false where a pixel is void or padding: such pixels count neither in
                the matching nor in the mask losses. None if all count. It covers the same area as the masks;
                at their resolution, no target value of a false pixel has any influence.

        Raises:
            ImportError: if SciPy is missing.
            ValueError: if shapes disagree, a label is outside [0, K), a mask value is outside [0, 1], or a
                logit is not finite.
        """
        matching_points = draw_points(self.num_points, self.generator)
        candidates = draw_points(self.num_candidates, self.generator)
        uniform = draw_points(self.num_points - self.num_uncertain, self.generator)
        return self.compute_at_points(
            class_logits,
            mask_logits,
            mask_labels,
            class_labels,
            label_mask,
            matching_points=matching_points,
            loss_points=torch.cat((candidates, uniform)),
        )

    def compute_at_points(
        self,
        class_logits: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
        label_mask: Tensor | None,
        *,
        matching_points: Tensor,
        loss_points: Tensor,
    ) -> SetCriterionOutput:
        """Compute the loss of one batch at given points: the criterion as a pure function.

        Args:
            class_logits: as in the call.
            mask_logits: as in the call.
            mask_labels: as in the call.
            class_labels: as in the call.
            label_mask: as in the call.
            matching_points: (P, 2), where the matching compares masks.
            loss_points: (C + R, 2), first the C = ``num_candidates`` points of which every mask takes its
                ``num_uncertain`` most uncertain ones, then R points that every mask takes.
        """
        _check_shapes(class_logits, mask_logits, mask_labels, class_labels, label_mask)
        device = mask_logits[0].device
        counts = [len(labels) for labels in class_labels]
        with torch.autocast(device.type, enabled=False):
            labels = _pad_labels(class_labels, device)
            widened = [_widen(logits) for logits in class_logits]
            matching_targets = _read_targets(mask_labels, label_mask, matching_points.to(device))
            costs, unknown = zip(
                *(
                    self._compare(classes, masks, labels, matching_targets)
                    for classes, masks in zip(widened, mask_logits, strict=True)
                ),
                strict=True,
            )
            matches = _match_everywhere(torch.stack(costs), counts)
            loss_targets = _read_targets(mask_labels, label_mask, loss_points.to(device))
            sums, class_weights = [], []
            for classes, masks, is_unknown, layer_matches in zip(
                widened, mask_logits, unknown, matches, strict=True
            ):
                cross_entropy, dice = self._compute_mask_losses(masks, loss_targets, layer_matches)
                class_sum, class_weight = self._sum_class_loss(classes, labels, is_unknown, layer_matches)
                sums.append(torch.stack((class_sum, cross_entropy.sum(), dice.sum())))
                class_weights.append(class_weight)
            # (L + 1,), one message for all layers
            own_counts = torch.stack((*class_weights, class_weights[0].new_tensor(float(sum(counts)))))
            totals = mean_over_processes(own_counts)
            # Where there is nothing to divide, the sum is 0 and so is the mean.
            divisors = torch.where(totals > 0, totals, 1.0)
            num_masks = divisors[-1].expand(len(matches))
            by_layer = torch.stack(sums) / torch.stack((divisors[:-1], num_masks, num_masks), dim=1)
            weights = by_layer.new_tensor((self.class_weight, self.mask_weight, self.dice_weight))
            loss = (by_layer.sum(dim=0) * weights).sum()
        names = ("class", "mask", "dice")
        final, auxiliary = by_layer.detach()[-1], by_layer.detach()[:-1].sum(dim=0)
        losses = dict(zip(names, final, strict=True))
        losses |= {f"auxiliary_{name}": term for name, term in zip(names, auxiliary, strict=True)}
        return SetCriterionOutput(loss, losses, matches[-1])

    @torch.no_grad()
    def _compare(
        self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, targets: _PointTargets
    ) -> tuple[Tensor, Tensor]:
        """Matching costs (B, Q, N) of one layer, and which queries (B, Q) learn no class if unmatched."""
        batch_size, num_queries = mask_logits.shape[:2]
        sampled = sample_logits(mask_logits.flatten(0, 1), targets.points)
        point_logits = sampled.view(-1, batch_size, num_queries).transpose(0, 1)
        mask_costs, dice_costs = compute_mask_costs(point_logits, targets.masks, targets.is_valid)
        class_costs = compute_class_costs(class_logits, labels)
        costs = (
            self.class_weight * class_costs + self.mask_weight * mask_costs + self.dice_weight * dice_costs
        )
        if not self.ignore_unknown_queries:
            return costs, torch.zeros(costs.shape[:2], dtype=torch.bool, device=costs.device)
        is_inside = (point_logits > 0).float()
        outside_labels = (is_inside * ~targets.is_valid[:, :, None]).sum(dim=1)
        return costs, 2 * outside_labels > is_inside.sum(dim=1)

    def _sum_class_loss(
        self, class_logits: Tensor, labels: Tensor, is_unknown: Tensor, matches: Sequence[Match]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of one layer's queries, weighted by their labels: the sum, and the sum of weights."""
        num_columns = class_logits.shape[-1]
        no_object = num_columns - 1
        learned = torch.where(is_unknown, UNKNOWN_LABEL, no_object)
        for image, match in enumerate(matches):
            learned[image, match.query_indices] = labels[image, match.target_indices]
        weight = class_logits.new_ones(num_columns)
        weight[no_object] = self.no_object_weight
        summed = F.cross_entropy(
            class_logits.flatten(0, 1),
            learned.flatten(),
            weight=weight,
            ignore_index=UNKNOWN_LABEL,
            reduction="sum",
        )
        return summed, weight[learned[learned != UNKNOWN_LABEL]].sum()

    def _compute_mask_losses(
        self, mask_logits: Tensor, targets: _PointTargets, matches: Sequence[Match]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice (M,) of the M matched pairs of one layer."""
        num_queries, num_targets = mask_logits.shape[1], targets.masks.shape[1]
        images = torch.cat([torch.full_like(match.query_indices, i) for i, match in enumerate(matches)])
        queries = images * num_queries + torch.cat([match.query_indices for match in matches])
        rows = images * num_targets + torch.cat([match.target_indices for match in matches])

        matched = mask_logits.flatten(0, 1).index_select(0, queries)
        masks = targets.masks.flatten(0, 1).index_select(0, rows)
        is_valid = targets.is_valid.index_select(0, images)
        with torch.no_grad():
            candidates = sample_logits(matched, targets.points[: self.num_candidates]).t().contiguous()
            uncertain = select_uncertain_points(
                candidates, is_valid[:, : self.num_candidates], self.num_uncertain
            )
            uniform = torch.arange(self.num_candidates, len(targets.points), device=queries.device)
            chosen = torch.cat((uncertain, uniform.expand(len(queries), -1)), dim=1)
        own_points = targets.points.index_select(0, chosen.flatten()).view(*chosen.shape, 2)
        point_logits = sample_logits_at_own_points(matched, own_points)
        masks, is_valid = masks.gather(1, chosen), is_valid.gather(1, chosen)
        return (
            compute_mask_cross_entropy(point_logits, masks, is_valid),
            compute_dice_loss(point_logits, masks, is_valid),
        )


def _widen(logits: Tensor) -> Tensor:
    """Half precision to float32, anything wider as it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pad_labels(class_labels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Labels of all images (B, N), padded with 0 to the largest number of targets."""
    padded = torch.zeros((len(class_labels), max(map(len, class_labels))), dtype=torch.int64, device=device)
    for image, labels in enumerate(class_labels):
        padded[image, : len(labels)] = labels.to(device)
    return padded


def _read_targets(mask_labels: Sequence[Tensor], label_mask: Tensor | None, points: Tensor) -> _PointTargets:
    """Read all target masks and the validity of all images at the points, on the points' device."""
    device = points.device
    masks = torch.zeros((len(mask_labels), max(map(len, mask_labels)), len(points)), device=device)
    for image, image_masks in enumerate(mask_labels):
        if len(image_masks):
            masks[image, : len(image_masks)] = sample_targets(image_masks.to(device), points)
    if label_mask is None:
        is_valid = torch.ones((len(mask_labels), len(points)), dtype=torch.bool, device=device)
    else:
        is_valid = find_valid_points(label_mask.to(device), points)
    return _PointTargets(points, masks, is_valid)


def _match_everywhere(costs: Tensor, counts: Sequence[int]) -> list[list[Match]]:
    """Match, or raise in all processes: one that stopped alone would leave the others waiting for it."""
    matches: list[list[Match]] = []
    failure = None
    try:
        matches = match_queries(costs, counts)
    except ValueError as error:
        failure = error
    raise_in_all_processes(failure)
    return matches


def _check_shapes(
    class_logits: Sequence[Tensor],
    mask_logits: Sequence[Tensor],
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    label_mask: Tensor | None,
) -> None:
    """Raise where inputs cannot belong together."""
    if len(class_logits) != len(mask_logits) or not class_logits:
        raise ValueError(
            "class_logits and mask_logits must hold one tensor per decoder layer, "
            f"got {len(class_logits)} and {len(mask_logits)}"
        )
    batch_size, num_queries, num_columns = class_logits[0].shape
    for layer, (classes, masks) in enumerate(zip(class_logits, mask_logits, strict=True)):
        if classes.shape != (batch_size, num_queries, num_columns) or masks.shape[:-2] != (
            batch_size,
            num_queries,
        ):
            raise ValueError(
                f"decoder layer {layer}: expected class logits ({batch_size}, {num_queries}, {num_columns}) "
                f"and mask logits ({batch_size}, {num_queries}, h, w), got {tuple(classes.shape)} and "
                f"{tuple(masks.shape)}"
            )
    if len(mask_labels) != batch_size or len(class_labels) != batch_size:
        raise ValueError(
            f"expected mask_labels and class_labels for {batch_size} images, "
            f"got {len(mask_labels)} and {len(class_labels)}"
        )
    for image, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if masks.ndim != 3 or labels.ndim != 1 or len(masks) != len(labels):
            raise ValueError(
                f"image {image}: expected mask_labels (n, H, W) and class_labels (n,), "
                f"got {tuple(masks.shape)} and {tuple(labels.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_columns - 1:
            raise ValueError(
                f"image {image}: class_labels must lie in [0, {num_columns - 1}), got {labels.tolist()}; "
                "the last column of class_logits is 'no object' and no label"
            )
    if label_mask is not None and (
        label_mask.dtype != torch.bool or label_mask.ndim != 3 or len(label_mask) != batch_size
    ):
        raise ValueError(
            f"label_mask must be ({batch_size}, H, W) bool, got {tuple(label_mask.shape)} {label_mask.dtype}"
        )
