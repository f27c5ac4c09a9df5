"""The panoptic merge against transformers' post_process_panoptic_segmentation: time and extra memory.

    python benchmarks/panoptic_merge.py --output benchmarks/results/panoptic_merge.csv

100 queries, masks at a quarter of the map's size. Both run in turn in one process, so the ratios survive a
busy machine better than the milliseconds do. Memory is the rise of the peak resident size over one call, each
in a process of its own (Linux). The two do not compute the same map: transformers' differs from the paper's
rule.

Masks: "flat" tiles the picture with logits of ±6; "smooth" has curved regions with soft edges, a fifth of the
queries doubled by a shifted twin; "noisy" adds white noise to it; "sparse" leaves about half of the picture
void.
"""

import argparse
import csv
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Mask2FormerImageProcessorPil

from zsseg.postprocessing.panoptic import merge_panoptic

QUERIES, LABELS, STUFF_LABEL_IDS = 100, 133, frozenset(range(80, 133))
SIZES = {"640x480": (480, 640), "1920x1080": (1080, 1920), "4000x3000": (3000, 4000)}
MASKS = ("flat", "smooth", "noisy", "sparse")
KEPT = (5, 20, 60)


def build_logits(masks: str, kept: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(100, 134) class logits of which ``kept`` queries pass the threshold, and (100, h, w) mask logits."""
    generator = torch.Generator().manual_seed(0)
    height, width = size[0] // 4, size[1] // 4
    class_logits = torch.zeros(QUERIES, LABELS + 1)
    class_logits[:, -1] = 9.0
    mask_logits = torch.randn(QUERIES, height, width, generator=generator).mul_(0.1).sub_(6.0)
    queries = torch.randperm(QUERIES, generator=generator)[:kept].tolist()
    for query in queries:
        class_logits[query, -1] = 0.0
        label = int(torch.randint(LABELS, (1,), generator=generator))
        class_logits[query, label] = 10.0 + 2.0 * float(torch.rand(1, generator=generator))
    if masks == "flat":
        side = next(side for side in range(1, kept + 1) if side * side >= kept)
        for number, query in enumerate(queries):
            row, column = divmod(number, side)
            rows = slice(row * height // side, (row + 1) * height // side)
            columns = slice(column * width // side, (column + 1) * width // side)
            mask_logits[query, rows, columns] = 6.0
        return class_logits, mask_logits
    draw_regions(mask_logits, queries, generator, void=masks == "sparse")
    if masks == "noisy":
        mask_logits += torch.randn(mask_logits.shape, generator=generator)
    return class_logits, mask_logits


def draw_regions(mask_logits: Tensor, queries: list[int], generator: torch.Generator, *, void: bool) -> None:
    """Give each query the part of the picture where its own smooth random surface is the highest."""
    height, width = mask_logits.shape[1:]
    highest = torch.full((2, height, width), 0.8 if void else -torch.inf)

    def draw_surface(seed: int) -> Tensor:
        coarse = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(seed))
        return interpolate(coarse, size=(height, width), mode="bicubic")[0, 0]

    for query in queries:  # the highest and the second highest surface
        surface = draw_surface(query)
        highest[1] = torch.maximum(highest[1], torch.minimum(highest[0], surface))
        highest[0] = torch.maximum(highest[0], surface)
    # An edge about three samples wide; away from it the logits level off near ±10, as a trained model's do.
    steepness = 0.15 * min(height, width)
    for query in queries:
        surface = draw_surface(query)
        rival = torch.where(surface == highest[0], highest[1], highest[0])
        mask_logits[query] = 10.0 * torch.tanh(steepness * (surface - rival) / 10.0)
    for query, twin in zip(queries[::5], queries[1::5], strict=False):
        mask_logits[twin] = mask_logits[query].roll((1, 1), (0, 1)) - 0.5
        mask_logits[twin] += torch.randn(height, width, generator=generator).mul_(0.1)


def build_calls(masks: str, kept: int, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Both contenders on the same logits."""
    class_logits, mask_logits = build_logits(masks, kept, size)
    outputs = SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None])
    processor = Mask2FormerImageProcessorPil()
    return {
        "transformers": lambda: processor.post_process_panoptic_segmentation(
            outputs, threshold=0.8, target_sizes=[size], label_ids_to_fuse=set(STUFF_LABEL_IDS)
        ),
        "zsseg": lambda: merge_panoptic(
            class_logits, mask_logits, stuff_label_ids=STUFF_LABEL_IDS, target_size=size
        ),
    }


def measure_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of calls made in turn, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def measure_memory(name: str, masks: str, kept: int, size: tuple[int, int]) -> float:
    """Rise of the peak resident size in MB over one call in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (name, masks, kept, size))


def _measure_peak(name: str, masks: str, kept: int, size: tuple[int, int]) -> float:
    torch.set_num_threads(2)
    build_calls("flat", 5, (64, 64))[name]()  # lazy imports and thread pools are not counted
    call = build_calls(masks, kept, size)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _read_status("VmRSS")
    call()
    return _read_status("VmHWM") - before


def _read_status(field: str) -> float:
    """A field of this process's status in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    parser.add_argument("--kept", nargs="+", type=int, choices=KEPT, default=list(KEPT))
    arguments = parser.parse_args()
    torch.set_num_threads(2)

    rows = []
    print(f"{'masks':8}{'size':>11}{'kept':>6}{'transformers ms':>17}{'zsseg ms':>10}{'ratio':>8}", end="")
    print(f"{'transformers MB':>17}{'zsseg MB':>10}")
    for masks in arguments.masks:
        for size_name in arguments.sizes:
            for kept in arguments.kept:
                size = SIZES[size_name]
                times = measure_times(build_calls(masks, kept, size), arguments.rounds)
                memory = {name: measure_memory(name, masks, kept, size) for name in times}
                row = {
                    "masks": masks,
                    "size": size_name,
                    "kept": kept,
                    "transformers_ms": round(times["transformers"], 2),
                    "zsseg_ms": round(times["zsseg"], 2),
                    "ratio": round(times["transformers"] / times["zsseg"], 1),
                    "transformers_mb": round(memory["transformers"]),
                    "zsseg_mb": round(memory["zsseg"]),
                }
                rows.append(row)
                print(
                    f"{masks:8}{size_name:>11}{kept:6}{row['transformers_ms']:17.1f}{row['zsseg_ms']:10.1f}"
                    f"{row['ratio']:8.1f}{row['transformers_mb']:17}{row['zsseg_mb']:10}",
                    flush=True,
                )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
