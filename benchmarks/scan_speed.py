"""SCAN's cost: the crop branch in batches against one crop at a time, its modes against CONCAT, and labels.

    python benchmarks/scan_speed.py --output benchmarks/results/scan_speed.csv

All models have random weights and share one segmentor (Swin-B, 100 queries, 640×640); masks are drawn, so
that every query has a crop. "crops": the crop branch alone, with 32 crops in a batch and with one, at the
size of SCAN-B and with Patchwork's CLIP. "modes": a whole forward pass with 150 labels, CONCAT's the peer.
"labels": forward passes in mode ensemble with 20, 150 and 847 labels. Runs alternate in one process, under
inference_mode; times are medians. Memory is the rise of the peak resident size over one run (Linux).
"""

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig

from zsseg import ConcatConfig, ConcatForPanopticSegmentation, ScanConfig, ScanForSemanticSegmentation
from zsseg.models.scan.configuration_scan import choose_scan_layers
from zsseg.models.scan.contextual_shift import PictureContext

QUERIES = 100
LABELS = (20, 150, 847)
VIT_B16 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "patch_size": 16, "image_size": 224, "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
PATCHWORK_VIT = {
    "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 6, "num_attention_heads": 5,
    "patch_size": 8, "image_size": 64, "projection_dim": 128,
}  # fmt: skip
TINY_VIT = PATCHWORK_VIT | {
    "hidden_size": 20,
    "intermediate_size": 20,
    "image_size": 16,
    "projection_dim": 16,
}
SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
TINY_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
TINY_SEGMENTOR = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 2}


def build_scan(vit: Mapping[str, Any], *, tiny: bool) -> ScanForSemanticSegmentation:
    backbone = SwinConfig(
        **(TINY_SWIN if tiny else SWIN_B), out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    torch.manual_seed(0)
    config = ScanConfig(
        segmentor_config={
            "backbone_config": backbone.to_dict(),
            "decoder_layers": 11,
            "num_queries": QUERIES,
            "encoder_feedforward_dim": 1024,
            **(TINY_SEGMENTOR if tiny else {}),
        },
        vision_config=dict(vit),
        projection_dim=vit["projection_dim"],
        integration_layers=choose_scan_layers(vit["num_hidden_layers"])["integration_layers"],
        has_shifted_tower=False,
    )
    return ScanForSemanticSegmentation(config).eval()


def draw_masks(size: int) -> Tensor:
    """(1, Q, size, size) logits of smooth blobs of all sizes, none of them empty."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, QUERIES, 6, 6, generator=generator)
    surfaces = F.interpolate(noise, (size, size), mode="bicubic")
    return 10 * (surfaces - surfaces.flatten(2).quantile(0.9, dim=2)[..., None, None])


class CropBranch:
    """The crop branch by itself on a picture whose context is given."""

    def __init__(self, model: ScanForSemanticSegmentation, size: int) -> None:
        vision = model.config.vision_config
        self.model = model
        self.picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        self.masks = draw_masks(size // 4)
        self.sizes = [(size, size)]
        self.texts = torch.randn(150, vision.projection_dim, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            self.context: PictureContext = model.encode_context(self.picture, self.sizes)

    def run(self, crop_batch_size: int) -> Tensor:
        """(1, Q, 150) logits."""
        self.model.config.crop_batch_size = crop_batch_size
        names = self.model.name_by_clip(self.picture, self.context, self.masks, self.sizes, self.texts)
        assert bool(names.is_valid.all())
        return names.logits


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and the largest rise of memory in MB of each; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rises: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, call in calls.items():
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
                before = read_status("VmRSS")
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
                rises[name].append(read_status("VmHWM") - before)
                print(f"  {name}: {seconds[name][-1]:.3f} s", flush=True)
    return {name: (statistics.median(seconds[name][1:]), max(rises[name][1:])) for name in calls}


def read_status(field: str) -> float:
    """A field of this process's status in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1000


def summarise(part: str, measured: Mapping[str, tuple[float, float]], peer: str) -> list[dict[str, Any]]:
    """A row for each, with its time as a multiple of the peer's."""
    return [
        {
            "part": part,
            "what": name,
            "seconds": round(seconds, 4),
            "ratio_to_peer": round(seconds / measured[peer][0], 3),
            "peer": peer,
            "rise_mb": round(rise),
        }
        for name, (seconds, rise) in measured.items()
    ]


class FixedMasks(nn.Module):
    """Runs the segmentor, and hands drawn masks on in place of those of its random weights."""

    def __init__(self, segmentor: nn.Module, masks: Tensor) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.masks = masks

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the segmentor returns, but for the last layer's masks."""
        outputs = self.segmentor(*inputs, **options)
        outputs.masks_queries_logits = (*outputs.masks_queries_logits[:-1], self.masks)
        return outputs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=640, help="height and width of the picture in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=("crops", "modes", "labels"), default=None)
    parser.add_argument("--tiny", action="store_true", help="tiny models: a test of the script, no claim")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = arguments.parts or ["crops", "modes", "labels"]
    size, rounds = arguments.size, arguments.rounds
    model = build_scan(TINY_VIT if arguments.tiny else VIT_B16, tiny=arguments.tiny)
    rows: list[dict[str, Any]] = []
    if "crops" in parts:
        small = build_scan(PATCHWORK_VIT, tiny=True)
        branches = {"SCAN-B": (model, size), "Patchwork": (small, 128)}
        for name, (branch_model, branch_size) in branches.items():
            branch = CropBranch(branch_model, branch_size)
            single, batched = branch.run(1), branch.run(32)
            torch.testing.assert_close(single, batched, rtol=1e-3, atol=1e-2)
            calls = {
                f"{name}, one at a time": lambda branch=branch: branch.run(1),
                f"{name}, 32 at a time": lambda branch=branch: branch.run(32),
            }
            rows += summarise("crops", measure(calls, rounds), f"{name}, one at a time")
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    width = model.config.projection_dim
    texts = torch.randn(max(LABELS), width, generator=torch.Generator().manual_seed(4))
    model.config.crop_batch_size = 32
    segmentor = model.segmentor
    model.segmentor = FixedMasks(segmentor, draw_masks(size // 4))
    if "modes" in parts:
        concat = ConcatForPanopticSegmentation(
            ConcatConfig(segmentor_config=copy.deepcopy(model.config.segmentor_config), projection_dim=width)
        ).eval()
        concat.segmentor = segmentor
        calls = {"CONCAT": lambda: concat(pixel_values=pixels, text_embeds=texts[:150])}
        for mode in ("in_vocab_only", "clip_only", "ensemble"):
            calls[mode] = lambda mode=mode: model(pixel_values=pixels, text_embeds=texts[:150], mode=mode)
        rows += summarise("modes", measure(calls, rounds), "CONCAT")
    if "labels" in parts:
        calls = {
            f"{count} labels": lambda count=count: model(
                pixel_values=pixels, text_embeds=texts[:count], mode="ensemble"
            )
            for count in LABELS
        }
        rows += summarise("labels", measure(calls, rounds), f"{LABELS[0]} labels")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.output:
        with arguments.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
