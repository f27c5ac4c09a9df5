"""Claim: CONCAT's test time is a fraction of that of a second branch that crops masks and classifies them.

Both begin with one forward pass of the same segmentor (Mask2Former on ResNet-50, 100 queries) and end with
the same panoptic merge. CONCAT (arXiv:2402.13697) has its labels then. The second branch also crops the
predicted masks, runs the crops through the vision tower of CLIP ViT-B/16 and compares them with the texts of
133 labels.

    python benchmarks/crop_and_classify.py --output benchmarks/results/crop_and_classify.csv

Runs alternate in one process, under inference_mode, with as many threads and in the same dtype; times are
medians. Where there is a GPU it is measured too. Weights are random; their masks would all be alike, so crops
and merge get drawn ones. Which queries a trained model keeps cannot be known then: 100 crops are all queries,
and 20 stand for a kinder variant that crops only what the merge keeps.

The second branch is made as fast as it can be: all masks are cropped at once by sampling just the pixels that
the tower sees, boxes come from the masks' own grid, the picture is normalised once. That takes a quarter of
the time of cropping and resizing one mask after the other with Pillow.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from full_size_dry_run import TINY_SEGMENTOR
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from zsseg import ConcatForPanopticSegmentation, PanopticSegmentation, PrecomputedTextEmbeddings
from zsseg.data.vocabularies import load_label_space
from zsseg.postprocessing.panoptic import merge_panoptic
from zsseg.training.recipes.coco_concat import build_coco_concat

KEPT_QUERIES = 20
PARTS = ("segmentor", "crops", "tower", "merge")
TINY_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclass(frozen=True)
class Setup:
    """What both ways share, on one device.

    Attributes:
        model: the segmentor, of random weights.
        tower: CLIP's vision tower, of random weights.
        text_embeds: (K, D), unit norm.
        pixel_values: (1, 3, H, W) a picture as the segmentor takes it.
        picture: (3, H, W) the same as the tower takes it, 0 is its mean colour.
        class_logits: (Q, K + 1), drawn: 20 queries pass the merge's threshold.
        mask_logits: (Q, h, w), drawn.
        stuff_label_ids: of the K labels.
        chunk: crops that go through the tower at a time.
    """

    model: ConcatForPanopticSegmentation
    tower: CLIPVisionModelWithProjection
    text_embeds: Tensor
    pixel_values: Tensor
    picture: Tensor
    class_logits: Tensor
    mask_logits: Tensor
    stuff_label_ids: tuple[int, ...]
    chunk: int


@dataclass
class Stopwatch:
    """Seconds of the parts of one run.

    Attributes:
        device: is waited for at the end of each part.
        seconds: by part.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - start


def build_setup(device: torch.device, size: int, *, tiny: bool) -> Setup:
    """Model, tower and picture of random numbers; ``tiny`` ones are for tests of the script."""
    vocabulary = load_label_space("coco_panoptic")
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, **(TINY_TOWER if tiny else {})))
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(vocabulary), tower.config.projection_dim, generator=generator)
    model, processor = build_coco_concat(
        PrecomputedTextEmbeddings(vocabulary.names, vectors.numpy().astype(np.float32)),
        **(TINY_SEGMENTOR if tiny else {}),
    )
    pixels = torch.randn(1, 3, size, size, generator=generator)
    class_logits, mask_logits = draw_logits(100, len(vocabulary), size // 4, generator)
    return Setup(
        model=model.eval().to(device),
        tower=tower.eval().to(device),
        text_embeds=processor.encode_labels(vocabulary)["text_embeds"].to(device),
        pixel_values=pixels.to(device),
        picture=pixels[0].to(device),
        class_logits=class_logits.to(device),
        mask_logits=mask_logits.to(device),
        stuff_label_ids=vocabulary.stuff_label_ids,
        chunk=100 if device.type == "cuda" else 25,
    )


def draw_logits(
    num_queries: int, num_labels: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits as a trained model's: some queries share the picture, the others double them and are no object.

    Returns:
        (Q, K + 1) class logits and (Q, size, size) mask logits.
    """
    surfaces = F.interpolate(
        torch.randn(1, KEPT_QUERIES, 6, 6, generator=generator), size=(size, size), mode="bicubic"
    )[0]
    highest, second = surfaces.topk(2, dim=0).values
    rivals = torch.where(surfaces == highest, second, highest)
    kept = 10 * torch.tanh(0.015 * size * (surfaces - rivals))
    copies = -(-num_queries // KEPT_QUERIES)
    mask_logits = torch.cat([kept.roll((copy, copy), (1, 2)) for copy in range(copies)])[:num_queries]
    class_logits = torch.zeros(num_queries, num_labels + 1)
    class_logits[:KEPT_QUERIES] = 10 * F.one_hot(
        torch.randint(num_labels, (KEPT_QUERIES,), generator=generator), num_labels + 1
    )
    class_logits[KEPT_QUERIES:, -1] = 10.0
    return class_logits, mask_logits


def crop_masks(picture: Tensor, mask_logits: Tensor, size: int) -> Tensor:
    """Show each mask by itself in a square around its box, everything else 0.

    Args:
        picture: (3, H, W), normalised.
        mask_logits: (Q, h, w) of any resolution.
        size: S, height and width of a crop.

    Returns:
        (Q, 3, S, S), sampled bilinearly; an empty mask gives zeros.
    """
    is_mask = mask_logits > 0
    (top, bottom), (left, right) = (find_extent(is_mask.any(dim=axis)) for axis in (2, 1))
    height, width = picture.shape[1:]
    side = torch.maximum((bottom - top) * height, (right - left) * width)
    steps = (torch.arange(size, device=picture.device) + 0.5) / size - 0.5
    rows = ((top + bottom) / 2)[:, None] + steps * (side / height)[:, None]
    columns = ((left + right) / 2)[:, None] + steps * (side / width)[:, None]
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1) * 2 - 1
    pixels = picture[None].expand(len(grid), -1, -1, -1)
    crops = F.grid_sample(pixels, grid, align_corners=False)
    inside = F.grid_sample(mask_logits[:, None], grid, align_corners=False) > 0
    return torch.where(inside, crops, 0)


def find_extent(is_line: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, n) bool → where the true ones begin and end, as shares of the length; 0 and 1 if there is none."""
    length = is_line.shape[1]
    first = is_line.int().argmax(dim=1)
    last = length - is_line.flip(1).int().argmax(dim=1)
    return first / length, last / length


def segment_by_concat(setup: Setup, watch: Stopwatch) -> PanopticSegmentation:
    """CONCAT's inference: class logits are part of the forward pass."""
    run_segmentor(setup, watch)
    return merge(setup, watch, setup.class_logits, setup.mask_logits)


def segment_by_crops(setup: Setup, watch: Stopwatch, num_crops: int) -> PanopticSegmentation:
    """The segmentor's masks, each cropped and classified by the tower."""
    run_segmentor(setup, watch)
    masks = setup.mask_logits[:num_crops]
    with watch.time("crops"):
        crops = crop_masks(setup.picture, masks, setup.tower.config.image_size)
    with watch.time("tower"):
        embeds = torch.cat([setup.tower(chunk).image_embeds for chunk in crops.split(setup.chunk)])
        logits = 100 * F.normalize(embeds.float(), dim=-1) @ setup.text_embeds.T
        logits.argmax(dim=1).tolist()
    # The merge gets the drawn logits here too, so that it does the same work.
    return merge(setup, watch, setup.class_logits[:num_crops], masks)


def run_segmentor(setup: Setup, watch: Stopwatch) -> None:
    with watch.time("segmentor"):
        setup.model(pixel_values=setup.pixel_values, text_embeds=setup.text_embeds)


def merge(setup: Setup, watch: Stopwatch, class_logits: Tensor, mask_logits: Tensor) -> PanopticSegmentation:
    with watch.time("merge"):
        height, width = setup.picture.shape[1:]
        return merge_panoptic(
            class_logits, mask_logits, stuff_label_ids=setup.stuff_label_ids, target_size=(height, width)
        )


def measure(
    setup: Setup, dtype: torch.dtype, crops: list[int], rounds: int
) -> dict[int, dict[str, list[float]]]:
    """Seconds of the parts of every run, by number of crops, 0 for CONCAT; a first round warms up."""
    device = setup.picture.device
    ways: dict[int, Callable[[Stopwatch], PanopticSegmentation]] = {
        0: lambda watch: segment_by_concat(setup, watch),
        **{count: lambda watch, count=count: segment_by_crops(setup, watch, count) for count in crops},
    }
    seconds: dict[int, dict[str, list[float]]] = {count: {part: [] for part in PARTS} for count in ways}
    for round_ in range(rounds + 1):
        shown = []
        for count, run in ways.items():
            watch = Stopwatch(device)
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                run(watch)
            shown.append(f"{f'{count} crops' if count else 'CONCAT'} {sum(watch.seconds.values()):.2f} s")
            if round_:
                for part in PARTS:
                    seconds[count][part].append(watch.seconds[part])
        print(f"  {f'round {round_}/{rounds}' if round_ else 'warm-up'}: {', '.join(shown)}", flush=True)
    return seconds


def summarise(seconds: dict[int, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """One row for each number of crops: medians, their ratio, and the share of each part in percent."""
    totals = {
        count: statistics.median(map(sum, zip(*parts.values(), strict=True)))
        for count, parts in seconds.items()
    }
    rows = []
    for count, parts in seconds.items():
        if not count:
            continue
        medians = {part: statistics.median(values) for part, values in parts.items()}
        share = {part: 100 * value / sum(medians.values()) for part, value in medians.items()}
        rows.append(
            {
                "crops": count,
                "concat_seconds": round(totals[0], 4),
                "crop_and_classify_seconds": round(totals[count], 4),
                "ratio": round(totals[count] / totals[0], 2),
                **{f"{part}_percent": round(value, 1) for part, value in share.items()},
            }
        )
    return rows


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=640, help="height and width of the picture in pixels")
    parser.add_argument(
        "--crops",
        type=int,
        nargs="+",
        default=[100, KEPT_QUERIES],
        help="numbers of crops to measure, 1 to 100",
    )
    parser.add_argument("--devices", nargs="+", choices=devices, default=devices)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: a test of the script, no measurement"
    )
    arguments = parser.parse_args()
    if not all(1 <= count <= 100 for count in arguments.crops):
        parser.error(f"--crops must lie in 1 to 100, got {arguments.crops}")
    torch.set_num_threads(arguments.threads)

    rows: list[dict[str, Any]] = []
    for device in map(torch.device, arguments.devices):
        setup = build_setup(device, arguments.size, tiny=arguments.tiny)
        for dtype in arguments.dtypes:
            print(f"{describe_device(device)}, {dtype}, {arguments.size}²", flush=True)
            seconds = measure(setup, getattr(torch, dtype), arguments.crops, arguments.rounds)
            setting = {"device": describe_device(device), "dtype": dtype, "size": arguments.size}
            rows += [{**setting, **row} for row in summarise(seconds)]
            for row in rows[-len(arguments.crops) :]:
                print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            # After every setting, so that what was measured stays when a later one fails.
            if arguments.output:
                write_rows(arguments.output, rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
