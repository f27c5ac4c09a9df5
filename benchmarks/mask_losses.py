"""Claim: the set criterion is faster than transformers' Mask2FormerLoss, forward and backward.

Both get the same logits as leaves and the same targets; both losses are shown, as they differ only by the
points drawn. Runs alternate in one process; times are medians.

    python benchmarks/mask_losses.py --output benchmarks/results/mask_losses.csv
"""

import argparse
import csv
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# With a CPU build of torch, torchvision's compiled operators do not load, and transformers imports
# torchvision where it is installed: naming one operator is enough, as nothing here calls it.
try:
    TORCHVISION_OPERATORS = torch.library.Library("torchvision", "DEF")
    TORCHVISION_OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    pass

from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from zsseg.losses import SetCriterion

NUM_LABELS = 119


@dataclass(frozen=True)
class Case:
    """One size: B images of (H, W) = 4 · (h, w), Q queries, L layers, n targets per image, P points."""

    name: str
    batch_size: int
    num_queries: int
    num_layers: int
    mask_size: tuple[int, int]
    num_targets: int
    num_points: int


CASES = (
    Case("reference, 10 targets", 2, 100, 10, (160, 160), 10, 12544),
    Case("reference, 30 targets", 2, 100, 10, (160, 160), 30, 12544),
    Case("small, 10 targets", 8, 50, 4, (90, 120), 10, 3000),
    Case("small, 10 targets, full points", 8, 50, 4, (90, 120), 10, 12544),
)


@dataclass(frozen=True)
class Batch:
    """Logits of all layers, the final one last, and targets per image."""

    class_logits: list[Tensor]
    mask_logits: list[Tensor]
    mask_labels: list[Tensor]
    class_labels: list[Tensor]

    def clear_gradients(self) -> None:
        """Forget the gradients of the logits."""
        for logits in (*self.class_logits, *self.mask_logits):
            logits.grad = None


def build_batch(case: Case) -> Batch:
    """Smooth random logits, and targets that tile the image as in a panoptic map."""
    generator = torch.Generator().manual_seed(0)
    height, width = case.mask_size
    shape = (case.batch_size, case.num_queries)

    def smooth(*leading: int, size: tuple[int, int]) -> Tensor:
        coarse = 3 * torch.randn(*leading, 10, 10, generator=generator)
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)

    mask_logits = [smooth(*shape, size=case.mask_size).requires_grad_() for _ in range(case.num_layers)]
    class_logits = [
        torch.randn(*shape, NUM_LABELS + 1, generator=generator).requires_grad_()
        for _ in range(case.num_layers)
    ]
    winners = smooth(case.batch_size, case.num_targets, size=(4 * height, 4 * width)).argmax(dim=1)
    mask_labels = [torch.stack([ids == i for i in range(case.num_targets)]) for ids in winners]
    class_labels = [
        torch.randint(NUM_LABELS, (case.num_targets,), generator=generator) for _ in range(case.batch_size)
    ]
    return Batch(class_logits, mask_logits, mask_labels, class_labels)


def build_peer(case: Case) -> Mask2FormerLoss:
    """The peer with the same weights."""
    config = Mask2FormerConfig(train_num_points=case.num_points, num_labels=NUM_LABELS)
    weights = {
        "loss_cross_entropy": config.class_weight,
        "loss_mask": config.mask_weight,
        "loss_dice": config.dice_weight,
    }
    return Mask2FormerLoss(config, weight_dict=weights)


def run_peer(peer: Mask2FormerLoss, batch: Batch) -> float:
    """Forward and backward of transformers' loss, weighted as its model weights it."""
    auxiliary = [
        {"masks_queries_logits": masks, "class_queries_logits": classes}
        for masks, classes in zip(batch.mask_logits[:-1], batch.class_logits[:-1], strict=True)
    ]
    # the model's processor delivers float masks
    losses = peer(
        batch.mask_logits[-1],
        batch.class_logits[-1],
        [masks.float() for masks in batch.mask_labels],
        batch.class_labels,
        auxiliary,
    )
    loss = sum(
        weight * value
        for key, weight in peer.weight_dict.items()
        for name, value in losses.items()
        if name.startswith(key)
    )
    loss.backward()
    return float(loss.detach())


def run_ours(criterion: SetCriterion, batch: Batch) -> float:
    """Forward and backward of our loss."""
    loss = criterion(batch.class_logits, batch.mask_logits, batch.mask_labels, batch.class_labels).loss
    loss.backward()
    return float(loss.detach())


def measure(case: Case, repeats: int) -> dict[str, object]:
    """Median times of both, interleaved."""
    batch = build_batch(case)
    peer, criterion = build_peer(case), SetCriterion(num_points=case.num_points)
    times: dict[str, list[float]] = {"transformers": [], "zsseg": []}
    losses = {}
    for repeat in range(repeats + 1):
        for name, run in (
            ("transformers", lambda: run_peer(peer, batch)),
            ("zsseg", lambda: run_ours(criterion, batch)),
        ):
            batch.clear_gradients()
            start = time.perf_counter()
            losses[name] = run()
            if repeat:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    theirs, ours = statistics.median(times["transformers"]), statistics.median(times["zsseg"])
    return {
        "case": case.name,
        "transformers_ms": round(theirs, 1),
        "zsseg_ms": round(ours, 1),
        "ratio": round(theirs / ours, 2),
        "transformers_loss": round(losses["transformers"], 3),
        "zsseg_loss": round(losses["zsseg"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for case in CASES:
        rows.append(measure(case, arguments.repeats))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
