"""What names SCAN's proposals, trained on queries of a finished proposal network that are computed once.

The paper trains everything at once for days. Where the proposal network is trained already and there are
minutes, a step that skips it costs a hundredth, so semantic integration can learn before the joint stage.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from zsseg.data.collate import PanopticCollator
from zsseg.layers.mask_transformer import compute_mask_transformer_features
from zsseg.losses.across_processes import mean_over_processes
from zsseg.models.scan.contextual_shift import find_sizes
from zsseg.models.scan.modeling_scan import ScanForSemanticSegmentation
from zsseg.training.data_order import SizedDataset
from zsseg.training.stage import Batch, Stage, StageContext

NAMING_PREFIXES = ("proposal_head.", "sim.", "no_object_embedding")


@dataclass(frozen=True)
class ProposalQueries:
    """Queries of N pictures with their labels and CLIP's view of the pictures: a data set, by picture.

    Attributes:
        query_embeds: (N, Q, d) float16, of the last decoder layer.
        label_ids: (N, Q) int64; K where a query matches no segment.
        tokens: (N, levels, C, G, G) float16, of ``integration_layers``.
        image_embeds: (N, D) float16.
    """

    query_embeds: Tensor
    label_ids: Tensor
    tokens: Tensor
    image_embeds: Tensor

    def __len__(self) -> int:
        return len(self.query_embeds)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.get_tensors().items()}

    def get_tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a safetensors file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def extract_proposal_queries(
    model: ScanForSemanticSegmentation,
    examples: SizedDataset,
    *,
    collate: PanopticCollator,
    context: StageContext,
    batch_size: int = 16,
    progress: bool = True,
) -> ProposalQueries:
    """Run proposal network and frozen CLIP once over pictures with ground truth.

    Queries are matched with segments as in training, but by mask alone: classes may not be trained yet.

    Args:
        model: with trained proposals; its naming may have random weights.
        examples: as the other stages take them.
        collate: of the same checkpoint.
        context: labels.
        batch_size: pictures at a time.
        progress: show a bar on a terminal.
    """
    rows: list[tuple[Tensor, ...]] = []
    model.eval()
    loader: DataLoader[Any] = DataLoader(examples, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]
    for batch in tqdm(loader, desc="proposals", leave=False, disable=None if progress else True):
        batch = send_to_device(batch, model.device)
        with torch.no_grad():
            features = compute_mask_transformer_features(model.segmentor, batch["pixel_values"])
            queries = features.query_embeds[-1]
            # Classes that say nothing leave the match to the masks.
            nothing = queries.new_zeros(*queries.shape[:2], len(context.vocabulary) + 1)
            matches = model.criterion(
                [nothing],
                features.mask_logits[-1:],
                batch["mask_labels"],
                batch["class_labels"],
                batch["label_mask"],
            ).matches
            label_ids = torch.full(queries.shape[:2], len(context.vocabulary), device=queries.device)
            for ids, match, labels in zip(label_ids, matches, batch["class_labels"], strict=True):
                ids[match.query_indices] = labels[match.target_indices]
            clip_pixels = model.normalise_for_clip(batch["pixel_values"], batch["pixel_mask"])
            pictures = model.encode_context(clip_pixels, find_sizes(batch["pixel_mask"]))
            tokens = torch.stack(pictures.select_grids(model.config.integration_layers), dim=1)
        rows.append(
            tuple(
                tensor.cpu()
                for tensor in (queries.half(), label_ids, tokens.half(), pictures.image_embeds.half())
            )
        )
    return ProposalQueries(*(torch.cat(column) for column in zip(*rows, strict=True)))


def collate_proposal_queries(examples: list[dict[str, Tensor]]) -> Batch:
    """Pictures of :class:`ProposalQueries` → one batch, in float32."""
    return {
        name: torch.stack([example[name] for example in examples]).to(
            torch.int64 if name == "label_ids" else torch.float32
        )
        for name in examples[0]
    }


class IntegrationStage(Stage):
    """Weighted cross-entropy of stored queries over the seen labels and no-object."""

    name: ClassVar[str] = "integration"

    def is_trainable(self, parameter_name: str) -> bool:
        """Proposal head, semantic integration and no-object embedding."""
        return parameter_name.startswith(NAMING_PREFIXES)

    def compute_loss(self, model: Any, batch: Batch, context: StageContext) -> dict[str, Tensor]:
        """The loss, and the share of matched queries that is named right."""
        embeds = model.proposal_head(batch["query_embeds"])
        if model.sim is not None:
            embeds = model.sim(embeds, batch["tokens"].unbind(dim=1), batch["image_embeds"])
        logits = model.compute_class_logits(embeds, context.text_embeds, context.text_label_ids).flatten(0, 1)
        targets = batch["label_ids"].flatten()
        no_object = logits.shape[1] - 1
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = model.criterion.no_object_weight
        losses = F.cross_entropy(logits, targets, weight, reduction="sum")
        is_matched = targets != no_object
        is_right = (logits[:, :-1].argmax(dim=1) == targets) & is_matched
        counts = torch.stack((weight[targets].sum(), is_matched.sum().float()))
        total_weight, num_matched = mean_over_processes(counts, smallest_total=1.0)
        return {"loss": losses / total_weight, "accuracy": is_right.sum() / num_matched}
