"""Queries of a trained segmentor with the labels they were matched to, extracted once and kept on disk."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from zsseg.data.collate import PanopticCollator
from zsseg.data.examples import PanopticDataset
from zsseg.data.tensor_store import TensorStore, build_tensor_store
from zsseg.layers.model_identity import compute_weights_digest, describe_config
from zsseg.losses.set_criterion import UNKNOWN_LABEL
from zsseg.models.concat.configuration_concat import ConcatConfig
from zsseg.models.concat.modeling_concat import ConcatForPanopticSegmentation
from zsseg.models.concat.query_memory import NO_OBJECT
from zsseg.training.processes import get_process_state, share_failure
from zsseg.training.stage import Batch, StageContext

QUERY_PREFIXES = ("segmentor.", "semantic_projector.", "no_object_embedding")
"""Weights that decide the queries of a picture and which segments they are matched with."""


class QueryDataset:
    """The queries of every picture of a store, in memory: items are (Q, d) float32 and (Q,) int64.

    Args:
        store: as :func:`build_query_store` makes it.
    """

    def __init__(self, store: TensorStore) -> None:
        tensors = store.read_all()
        self.label_ids = tensors["label_ids"].view(len(store), -1).long()
        self.queries = tensors["queries"].view(*self.label_ids.shape, -1).float()

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.queries[index], self.label_ids[index]


class LabelQueryDataset:
    """Real queries label by label: every item draws some of one label, and some without a segment.

    In the batches of :class:`QueryDataset` a label has two or three queries, if any: too few to tell its
    distribution from another's.

    Args:
        dataset: the queries of all pictures.
        queries_per_label: M, drawn with replacement.
        unmatched: U, drawn beside them.
        seed: of the draws, which also follow from epoch and index.
        epoch_length: items of one epoch; they take the labels in turn.

    Raises:
        ValueError: if no query is matched, or none is unmatched.
    """

    def __init__(
        self,
        dataset: QueryDataset,
        *,
        queries_per_label: int = 16,
        unmatched: int = 8,
        seed: int = 0,
        epoch_length: int = 4096,
    ) -> None:
        label_ids = dataset.label_ids.flatten()
        self.queries = dataset.queries.flatten(0, 1)
        self.rows_by_label = {
            int(label_id): torch.nonzero(label_ids == label_id)[:, 0].numpy()
            for label_id in label_ids.unique()
            if label_id != UNKNOWN_LABEL
        }
        self.label_ids = [label_id for label_id in self.rows_by_label if label_id != NO_OBJECT]
        if not self.label_ids or NO_OBJECT not in self.rows_by_label:
            raise ValueError(
                f"the stored queries need some with a segment and some without, got label ids "
                f"{sorted(self.rows_by_label)}: extract those of more pictures"
            )
        self.queries_per_label = queries_per_label
        self.unmatched = unmatched
        self.seed = seed
        self.epoch_length = epoch_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.epoch_length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(M + U, d) queries and their (M + U,) label ids."""
        generator = np.random.default_rng([self.seed, self.epoch, index])
        label_id = self.label_ids[index % len(self.label_ids)]
        matched, unmatched = self.rows_by_label[label_id], self.rows_by_label[NO_OBJECT]
        counts = (self.queries_per_label, self.unmatched)
        # One call for all draws: a step takes less time than sixteen items with two calls each.
        draws = generator.integers(np.repeat((len(matched), len(unmatched)), counts))
        rows = np.concatenate(
            [matched[draws[: self.queries_per_label]], unmatched[draws[self.queries_per_label :]]]
        )
        label_ids = np.repeat((label_id, NO_OBJECT), counts)
        return self.queries[torch.from_numpy(rows)], torch.from_numpy(label_ids)


def collate_queries(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """``queries`` (B, Q, d) and ``label_ids`` (B, Q), ``NO_OBJECT`` where a query contains no segment."""
    queries, label_ids = zip(*items, strict=True)
    return {"queries": torch.stack(queries), "label_ids": torch.stack(label_ids)}


def build_query_store(
    model: ConcatForPanopticSegmentation,
    dataset: PanopticDataset,
    folder: Path,
    *,
    collate: PanopticCollator,
    context: StageContext,
    data_setup: Mapping[str, str],
    num_images: int,
    batch_size: int = 16,
    progress: bool = True,
) -> TensorStore:
    """Run the segmentor over pictures with ground truth and keep its queries.

    A query is matched as in training, by the set criterion; its points follow from the place of the picture,
    so that a store that was killed half-way is completed as if it had never been. The processes of a
    distributed run share the work, and the first one writes.

    Args:
        model: its segmentor and projector stay as they are.
        dataset: pictures of one size, or transformed to one; the first ``num_images`` are used.
        folder: of the store; what is of another segmentor or of other data there is computed anew.
        collate: examples → batch, with the label ids of ``context``.
        context: the labels that the queries are matched by.
        data_setup: how the data are read, part of the store's identity.
        num_images: pictures to run.
        batch_size: pictures in one forward pass.
        progress: show a bar on a terminal.

    Returns:
        A store of one item a picture: ``queries`` (Q, d) float16 and ``label_ids`` (Q,) int16 into the
        vocabulary of ``context``, ``NO_OBJECT`` for unmatched queries and, if the model's configuration
        ignores unknown queries, ``UNKNOWN_LABEL`` for unmatched ones on pixels whose truth is unknown.

    Raises:
        ValueError: if the data set has fewer pictures.
        TensorStoreError: in a process that has other weights than the first one, or does not see its files.
    """
    if not 1 <= num_images <= len(dataset):
        raise ValueError(f"num_images must lie in [1, {len(dataset)}], got {num_images}")
    identity = {
        **data_setup,
        "segmentor": compute_weights_digest(model, QUERY_PREFIXES)[:16],
        "matching": _describe_matching(model.config),
        "collate": repr(collate),
        "labels": ", ".join(context.vocabulary.names),
        "text_embeds": hashlib.sha256(context.text_embeds.cpu().numpy().tobytes()).hexdigest()[:16],
    }

    state = get_process_state()

    def compute(indices: range) -> list[dict[str, Tensor]]:
        # Batches go to the processes in turn. The criterion adds up the masks of all processes, so each must
        # make as many passes as the others: where batches run out, it computes the last one too.
        starts = range(indices.start, indices.stop, batch_size)
        computed: list[list[dict[str, Tensor]]] = []
        for first in range(0, len(starts), state.num_processes):
            start = starts[min(first + state.process_index, len(starts) - 1)]
            batch = _read_batch(dataset, range(start, min(start + batch_size, indices.stop)), collate)
            computed += gather_object([extract_queries(model, batch, context, seed=start)])
        return [item for items in computed[: len(starts)] for item in items]

    def compute_with_others(indices: range) -> list[dict[str, Tensor]]:
        broadcast_object_list([indices])
        return compute(indices)

    was_training = model.training
    points_state = model.criterion.get_rng_state()
    model.eval()
    failure = None
    try:
        if state.is_main_process:
            try:
                build_tensor_store(
                    folder,
                    identity=identity,
                    num_items=num_images,
                    compute=compute_with_others,
                    description="queries",
                    progress=progress,
                )
            except Exception as error:
                failure = error
            broadcast_object_list([None])
        else:
            while (indices := broadcast_object_list([None])[0]) is not None:
                try:
                    compute(indices)
                except Exception as error:
                    failure = error
        share_failure(failure)
        return TensorStore.open(folder, identity, num_items=num_images)
    finally:
        model.criterion.set_rng_state(points_state)
        model.train(was_training)


def _read_batch(dataset: PanopticDataset, indices: range, collate: PanopticCollator) -> Batch:
    """The batch of this process, read while the others read theirs: if one cannot, all of them stop."""
    batch: Batch = {}
    failure = None
    try:
        batch = collate([dataset[index] for index in indices])
    except Exception as error:
        failure = error
    share_failure(failure)
    return batch


def _describe_matching(config: ConcatConfig) -> str:
    """Digest of what decides, beside the weights, which queries there are and what they are matched with."""
    content = (describe_config(config.segmentor_config), config.logit_scale, config.ignore_unknown_queries)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


@torch.no_grad()
def extract_queries(
    model: ConcatForPanopticSegmentation, batch: Batch, context: StageContext, seed: int
) -> list[dict[str, Tensor]]:
    """One forward pass → per picture the queries and the labels that the set criterion matches them with."""
    device = model.device
    model.criterion.generator.manual_seed(seed)
    class_labels: list[Tensor] = batch["class_labels"]
    outputs = model(
        pixel_values=batch["pixel_values"].to(device),
        text_embeds=context.text_embeds.to(device),
        text_label_ids=context.text_label_ids.to(device),
        mask_labels=[masks.to(device) for masks in batch["mask_labels"]],
        class_labels=[labels.to(device) for labels in class_labels],
        label_mask=batch["label_mask"].to(device),
    )
    items = []
    is_unknown = torch.zeros(outputs.query_embeds.shape[:2], dtype=torch.bool)
    if model.config.ignore_unknown_queries:
        is_unknown = find_unknown_queries(outputs.masks_queries_logits, batch["label_mask"]).cpu()
    for queries, labels, match, unknown in zip(
        outputs.query_embeds, class_labels, outputs.matches, is_unknown, strict=True
    ):
        label_ids = torch.where(unknown, UNKNOWN_LABEL, NO_OBJECT).to(torch.int16)
        label_ids[match.query_indices.cpu()] = labels[match.target_indices.cpu()].to(torch.int16)
        items.append({"queries": queries.half().cpu(), "label_ids": label_ids})
    return items


def find_unknown_queries(mask_logits: Tensor, label_mask: Tensor) -> Tensor:
    """Queries of which more than half lies where nothing is known.

    Args:
        mask_logits: (B, Q, h, w).
        label_mask: (B, H, W) bool, true where ground truth is known.

    Returns:
        (B, Q) bool.
    """
    # The share of each cell that is known.
    height, width = mask_logits.shape[-2:]
    known = F.adaptive_avg_pool2d(label_mask.to(mask_logits.device, torch.float32), (height, width))
    is_inside = (mask_logits > 0).float()
    return 2 * torch.einsum("bqhw,bhw->bq", is_inside, 1 - known) > is_inside.sum(dim=(2, 3))
