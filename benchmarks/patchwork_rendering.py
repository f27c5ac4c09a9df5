"""Scenes of Patchwork a second on one core: picture, map and segments.

    OMP_NUM_THREADS=1 python benchmarks/patchwork_rendering.py --output FILE

``per_cpu_second`` counts the time this process ran, so it holds on a machine that is busy with other work;
``per_second`` is what a clock on the wall says. Medians over the repetitions.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

from zsseg.data import PatchworkDataset
from zsseg.data.patchwork.presets import PRESETS


def measure(preset, size, num_scenes, repeats):
    scenes = PatchworkDataset(preset, seed=0, num_scenes=num_scenes * repeats, size=size)
    scenes[0]
    rates = []
    for repeat in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        for index in range(repeat * num_scenes, (repeat + 1) * num_scenes):
            scenes[index]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        rates.append((num_scenes / seconds, num_scenes / cpu_seconds))
    per_second, per_cpu_second = (statistics.median(column) for column in zip(*rates, strict=True))
    return {"per_second": round(per_second, 1), "per_cpu_second": round(per_cpu_second, 1)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=(64, 128, 256))
    parser.add_argument("--scenes", type=int, default=100, help="in one repetition")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        for preset in PRESETS:
            rates = measure(preset, size, arguments.scenes, arguments.repeats)
            rows.append({"size": size, "preset": preset, **rates})
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
